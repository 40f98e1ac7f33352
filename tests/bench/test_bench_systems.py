"""The padded baselines compute what the systems do: losses and gradients, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import DATA

ROOT = Path(__file__).parents[2]
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
from adarec_fast import rng  # noqa: E402
from adarec_fast.data import Split, TrainingBatches  # noqa: E402
from adarec_fast.models.blocks.augmentation import augmented  # noqa: E402
from adarec_fast.models.iclrec.losses import Contrast  # noqa: E402
from adarec_fast.models.registry import build, create_config  # noqa: E402
from adarec_fast.models.sasrec.model import SASRec  # noqa: E402
from bench.baselines.systems import PaddedSystem, padded  # noqa: E402

SPLIT = Split(DATA)


@pytest.mark.parametrize(
    "system",
    [
        {"model": "sasrec", "supervision": "all"}, {"model": "iclrec", "num_intents": 4},
        {"model": "elcrec", "num_intents": 4},
        {"model": "elcrec", "num_intents": 4, "fusion": "shift", "lambda_cluster": 3.0},
    ],
    ids=["sasrec", "iclrec", "elcrec", "elcrec-shift"],
)  # fmt: skip
def test_padded_systems_have_ours_losses_and_gradients(system: dict[str, Any]) -> None:
    fields = {
        "num_items": DATA.num_items, "hidden_size": 8, "max_length": 10, "loss": "original",
        "dropout": 0.0, "attention_dropout": 0.0, "backend": "packed", **system,
    }  # fmt: skip
    model = build(create_config(fields)).double().train()
    assert isinstance(model, SASRec)
    model.begin_training(SPLIT)
    model.begin_epoch(0)
    batch = next(iter(TrainingBatches(
        *SPLIT.inputs("train"), supervision="all", batch_size=32, max_length=10, seed=0
    ).epoch(0)))  # fmt: skip
    draws, views = rng.at_place(model.noise_seed), None
    if isinstance(model.auxiliary, Contrast):
        ratios = model.auxiliary.ratios
        views = augmented(batch.item_ids, batch.offsets, draws, (0, 1, 0, 1), ratios)
    given = padded(
        batch.item_ids, batch.offsets, batch.targets, model._drawn(batch, draws), views, 10
    )
    found = []
    for loss in (lambda: PaddedSystem(model)(given), lambda: model.loss(batch).total):
        model.zero_grad()
        total = loss()
        total.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((total.detach(), gradients))
    torch.testing.assert_close(found[0], found[1])
