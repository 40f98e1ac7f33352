"""Targets that share their weight with the items that follow them in other histories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adarec_fast import ADARec, ConfigError, TrainConfig, synthetic
from adarec_fast.data import Batch, InteractionData, Split, TrainingBatches
from adarec_fast.models.sasrec.model import SASRec
from adarec_fast.models.soft_targets import SoftTargets
from adarec_fast.models.transitions import Recipe, transitions
from adarec_fast.ops import TransitionWeights
from adarec_fast.training import load_run, train

SMALL: dict[str, Any] = {"hidden_size": 8, "num_layers": 1, "max_length": 12, "seed": 2}


@pytest.fixture(scope="module")
def data() -> InteractionData:
    return synthetic(num_users=60, num_items=40, seed=5)


def distribution(split: Split, share: float, neighbours: int) -> torch.Tensor:
    """q ``[V+1, V+1]`` in float64, a row a target."""
    found = transitions(*split.inputs("train"), split.num_items, Recipe(), neighbours)
    dense = TransitionWeights(*found, 0, 1.0, 1.0, 1.0).dense().double()
    total = dense.sum(1, keepdim=True)
    one = torch.eye(split.num_items + 1, dtype=torch.float64)
    return (1 - share) * one + share * torch.where(total > 0, dense / total.clamp(min=1e-30), one)


@pytest.mark.parametrize("neighbours", [1, 5, 1000])
def test_the_lead_makes_a_cross_entropy_of_soft_targets(
    data: InteractionData, neighbours: int
) -> None:
    split, share = Split(data), 0.3
    soft = SoftTargets(*split.inputs("train"), split.num_items, neighbours).double()
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 6, generator=g, dtype=torch.float64, requires_grad=True)
    table = torch.randn(41, 6, generator=g, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(1, 41, (9,), generator=g)
    targets[4] = 0
    kept = targets > 0
    # Shares are kept in float32.
    q = distribution(split, share, neighbours)[targets[kept]][:, 1:]
    log = torch.log_softmax(hidden[kept] @ table[1:].T, 1)
    wanted = -(q * log).sum(1).mean()
    plain = -log.gather(1, targets[kept, None] - 1).mean()
    found = plain + share * soft.lead(hidden, table, targets)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(found, (hidden, table), retain_graph=True),
        torch.autograd.grad(wanted, (hidden, table)), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_an_item_without_transitions_keeps_its_own_weight() -> None:
    soft = SoftTargets(torch.tensor([1, 2]), torch.tensor([0, 2]), 3)
    assert soft.shares.sum(1).tolist() == [1.0] * 4
    assert soft.items[3].tolist() == [3]
    hidden, table = torch.randn(1, 4), torch.randn(4, 4)
    assert soft.lead(hidden, table, torch.tensor([3])).item() == 0.0


def one_batch(split: Split, supervision: str) -> Batch:
    batches = TrainingBatches(
        *split.inputs("train"), supervision=supervision, batch_size=16, max_length=12, seed=0
    )
    return next(iter(batches.epoch(0)))


@pytest.mark.parametrize("supervision", ["all", "prefix"])
@pytest.mark.parametrize("kind", [ADARec, SASRec])
def test_of_a_model(kind: type, supervision: str, data: InteractionData) -> None:
    split = Split(data)
    batch, losses = one_batch(split, supervision), []
    for share in (0.0, 0.25, 0.5):
        model = kind(
            num_items=40, dropout=0.0, attention_dropout=0.0, supervision=supervision,
            transition_smoothing=share, **SMALL,
        )  # fmt: skip
        model.begin_training(split)
        assert not {name for name in model.state_dict() if "soft" in name}
        loss = model.loss(batch)
        loss.total.backward()
        assert model.item_embedding.weight.grad is not None
        losses.append(float(loss.parts["rec"]))
    # It is linear in the share.
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-3, abs=1e-6)
    assert losses[1] != losses[0]


def test_without_its_counts_it_says_so(data: InteractionData) -> None:
    model = SASRec(num_items=40, transition_smoothing=0.2, supervision="all", **SMALL)
    with pytest.raises(ValueError, match=r"transition_smoothing=0\.2 needs the counts"):
        model.loss(one_batch(Split(data), "all"))


def test_a_split_item_table_is_refused(data: InteractionData) -> None:
    model = SASRec(num_items=40, transition_smoothing=0.2, **SMALL)
    with pytest.raises(ConfigError, match=r"transition_smoothing=0\.2 needs the vectors"):
        model.split_items(None)  # type: ignore[arg-type]


def test_a_resumed_run_counts_again(data: InteractionData, tmp_path: Path) -> None:
    options = {"model": "sasrec", **SMALL, "transition_smoothing": 0.3, "supervision": "all"}
    config = TrainConfig(epochs=2, batch_size=16, device="cpu")
    train(options, config, data, tmp_path / "whole")
    train(options, config, data, tmp_path / "parts", stop_after_steps=3)
    train(options, config, data, tmp_path / "parts", resume=True)
    one, other = (load_run(tmp_path / n, which="last").model for n in ("whole", "parts"))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
