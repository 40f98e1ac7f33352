"""The matrix product of all kernels, float32 accumulation."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """``a @ b`` in float32; PRECISION is tl.dot's, or "upcast".

    The interpreter has no bfloat16 product (it would multiply the bits), so there the operands,
    already rounded, are widened first. The compiler folds a sum around this into the accumulator.
    """
    if PRECISION == "upcast":
        result = tl.dot(a.to(tl.float32), b.to(tl.float32))
    else:
        result = tl.dot(a, b, input_precision=PRECISION)
    return result
