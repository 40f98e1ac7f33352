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
from adarec_fast.data import Split, TrainingBatches  # noqa: E402
from adarec_fast.models.registry import build, create_config  # noqa: E402
from bench.baselines.plugins import (  # noqa: E402
    PaddedBASRec,
    PaddedDiffDiv,
    PaddedGlobalDiff,
    PaddedIOCRec,
    PaddedPDRec,
)
from bench.baselines.systems import PaddedSystem  # noqa: E402

SPLIT = Split(DATA)
PDREC = {
    "model": "pdrec", "preference_epochs": 1, "preference_hidden": 4, "candidates": 12,
}  # fmt: skip
GLOBALDIFF = {
    "model": "globaldiff", "encoder_epochs": 1, "image_side": 4, "approximator_dropout": 0.0,
    "image_dropout": 0.0, "num_layers": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("system", "baseline"),
    [
        ({"model": "sasrec"}, PaddedSystem), ({"model": "iclrec", "num_intents": 4}, PaddedSystem),
        ({"model": "elcrec", "num_intents": 4}, PaddedSystem),
        (
            {"model": "elcrec", "num_intents": 4, "fusion": "shift", "lambda_cluster": 3.0},
            PaddedSystem,
        ),
        ({"model": "basrec", "plain_epochs": 0}, PaddedBASRec), (PDREC, PaddedPDRec),
        ({"model": "iocrec"}, PaddedIOCRec), (GLOBALDIFF, PaddedGlobalDiff),
        ({"model": "diffdiv", "loss": "full_ce"}, PaddedDiffDiv),
    ],
    ids=[
        "sasrec", "iclrec", "elcrec", "elcrec-shift", "basrec", "pdrec", "iocrec", "globaldiff",
        "diffdiv",
    ],
)  # fmt: skip
def test_padded_systems_have_ours_losses_and_gradients(
    system: dict[str, Any], baseline: type[PaddedSystem]
) -> None:
    fields = {
        "num_items": DATA.num_items, "hidden_size": 8, "max_length": 10, "loss": "original",
        "dropout": 0.0, "attention_dropout": 0.0, "backend": "packed", **system,
    }  # fmt: skip
    prefixes = system["model"] in ("iocrec", "globaldiff", "diffdiv")
    if not prefixes:
        fields["supervision"] = "all"
    settings = create_config(fields)
    model: Any = build(settings).double().train()
    model.begin_training(SPLIT)
    model.begin_epoch(int(system["model"] == "globaldiff"))
    batch = next(iter(TrainingBatches(
        *SPLIT.inputs("train"), supervision=settings.supervision, batch_size=32, max_length=10,
        seed=0,
    ).epoch(0)))  # fmt: skip
    plain = baseline(model)
    given = plain.given(batch, exact=True)
    found = []
    for loss in (lambda: plain(given), lambda: model.loss(batch).total):
        model.zero_grad()
        total = loss()
        total.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((total.detach(), gradients))
    torch.testing.assert_close(found[0], found[1])
