"""Weight gradients of a two-layer perceptron over (level, row) pairs, shared by two ops.

A program owns a chunk of the hidden dimension and every n-th tile of rows. It keeps the chunk's
weight gradients in registers, recomputes the hidden activations, and writes one float32 partial;
they are added in a fixed order (``_reduce``), so the result is the same from run to run.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import _heuristics
from ._jagged import token_of
from ._launch import Operands, architecture, launch, multiprocessors, padded_size
from ._product import product
from ._reduce import Partials
from .philox import box_muller, philox4

NO_NOISE, SEEDED, GIVEN = 0, 1, 2
DEPTH = 64  # dimensions of an operand of the weights kernel
SQRT_HALF = tl.constexpr(0.7071067811865476)
INV_SQRT_TWO_PI = tl.constexpr(0.3989422804014327)


@triton.jit
def activate(x, GELU: tl.constexpr):
    """SiLU, or the exact GELU."""
    if GELU:
        y = 0.5 * x * (1.0 + tl.erf(x * SQRT_HALF))
    else:
        y = x * tl.sigmoid(x)
    return y


@triton.jit
def activate_and_slope(x, GELU: tl.constexpr):
    """The activation and its derivative."""
    if GELU:
        half = 0.5 * (1.0 + tl.erf(x * SQRT_HALF))
        y = x * half
        slope = half + x * INV_SQRT_TWO_PI * tl.exp(-0.5 * x * x)
    else:
        s = tl.sigmoid(x)
        y = x * s
        slope = s + y * (1.0 - s)
    return y, slope


@triton.jit
def load_w1(w1_ptr, hidden, dims, H: tl.constexpr, D: tl.constexpr, OPERAND: tl.constexpr):
    """W1's rows ``hidden``, transposed: ``[D, chunk]``."""
    inside = (dims < D)[:, None] & (hidden < H)[None, :]
    at = hidden[None, :] * D + dims[:, None]
    return tl.load(w1_ptr + at, mask=inside, other=0.0).to(OPERAND)


@triton.jit
def load_w2(w2_ptr, hidden, dims, H: tl.constexpr, D: tl.constexpr, OPERAND: tl.constexpr):
    """W2's columns ``hidden``: ``[D, chunk]``."""
    inside = (dims < D)[:, None] & (hidden < H)[None, :]
    at = dims[:, None] * H + hidden[None, :]
    return tl.load(w2_ptr + at, mask=inside, other=0.0).to(OPERAND)


@triton.jit
def hidden_before(x, w1, bias_ptr, hidden, H: tl.constexpr, PRECISION: tl.constexpr):
    """W1 x + b1 of a chunk, float32 ``[rows, chunk]``."""
    bias = tl.load(bias_ptr + hidden, mask=hidden < H, other=0.0).to(tl.float32)
    return product(x, w1, PRECISION) + bias[None, :]


@triton.jit
def perceptron(x, b2, w1_ptr, b1_ptr, w2_ptr, dims, H: tl.constexpr, D: tl.constexpr,
               CHUNK: tl.constexpr, PRECISION: tl.constexpr):
    """W2 GELU(W1 x + b1) + b2, the hidden dimension in chunks."""
    y = tl.zeros(x.shape, tl.float32) + b2[None, :]
    for start in range(0, H, CHUNK):
        hidden = start + tl.arange(0, CHUNK)
        w1 = load_w1(w1_ptr, hidden, dims, H, D, x.dtype)
        before = hidden_before(x, w1, b1_ptr, hidden, H, PRECISION)
        w2 = load_w2(w2_ptr, hidden, dims, H, D, x.dtype)
        y += product(activate(before, True).to(x.dtype), tl.trans(w2), PRECISION)
    return y


@triton.jit
def normalise(y, inside, eps, D: tl.constexpr):
    """LayerNorm without its affine part, and 1 / sigma of each row."""
    mean = tl.sum(y, 1) / D
    centred = tl.where(inside, y - mean[:, None], 0.0)
    # In error 2^-22.9, and one instruction; a root and a division, as compiled, are 2^-21.4.
    inverse = tl.rsqrt(tl.sum(centred * centred, 1) / D + eps)
    return centred * inverse[:, None], inverse


