"""A model's training step by the kernels, interpreted; run by test_triton_interpreter.py."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "these kernels run interpreted; test_triton_interpreter.py starts this file with "
        "TRITON_INTERPRET=1",
        allow_module_level=True,
    )

pytest.importorskip("triton")

from adarec_fast import ADARec
from adarec_fast.data import Batch


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"router": "level"}, id="level"),
        # A step at all positions is in test_triton_step.py.
        pytest.param(
            {"supervision": "all", "lambda_cont": 0.0}, id="all", marks=pytest.mark.slow
        ),
    ],
)
def test_a_models_step_is_that_of_packed(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and every gradient, the noise included; which ops are in one differs."""
    found = []
    for backend in ("packed", "triton"):
        monkeypatch.setenv("ADAREC_FAST_BACKEND", backend)
        model = ADARec(
            num_items=30, hidden_size=16, num_layers=1, max_depth=3, max_length=6, **options
        ).train()
        values = torch.randint(1, 31, (16,), generator=torch.Generator().manual_seed(0))
        offsets = torch.tensor([0, 6, 7, 11, 16])
        targets = values.flip(0) if options.get("supervision") == "all" else values[:4]
        output = model.loss(Batch(values, offsets, targets, torch.arange(4)))
        output.total.backward()
        found.append((output.parts, {n: p.grad for n, p in model.named_parameters()}))
    (parts, gradients), (ours, own_gradients) = found
    for name, part in parts.items():
        torch.testing.assert_close(ours[name], part, rtol=1e-5, atol=1e-6, msg=name)
    for name, gradient in gradients.items():
        allowed = 1e-5 + 1e-4 * float(gradient.abs().max())
        torch.testing.assert_close(
            own_gradients[name], gradient, rtol=0, atol=allowed, msg=name
        )
