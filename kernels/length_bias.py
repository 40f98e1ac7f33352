"""``length_bias`` in Triton: an MLP of a sequence's length, one launch each way and a sum (Eq. 1).

The first layer has one input, so its activations cost less to make than to read: v alone is kept
for backward, whose programs own a chunk of the weights' rows and every n-th tile of sequences.

Bound by launches: 17 MFLOP forward at B = 256 and D = 64, 0.5 GFLOP at B = 8,192, which are 8 to 25
us of an RTX 3090 and 1 to 8 us of an H100, TF32 to IEEE; backward three times that.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import _heuristics
from ._gru_scan import columns_of, load, rows_of
from ._launch import architecture, launch, multiprocessors, operands, padded_size
from ._mlp import activate, activate_and_slope
from ._product import product
from ._reduce import Partials


@triton.jit
def _before(offsets_ptr, w1_ptr, b1_ptr, row, dims, batch, longest, D: tl.constexpr):
    """Each row's length / max_length, and what SiLU is taken of ``[rows, dims]``."""
    there, inside = row < batch, dims < D
    begin = tl.load(offsets_ptr + row, mask=there, other=0)
    end = tl.load(offsets_ptr + row + 1, mask=there, other=0)
    share = (end - begin).to(tl.float32) / longest
    w1 = load(w1_ptr, dims, inside, tl.float32)[None, :]
    return share, share[:, None] * w1 + load(b1_ptr, dims, inside, tl.float32)[None, :]