@triton.jit
def noise_pair(seed_ptr, noise_ptr, index, pair, plane_stride, reach, inside,
               D: tl.constexpr, NOISE: tl.constexpr):
    """Noise of the level coordinates 2 * pair and 2 * pair + 1, float32.

    Two levels at a time: the words of all four lanes would stay in registers over four rounds of
    matrix products, and spill at D >= 128.
    """
    if NOISE == 1:
        w0, w1, w2, w3 = philox4(seed_ptr, index, 0, pair // 2, D)
        first = pair % 2 == 0
        even, odd = box_muller(tl.where(first, w0, w2), tl.where(first, w1, w3))
    else:
        at = noise_ptr + plane_stride * (2 * pair) + index
        even = tl.load(at, mask=(reach > 2 * pair)[:, None] & inside, other=0.0).to(tl.float32)
        at += plane_stride
        odd = tl.load(at, mask=(reach > 2 * pair + 1)[:, None] & inside, other=0.0).to(tl.float32)
    return even, odd


@triton.jit(do_not_specialize=["rows", "tokens", "planes"])
def _weights_kernel(
    x_ptr, grad_ptr, reach_ptr, offsets_ptr, w1_ptr, bias_ptr, w2_ptr,
    d_w1_ptr, d_bias_ptr, d_w2_ptr, d_b2_ptr, rows, tokens, planes,
    D: tl.constexpr, H: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, DEPTH: tl.constexpr, GELU: tl.constexpr, LAST: tl.constexpr,
    BIAS_STRIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    slot = tl.program_id(0)
    slots = tl.num_programs(0)
    hidden = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    dims = tl.arange(0, BLOCK_D)
    inside = (dims < D)[None, :]
    d_w1 = tl.zeros((CHUNK, BLOCK_D), tl.float32)
    d_w2 = tl.zeros((CHUNK, BLOCK_D), tl.float32)
    d_b2 = tl.zeros((BLOCK_D,), tl.float32)
    d_bias = tl.zeros((CHUNK,), tl.float32)
    row_stride = rows.to(tl.int64) * D
    token_stride = tokens.to(tl.int64) * D
    for plane in range(0, planes):
        for tile in range(slot, tl.cdiv(rows, ROWS), slots):
            row = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
            reach = tl.load(reach_ptr + row, mask=row < rows, other=0)
            if tl.max(reach) > plane:
                mask = (reach > plane)[:, None] & inside
                token = token_of(row, reach > 0, offsets_ptr, LAST)
                at_x = x_ptr + token_stride * plane + token[:, None] * D
                at_grad = grad_ptr + row_stride * plane + row[:, None] * D
                if DEPTH < BLOCK_D:
                    # Held whole, both products' operands spill.
                    bias = tl.load(bias_ptr + plane * BIAS_STRIDE + hidden, mask=hidden < H,
                                   other=0.0).to(tl.float32)
                    before = tl.zeros((ROWS, CHUNK), tl.float32) + bias[None, :]
                    d_after = tl.zeros((ROWS, CHUNK), tl.float32)
                    for start in range(0, D, DEPTH):
                        part = start + tl.arange(0, DEPTH)
                        there = (reach > plane)[:, None] & (part < D)[None, :]
                        x = tl.load(at_x + part[None, :], mask=there, other=0.0).to(OPERAND)
                        w1 = load_w1(w1_ptr, hidden, part, H, D, OPERAND)
                        before += product(x, w1, PRECISION)
                        grad = tl.load(at_grad + part[None, :], mask=there, other=0.0)
                        w2 = load_w2(w2_ptr, hidden, part, H, D, OPERAND)
                        d_after += product(grad, w2, PRECISION)
                x = tl.load(at_x + dims[None, :], mask=mask, other=0.0).to(OPERAND)
                grad = tl.load(at_grad + dims[None, :], mask=mask, other=0.0)
                if DEPTH >= BLOCK_D:
                    # Weights come anew from L1: held in registers over the loops, they spill.
                    w1 = load_w1(w1_ptr, hidden, dims, H, D, OPERAND)
                    bias_row = bias_ptr + plane * BIAS_STRIDE
                    before = hidden_before(x, w1, bias_row, hidden, H, PRECISION)
                    w2 = load_w2(w2_ptr, hidden, dims, H, D, OPERAND)
                    d_after = product(grad, w2, PRECISION)
                after, slope = activate_and_slope(before, GELU)
                d_before = d_after * slope
                d_bias += tl.sum(d_before, 0)
                d_b2 += tl.sum(grad.to(tl.float32), 0)
                d_w1 += product(tl.trans(d_before.to(OPERAND)), x, PRECISION)
                d_w2 += product(tl.trans(after.to(OPERAND)), grad, PRECISION)
        if BIAS_STRIDE != 0:
            at = d_bias_ptr + (slot.to(tl.int64) * planes + plane) * H + hidden
            tl.store(at, d_bias, mask=hidden < H)
            d_bias = tl.zeros((CHUNK,), tl.float32)
    if BIAS_STRIDE == 0:
        tl.store(d_bias_ptr + slot.to(tl.int64) * H + hidden, d_bias, mask=hidden < H)
    at = slot.to(tl.int64) * H * D + hidden[:, None] * D + dims[None, :]
    mask = (hidden < H)[:, None] & inside
    tl.store(d_w1_ptr + at, d_w1, mask=mask)
    tl.store(d_w2_ptr + at, d_w2, mask=mask)
    if tl.program_id(1) == 0:
        tl.store(d_b2_ptr + slot * D + dims, d_b2, mask=dims < D)


def weight_gradients(
    x: Tensor,
    grad: Tensor,
    reach: Tensor,
    offsets: Tensor,
    w1: Tensor,
    bias: Tensor,
    w2: Tensor,
    b2: Tensor,
    ops: Operands,
    parts: Partials,
    *,
    gelu: bool,
    last_only: bool = False,
) -> None:
    """Leave partials of W1's, b1's (a level), W2's and b2's gradients, given that of the output.

    Args:
        x: ``[planes, N, D]``, the perceptron's inputs.
        grad: ``[planes, R, D]`` in the operands' dtype; unreached planes are not read.
        reach: int32 ``[R]``, how many planes exist for a row.
        offsets: int64 ``[B+1]``, read only if ``last_only``.
        w1, bias, w2, b2: ``[H, D]``; ``[planes, H]`` or ``[H]``; ``[D, H]``; ``[D]``.
        ops: precision of the products.
        parts: where the partials go.
        gelu: the activation, GELU or SiLU.
        last_only: a row is the last token of a sequence; else R = N.
    """
    planes, rows, size = grad.shape
    hidden = w1.shape[0]
    block = padded_size(size)
    tile = _heuristics.tile("mlp_weights", block, ops.kind, architecture(grad.device), rows)
    chunks = triton.cdiv(hidden, tile.chunk)
    slots = min(
        max(1, triton.cdiv(rows, tile.rows)),
        max(2, triton.cdiv(multiprocessors(grad.device), chunks)),
    )
    arguments = {
        "x_ptr": x, "grad_ptr": grad, "reach_ptr": reach, "offsets_ptr": offsets,
        "w1_ptr": w1, "bias_ptr": bias, "w2_ptr": w2,
        "d_w1_ptr": parts.new(w1, slots), "d_bias_ptr": parts.new(bias, slots),
        # W2's gradient is made transposed, as W1's is: both products then have the same shape.
        "d_w2_ptr": parts.new(w2, slots, transposed=True), "d_b2_ptr": parts.new(b2, slots),
        "rows": rows, "tokens": x.shape[1], "planes": planes,
        "D": size, "H": hidden, "BLOCK_D": block, "ROWS": tile.rows, "CHUNK": tile.chunk,
        "DEPTH": min(block, DEPTH), "GELU": gelu, "LAST": last_only,
        "BIAS_STRIDE": hidden if bias.dim() == 2 else 0,
        "OPERAND": ops.dtype, "PRECISION": ops.precision,
    }
    launch(_weights_kernel, (slots, chunks), arguments, tile.options)


def noise_mode(seed: Tensor | None, noise: Tensor | None) -> int:
    """NO_NOISE, SEEDED or GIVEN; explicit noise is preferred."""
    if noise is not None:
        return GIVEN
    return NO_NOISE if seed is None else SEEDED
