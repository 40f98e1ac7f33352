"""The trajectory in one kernel; run by test_triton_interpreter.py."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pytest
import torch
from helpers import Backend, Batch, random_batch
from helpers_accuracy import check_against_float64
from helpers_suite import EXTREMES

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "these kernels run interpreted; test_triton_interpreter.py starts this file with "
        "TRITON_INTERPRET=1",
        allow_module_level=True,
    )

pytest.importorskip("triton")

from test_fused_trajectory import VARIANTS, build

from adarec_fast.kernels import fused_trajectory as kernel
from adarec_fast.packed._parts import PART_TOKENS

TRITON = Backend("fused_trajectory", "triton", "cpu")
INFERENCE = {"content": build, "level": partial(build, content=False)}
IN_PARTS = {name: VARIANTS[name] for name in ("training", "all", "level-only")}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward pass must not leave the kernel."""
    monkeypatch.setattr(kernel, "forward_in_parts", None)


@pytest.mark.usefixtures("poisoned", "alone")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=[pytest.mark.slow] * (name == "level"))
        for name, make in INFERENCE.items()
    ],
)
def test_the_kernel_equals_the_float64_reference(make: Any) -> None:
    ragged = random_batch(7, size=16, max_depth=4, max_length=9, capacity=3, seed=1)
    # Longer than a tile of tokens, than a block of keys, and of another size of head.
    long = Batch((1, 70, 3, 40), (1, 2, 0, 2), size=20, capacity=3, max_length=70)
    few = [ragged, *(EXTREMES[n] for n in ("one-token", "empty"))]
    for batch in [*few, long] if make is build else few:
        check_against_float64(make(batch), TRITON, torch.float32)


@pytest.mark.usefixtures("poisoned", "alone")
@pytest.mark.parametrize("size", [64, pytest.param(128, marks=pytest.mark.slow)])
def test_the_sizes_it_is_for(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The interpreter's float32 is IEEE, which at D = 128 asks for too many registers of a GPU.
    monkeypatch.setattr(kernel, "LARGEST", 128)
    check_against_float64(build(random_batch(2, size=size, max_length=3)), TRITON, torch.float32)


@pytest.mark.usefixtures("poisoned", "alone")
def test_bfloat16_and_autocast() -> None:
    batch = random_batch(3, size=32, capacity=1)
    check_against_float64(build(batch), TRITON, torch.bfloat16)
    check_against_float64(build(batch, heads=4), TRITON, torch.float32, autocast=True)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "group", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 16))]
)
def test_groups_of_sequences_change_nothing_but_rounding(
    group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = build(random_batch(9, size=16, max_depth=3, seed=2))
    tensors = case.tensors(torch.float32)
    with torch.no_grad():
        usual = case.call(tensors, "triton")
        monkeypatch.setattr(kernel, "_sequences_a_program", lambda *_: group)
        for one, two in zip(usual, case.call(tensors, "triton"), strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=[pytest.mark.slow] * (name != "training"))
        for name, make in IN_PARTS.items()
    ],
)
def test_parts_equal_the_float64_reference(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise and dropout are those of the whole batch, wherever a part begins."""
    monkeypatch.setitem(PART_TOKENS, "cpu", 13)
    ragged = random_batch(4, size=16, max_depth=5, max_length=9, capacity=3, seed=1)
    check_against_float64(make(ragged), TRITON, torch.float32)

