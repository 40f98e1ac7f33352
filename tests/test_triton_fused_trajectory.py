"""The trajectory in one kernel; run by test_triton_interpreter.py."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from helpers import Backend, check_against_float64, random_batch
from helpers_suite import EXTREMES

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "these kernels run interpreted; test_triton_interpreter.py starts this file with "
        "TRITON_INTERPRET=1",
        allow_module_level=True,
    )

pytest.importorskip("triton")

from test_fused_trajectory import VARIANTS

from adarec_fast.packed import fused_trajectory as packed

TRITON = Backend("fused_trajectory", "triton", "cpu")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS.keys())
def test_equals_the_float64_reference(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packed.PART_TOKENS, "cpu", 30)
    ragged = random_batch(7, size=16, max_depth=4, max_length=9, capacity=3, seed=1)
    check_against_float64(make(ragged), TRITON, torch.float32)
    for name in ("one-token", "empty-with-capacity", "depth-0"):
        check_against_float64(make(EXTREMES[name]), TRITON, torch.float32)
