"""The interpreter with a GPU's arithmetic, as far as the PTX manual tells it.

Functions err as PTX allows its approximate instructions to (ISA 8.7, sections of ex2, lg2, rsqrt,
sqrt, div): within 2^-22 of the value, here by an amount that follows from the bits of the result.
Products add up one term after the other, as a chain of FMAs does. What passes the CUDA rule of
``helpers.assert_close_to_float64`` here is right, and as inaccurate as a GPU may make it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from triton.runtime import interpreter

_LOG2_E = np.float32(1.4426950408889634)


def off(x: Any, bits: int) -> Any:
    """Float32 values each off by up to 2^bits of themselves; other types as they are."""
    x = np.asarray(x)
    if x.dtype != np.float32:
        return x
    words = np.atleast_1d(x).view(np.uint32).astype(np.uint64)
    share = ((words * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)).astype(np.float64) / 2**24
    found = np.atleast_1d(x).astype(np.float64) * (1 + (2 * share - 1) * 2.0**bits)
    return found.astype(np.float32).reshape(x.shape)


def _fma_product(left: Any, right: Any, start: Any) -> Any:
    total = start.astype(np.float32).copy()
    for k in range(left.shape[-1]):
        total = total + left[..., :, k, None] * right[..., None, k, :]
    return total


def patch() -> None:
    """Replace the interpreter's functions for the rest of the process."""
    builder = interpreter.InterpreterBuilder

    def unary(function: Any, bits: int) -> Any:
        return lambda self, x: self.unary_op(x, lambda value: off(function(value), bits))

    # tl.exp is ex2.approx of a rounded product.
    builder.create_exp = unary(lambda v: np.exp2((v * _LOG2_E).astype(v.dtype)), -22)
    builder.create_exp2 = unary(np.exp2, -22)
    builder.create_log = unary(np.log, -22)
    builder.create_log2 = unary(np.log2, -22)
    builder.create_sqrt = unary(np.sqrt, -23)
    builder.create_rsqrt = unary(lambda v: (1 / np.sqrt(v)).astype(v.dtype), -22)
    builder.create_fdiv = lambda self, x, y: self.binary_op(
        x, y, lambda a, b: off(np.divide(a, b), -22)
    )
    plain = builder.create_dot

    def dot(self: Any, a: Any, b: Any, start: Any, *options: Any) -> Any:
        if a.data.dtype != np.float32 or b.data.dtype != np.float32:
            return plain(self, a, b, start, *options)
        found = _fma_product(a.data, b.data, start.data)
        return interpreter.TensorHandle(found, start.dtype.scalar)

    builder.create_dot = dot
