"""A training step of the whole model by the kernels; run by test_triton_interpreter.py."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "these kernels run interpreted; test_triton_interpreter.py starts this file with "
        "TRITON_INTERPRET=1",
        allow_module_level=True,
    )

pytest.importorskip("triton")

from adarec_fast import ADARec, TrainConfig, synthetic
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.training.captured import capacity, in_bucket
from adarec_fast.training.optimization import Stepper
from adarec_fast.training.statistics import EpochStatistics

DATA = synthetic(num_users=20, num_items=30, num_themes=3, subthemes_per_theme=2, seed=2)


def _step(backend: str, supervision: str, options: dict[str, Any]) -> dict[str, Tensor]:
    """Gradients, Adam's state and the statistics after a step of a batch with capacity."""
    model = ADARec(
        num_items=30, hidden_size=16, num_layers=1, max_depth=2, max_length=8,
        supervision=supervision, **options,
    ).train()  # fmt: skip
    place = torch.device("cpu")
    stepper = Stepper(model, TrainConfig(batch_size=6, gradient_clip=1.0), place)
    assert stepper._kernels == (backend == "triton")
    batches = TrainingBatches(
        *Split(DATA).inputs("train"), supervision=supervision, batch_size=6, max_length=8, seed=0,
        device=place,
    )  # fmt: skip
    statistics = EpochStatistics(model.diagnostics(), place)
    batch = next(batches.epoch(0))
    batch = in_bucket(batch, capacity(batch.item_ids.shape[0]), supervision)
    stepper.step(batch, 1, statistics)
    assert statistics.diverged() is None
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**gradients, **stepper.state_tensors(), "sums": statistics.sums}


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("supervision", "options"),
    [
        # A model's step of prefixes is in test_triton_model.py.
        pytest.param("prefix", {}, id="prefix", marks=pytest.mark.slow),
        pytest.param(
            "all", {"residual": True, "depth_gradient": "full"}, id="all-residual-full"
        ),
    ],
)
def test_a_step_is_that_of_plain_pytorch(
    supervision: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAREC_FAST_BACKEND", "packed")
    wanted = _step("packed", supervision, options)
    monkeypatch.setenv("ADAREC_FAST_BACKEND", "triton")
    found = _step("triton", supervision, options)
    assert found.keys() == wanted.keys()
    largest = max(float(t.abs().max()) for n, t in wanted.items() if "/" not in n and n != "sums")
    for name, value in wanted.items():
        if name.startswith("adam/") or name == "sums":
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)
        else:
            # Clipped by torch, and left as they are by the kernel.
            norm = float(torch.nn.utils.get_total_norm([
                t for n, t in found.items() if "/" not in n and n != "sums"
            ]))  # fmt: skip
            scale = min(1.0, 1.0 / (norm + 1e-6))
            torch.testing.assert_close(
                found[name] * scale, value, rtol=1e-3, atol=2e-5 * largest, msg=name
            )
