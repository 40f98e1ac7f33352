"""``seed=`` decides every number that is drawn; ``torch.manual_seed`` none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adarec_fast import ADARec, TrainConfig, synthetic
from adarec_fast.data import Batch
from adarec_fast.models.sasrec.model import SASRec
from adarec_fast.training import load_run, train

SHAPE: dict[str, Any] = {"num_items": 30, "hidden_size": 8, "num_layers": 1, "max_length": 6}
BATCH = Batch(
    torch.tensor([3, 4, 9, 1]), torch.tensor([0, 3, 4]), torch.tensor([5, 6]), torch.arange(2)
)


def drawn(kind: type[Any], seed: int, of_torch: int) -> tuple[dict[str, Tensor], Tensor]:
    """Weights, and a loss with dropout and noise."""
    torch.manual_seed(of_torch)
    model = kind(**SHAPE, seed=seed)
    torch.manual_seed(of_torch + 7)
    return model.state_dict(), model.loss(BATCH).total.detach()


@pytest.mark.parametrize("kind", [ADARec, SASRec])
def test_weights_noise_and_dropout_follow_the_models_seed(kind: type[Any]) -> None:
    weights, loss = drawn(kind, 3, 1)
    again, same = drawn(kind, 3, 2)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert torch.equal(loss, same)
    other, different = drawn(kind, 4, 1)
    assert not torch.equal(weights["item_embedding.weight"], other["item_embedding.weight"])
    assert not torch.equal(loss, different)


def test_a_step_leaves_torchs_generator_alone() -> None:
    model = ADARec(**SHAPE)
    state = torch.random.get_rng_state()
    model.loss(BATCH).total.backward()
    model.recommend([[1, 2]], k=3)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_backbone_of_ones_own_follows_torchs() -> None:
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
        losses.append(ADARec(**SHAPE, backbone=encoder).loss(BATCH).total.detach())
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_a_run_follows_both_seeds_alone(tmp_path: Path) -> None:
    data = synthetic(num_users=40, num_items=40)
    shape = {**SHAPE, "max_depth": 1}
    del shape["num_items"]
    runs = []
    for place, (model_seed, order_seed, of_torch) in enumerate(
        [(0, 0, 1), (0, 0, 2), (1, 0, 1), (0, 1, 1)]
    ):
        torch.manual_seed(of_torch)
        folder = tmp_path / str(place)
        config = TrainConfig.create(epochs=1, batch_size=16, seed=order_seed, device="cpu")
        train({**shape, "seed": model_seed}, config, data, folder)
        runs.append(load_run(folder, which="last").model.item_embedding.weight)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], runs[3])
