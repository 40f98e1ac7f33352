"""TF32 as the kernels compute it, interpreted; run by test_triton_interpreter.py."""

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

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from adarec_fast.kernels._product import product, rounded  # noqa: E402

ROWS, DEPTH, COLUMNS = 32, 64, 16
EPS = torch.finfo(torch.float32).eps


@triton.jit
def _rounded_kernel(x_ptr, y_ptr, COUNT: tl.constexpr, PRECISION: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(y_ptr + at, rounded(tl.load(x_ptr + at), PRECISION))


@triton.jit
def _product_kernel(a_ptr, b_ptr, c_ptr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
                    COLUMNS: tl.constexpr, PRECISION: tl.constexpr):
    row, inner, column = tl.arange(0, ROWS), tl.arange(0, DEPTH), tl.arange(0, COLUMNS)
    a = tl.load(a_ptr + row[:, None] * DEPTH + inner[None, :])
    b = tl.load(b_ptr + inner[:, None] * COLUMNS + column[None, :])
    tl.store(c_ptr + row[:, None] * COLUMNS + column[None, :], product(a, b, PRECISION))


def _round(x: Tensor, precision: str = "tf32") -> Tensor:
    y = torch.empty_like(x)
    _rounded_kernel[(1,)](x, y, COUNT=x.numel(), PRECISION=precision)
    return y


def _nearest(x: Tensor) -> Tensor:
    """To a multiple of the last of 11 bits, ties away from zero, in float64."""
    mantissa, exponent = torch.frexp(x.double())
    scaled = mantissa * 2**11
    whole = torch.where(scaled >= 0, (scaled + 0.5).floor(), (scaled - 0.5).ceil())
    return torch.ldexp(whole, exponent - 11)


def test_operands_are_rounded_to_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, generator=generator) * 10.0 ** torch.randint(
        -6, 7, (4096,), generator=generator
    )
    x[:6] = torch.tensor([0.0, 1.0, 1 + 2.0**-11, -1 - 2.0**-11, 1 + 2.0**-10, 2 - 2.0**-12])
    assert torch.equal(_round(x).double(), _nearest(x))
    assert torch.equal(_round(_round(x)), _round(x))


def test_what_is_no_number_stays() -> None:
    bits = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000, 0x7F800001], dtype=torch.int32)
    assert bool(_round(bits.view(torch.float32)).isnan().all())
    most = torch.finfo(torch.float32).max
    infinite = torch.tensor([float("inf"), float("-inf")])
    assert torch.equal(_round(infinite), infinite)
    # There is none beside the greatest that is nearer than infinity.
    assert torch.equal(_round(torch.tensor([most, -most])), infinite)


@pytest.mark.parametrize("precision", ["ieee", "upcast"])
def test_other_precisions_leave_them_alone(precision: str) -> None:
    x = torch.randn(64)
    assert torch.equal(_round(x, precision), x)


def test_a_product_is_that_of_rounded_operands() -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(ROWS, DEPTH, generator=generator)
    b = torch.randn(DEPTH, COLUMNS, generator=generator)
    c = torch.empty(ROWS, COLUMNS)
    _product_kernel[(1,)](a, b, c, ROWS=ROWS, DEPTH=DEPTH, COLUMNS=COLUMNS, PRECISION="tf32")
    left, right = _nearest(a), _nearest(b)
    bound = DEPTH * EPS * (left.abs() @ right.abs())
    assert bool(((c.double() - left @ right).abs() <= bound).all())
    # And not that of the operands as they are.
    assert float((c.double() - a.double() @ b.double()).abs().max()) > 10 * float(bound.max())


def test_the_error_has_no_bias() -> None:
    """Of positive operands all errors of a cut would have one sign, and add up to 2^-11 each."""
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.rand(*s, generator=generator) for s in ((ROWS, DEPTH), (DEPTH, COLUMNS)))
    c = torch.empty(ROWS, COLUMNS)
    _product_kernel[(1,)](a, b, c, ROWS=ROWS, DEPTH=DEPTH, COLUMNS=COLUMNS, PRECISION="tf32")
    exact = a.double() @ b.double()
    relative = (c.double() - exact) / exact
    assert abs(float(relative.mean())) < 2.0**-15
    # Of 512 sums of 64 products, with 2^-12 / sqrt(3) each and operand.
    assert float(relative.std()) < 2.0**-12
