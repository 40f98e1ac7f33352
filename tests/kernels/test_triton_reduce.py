"""The one reduction of all weight partials; run by test_triton_interpreter.py."""

from __future__ import annotations

import os

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

from adarec_fast.kernels import _reduce
from adarec_fast.kernels._launch import recording
from adarec_fast.kernels._reduce import MOST, Partials

SHAPES = [(30, 20), (7,), (1,), (3, 130), (16, 16)]
COUNTS = [1, 2, 63, 64, 65, 200]


def _fill(values: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(values.numel())
    return values.copy_(torch.randn(values.shape, generator=generator))


def _check(found: Tensor, values: Tensor, like: Tensor) -> None:
    """As near to the float64 sum as that many float32 additions, one after another, may be."""
    exact = values.double().sum(0)
    bound = values.double().abs().sum(0) * values.shape[0] * torch.finfo(torch.float32).eps
    bound += exact.abs() * torch.finfo(like.dtype).eps
    assert found.dtype == like.dtype
    assert found.is_contiguous()
    assert found.shape == like.shape
    assert bool(((found.double() - exact).abs() <= bound).all())


@pytest.fixture(params=[64, 4096])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reduce, "COLUMNS", request.param)


@pytest.mark.usefixtures("poisoned", "columns")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_float64_sum(dtype: torch.dtype) -> None:
    weights = [torch.zeros(shape, dtype=dtype) for shape in SHAPES]
    for counts in (COUNTS, [*reversed(COUNTS)], [5] * 6):
        parts = Partials()
        values = [_fill(parts.new(w, n)) for w, n in zip(weights, counts, strict=False)]
        for found, own, like in zip(parts.sum(*weights), values, weights, strict=True):
            _check(found, own, like)


@pytest.mark.usefixtures("poisoned", "columns")
def test_transposed_in_rows_and_of_two_dtypes() -> None:
    w, other = torch.zeros(30, 20), torch.zeros(5, dtype=torch.bfloat16)
    qkv = torch.zeros(9, 5)
    parts = Partials()
    turned = _fill(parts.new(w, 3, transposed=True))
    small = _fill(parts.new(other, 4))
    rows = [(0, 3), (3, 6), (6, 9)]
    pieces = [_fill(parts.new(qkv, n, rows=r)) for n, r in zip((2, 0, 70), rows, strict=True)]
    assert turned.shape == (3, 20, 30)
    d_qkv, d_other, d_w = parts.sum(qkv, other, w)
    _check(d_w, turned.transpose(1, 2), w)
    _check(d_other, small, other)
    for (begin, end), piece in zip(rows, pieces, strict=True):
        _check(d_qkv[begin:end], piece, qkv[begin:end])
    assert bool((d_qkv[3:6] == 0).all())


@pytest.mark.usefixtures("poisoned", "columns")
@pytest.mark.parametrize(
    "count", [MOST, MOST + 1, pytest.param(5000, marks=pytest.mark.slow)]
)
def test_very_many(count: int) -> None:
    w, few = torch.zeros(6, 11, dtype=torch.bfloat16), torch.zeros(9)
    parts = Partials()
    many, own = _fill(parts.new(w, count, transposed=True)), _fill(parts.new(few, 3))
    d_few, d_w = parts.sum(few, w)
    _check(d_w, many.transpose(1, 2), w)
    _check(d_few, own, few)


def test_the_same_each_time() -> None:
    w = torch.zeros(40, 40)
    parts = Partials()
    _fill(parts.new(w, 77))
    assert torch.equal(*(parts.sum(w)[0] for _ in range(2)))


def test_launches() -> None:
    """One; two where there are very many partials, or weights of two dtypes."""
    weights = [torch.zeros(8, 4), torch.zeros(4), torch.zeros(4, dtype=torch.bfloat16)]
    for number, slots, expected in ((2, 3, 1), (2, MOST + 1, 2), (3, 3, 2)):
        parts = Partials()
        for w in weights[:number]:
            parts.new(w, slots)
        with recording(86) as launches:
            parts.sum(*weights[:number])
        assert len(launches) == expected


def test_what_is_not_covered_is_refused() -> None:
    w = torch.zeros(4, 3)
    parts = Partials()
    parts.new(w, 2, rows=(0, 2))
    with pytest.raises(ValueError, match=r"\[4, 3\]"):
        parts.sum(w)
