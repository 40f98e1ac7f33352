"""The matrix product of all kernels, float32 accumulation, and how TF32 operands are rounded.

Tensor cores cut a float32 operand to TF32's 11 bits: every product would be too small by 2^-11 of
itself on average, an error that sums do not average out. cuBLAS rounds to nearest, and so does
``product``. It costs two integer instructions an element (a comparison that spares NaN, and an
addition; the cut itself is the hardware's), one on sm_90, which has an instruction for it; ptxas
makes three of the instruction of sm_80, ``cvt.rna.tf32.f32``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._launch import INTERPRETED

# The interpreter multiplies all bits that it is given.
_KEPT = tl.constexpr(-0x2000 if INTERPRETED else -1)


@triton.jit
def rounded(x, PRECISION: tl.constexpr):
    """An operand as ``product`` takes it: to nearest in TF32, else as it is.

    Again, it changes nothing, so what a loop multiplies by again and again may be rounded before
    it. The compiler does so by itself where it sees that the operand stays the same.
    """
    if PRECISION == "tf32":
        bits = x.to(tl.int32, bitcast=True)
        bits = tl.add(bits, 0x1000, sanitize_overflow=False) & _KEPT
        # All of NaN's bits may be set: it would become a number.
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    if PRECISION == "tf32_rn":
        x = tl.inline_asm_elementwise(
            "cvt.rn.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return x


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """``a @ b`` in float32; PRECISION is tl.dot's, "tf32_rn", or "upcast".

    The interpreter has no bfloat16 product (it would multiply the bits), so there the operands,
    already rounded, are widened first. The compiler folds a sum around this into the accumulator.
    """
    if PRECISION == "upcast":
        result = tl.dot(a.to(tl.float32), b.to(tl.float32))
    elif PRECISION == "tf32" or PRECISION == "tf32_rn":
        result = tl.dot(
            rounded(a, PRECISION), rounded(b, PRECISION), input_precision="tf32"
        )
    else:
        result = tl.dot(a, b, input_precision=PRECISION)
    return result