@triton.jit(do_not_specialize=["batch", "longest"])
def _length_bias_kernel(
    offsets_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, w_v_ptr, b_ih_ptr, bias_ptr, v_ptr, batch,
    longest,
    D: tl.constexpr, M: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    """Axis 1 has the M outputs, BLOCK_D at a time."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = (row < batch)[:, None]
    dims = tl.arange(0, BLOCK_D)
    outputs = tl.program_id(1) * BLOCK_D + dims
    _, before = _before(offsets_ptr, w1_ptr, b1_ptr, row, dims, batch, longest, D)
    hidden = activate(before, False).to(OPERAND)
    bias = tl.zeros((ROWS, BLOCK_D), tl.float32)
    bias += load(b_ih_ptr, outputs, outputs < M, tl.float32)[None, :]
    for start in range(0, D, CHUNK):
        part = start + tl.arange(0, CHUNK)
        v = product(hidden, columns_of(w2_ptr, 0, part, dims, D, D, OPERAND), PRECISION)
        v += load(b2_ptr, part, part < D, tl.float32)[None, :]
        if tl.program_id(1) == 0:
            tl.store(v_ptr + row[:, None] * D + part[None, :], v, mask=there & (part < D)[None, :])
        w_v = columns_of(w_v_ptr, 0, outputs, part, M, D, OPERAND)
        bias += product(v.to(OPERAND), w_v, PRECISION)
    mask = there & (outputs < M)[None, :]
    tl.store(bias_ptr + row[:, None] * M + outputs[None, :], bias, mask=mask)


@triton.jit(do_not_specialize=["batch", "longest"])
def _length_bias_backward_kernel(
    grad_ptr, v_ptr, offsets_ptr, w1_ptr, b1_ptr, w2_ptr, w_v_ptr, d_w1_ptr, d_b1_ptr, d_w2_ptr,
    d_b2_ptr, d_w_v_ptr, d_b_ih_ptr, batch, longest,
    D: tl.constexpr, M: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    """Partials: axis 0 shares the sequences, axis 1 has chunks of W_v's rows and then of W2's.

    The gradient of v in a chunk of W2's rows gives that chunk's part of what reaches the first
    layer, whose partials are therefore one a program of those.
    """
    slot, slots = tl.program_id(0), tl.num_programs(0)
    outputs = tl.cdiv(M, CHUNK)
    dims = tl.arange(0, BLOCK_D)
    inside = (dims < D)[None, :]
    d_w = tl.zeros((CHUNK, BLOCK_D), tl.float32)
    d_b = tl.zeros((CHUNK,), tl.float32)
    if tl.program_id(1) < outputs:
        part = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
        for tile in range(slot, tl.cdiv(batch, ROWS), slots):
            row = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
            there = (row < batch)[:, None]
            at = row[:, None] * M + part[None, :]
            grad = load(grad_ptr, at, there & (part < M)[None, :], tl.float32)
            v = load(v_ptr, row[:, None] * D + dims[None, :], there & inside, OPERAND)
            d_b += tl.sum(grad, 0)
            d_w += product(tl.trans(grad.to(OPERAND)), v, PRECISION)
        at = slot.to(tl.int64) * M + part
        tl.store(d_b_ih_ptr + at, d_b, mask=part < M)
        at = at[:, None] * D + dims[None, :]
        tl.store(d_w_v_ptr + at, d_w, mask=(part < M)[:, None] & inside)
    else:
        chunk = tl.program_id(1) - outputs
        part = chunk * CHUNK + tl.arange(0, CHUNK)
        w2 = rows_of(w2_ptr, 0, part, dims, D, D, OPERAND)
        d_w1 = tl.zeros((BLOCK_D,), tl.float32)
        d_b1 = tl.zeros((BLOCK_D,), tl.float32)
        for tile in range(slot, tl.cdiv(batch, ROWS), slots):
            row = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
            d_v = tl.zeros((ROWS, CHUNK), tl.float32)
            for start in range(0, M, CHUNK):
                out = start + tl.arange(0, CHUNK)
                mask = (row < batch)[:, None] & (out < M)[None, :]
                grad = load(grad_ptr, row[:, None] * M + out[None, :], mask, OPERAND)
                d_v += product(grad, rows_of(w_v_ptr, 0, out, part, M, D, OPERAND), PRECISION)
            share, before = _before(offsets_ptr, w1_ptr, b1_ptr, row, dims, batch, longest, D)
            hidden, slope = activate_and_slope(before, False)
            d_b += tl.sum(d_v, 0)
            d_v = d_v.to(OPERAND)
            d_w += product(tl.trans(d_v), hidden.to(OPERAND), PRECISION)
            d_before = product(d_v, w2, PRECISION) * slope
            d_b1 += tl.sum(d_before, 0)
            d_w1 += tl.sum(d_before * share[:, None], 0)
        at = slot.to(tl.int64) * D + part
        tl.store(d_b2_ptr + at, d_b, mask=part < D)
        at = at[:, None] * D + dims[None, :]
        tl.store(d_w2_ptr + at, d_w, mask=(part < D)[:, None] & inside)
        first = (slot.to(tl.int64) * tl.cdiv(D, CHUNK) + chunk) * D + dims
        tl.store(d_w1_ptr + first, d_w1, mask=dims < D)
        tl.store(d_b1_ptr + first, d_b1, mask=dims < D)


def fwd(
    offsets: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w_v: Tensor, b_ih: Tensor,
    max_length: int,
) -> tuple[Tensor, Tensor]:
    """``length_bias_fwd`` of the op's schema: the bias ``[B, M]`` and v ``[B, D]``."""
    ops, batch, (outputs, size) = operands(w1), offsets.shape[0] - 1, w_v.shape
    block = padded_size(size)
    tile = _heuristics.tile("length_bias", block, ops.kind, architecture(w1.device), batch)
    bias, v = w1.new_empty(batch, outputs), w1.new_empty(batch, size)
    arguments = {
        "offsets_ptr": offsets.contiguous(), "w1_ptr": w1.contiguous(), "b1_ptr": b1,
        "w2_ptr": w2.contiguous(), "b2_ptr": b2, "w_v_ptr": w_v.contiguous(), "b_ih_ptr": b_ih,
        "bias_ptr": bias, "v_ptr": v, "batch": batch, "longest": float(max_length),
        "D": size, "M": outputs, "BLOCK_D": block, "ROWS": tile.rows, "CHUNK": tile.chunk,
        "OPERAND": ops.dtype, "PRECISION": ops.precision,
    }
    grid = triton.cdiv(batch, tile.rows), triton.cdiv(outputs, block)
    launch(_length_bias_kernel, grid, arguments, tile.options)
    return bias, v


def bwd(
    grad_bias: Tensor, v: Tensor, offsets: Tensor, w1: Tensor, b1: Tensor, w2: Tensor,
    b2: Tensor, w_v: Tensor, b_ih: Tensor, max_length: int,
) -> tuple[Tensor, ...]:
    """``length_bias_bwd``: gradients of the six weights, in their order."""
    ops, batch, (outputs, size) = operands(w1), offsets.shape[0] - 1, w_v.shape
    block = padded_size(size)
    tile = _heuristics.tile(
        "length_bias_backward", block, ops.kind, architecture(w1.device), batch
    )
    chunks = triton.cdiv(size, tile.chunk)
    parts = triton.cdiv(outputs, tile.chunk) + chunks
    slots = min(
        max(1, triton.cdiv(batch, tile.rows)),
        max(2, triton.cdiv(multiprocessors(w1.device), parts)),
    )
    weights = {"w1": w1, "b1": b1, "w2": w2, "b2": b2, "w_v": w_v, "b_ih": b_ih}
    partials = Partials()
    found = {
        f"d_{name}_ptr": partials.new(w, slots * chunks if name in ("w1", "b1") else slots)
        for name, w in weights.items()
    }
    arguments = {
        "grad_ptr": grad_bias, "v_ptr": v, "offsets_ptr": offsets.contiguous(),
        "w1_ptr": w1.contiguous(), "b1_ptr": b1, "w2_ptr": w2.contiguous(),
        "w_v_ptr": w_v.contiguous(), **found,
        "batch": batch, "longest": float(max_length), "D": size, "M": outputs, "BLOCK_D": block,
        "ROWS": tile.rows, "CHUNK": tile.chunk, "OPERAND": ops.dtype, "PRECISION": ops.precision,
    }
    launch(_length_bias_backward_kernel, (slots, parts), arguments, tile.options)
    return partials.sum(*weights.values())
