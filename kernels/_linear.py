"""A linear layer over (level, row) pairs of ragged depth: forward and both of its gradients.

Rows are tokens, or the last tokens of sequences (LAST). Weights are ``[out, in]`` with ``in`` = D,
and out is taken in chunks, so that its size does not matter. Rows that do not exist at a level are
neither read nor written.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _heuristics
from ._jagged import token_of
from ._launch import Operands, architecture, launch, multiprocessors, padded_size
from ._mlp import hidden_before, load_w1
from ._product import product


@triton.jit(do_not_specialize=["rows", "tokens"])
def _linear_kernel(
    x_ptr, w_ptr, bias_ptr, offsets_ptr, reach_ptr, y_ptr, rows, tokens,
    D: tl.constexpr, OUT: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, LAST: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    level = tl.program_id(1).to(tl.int64)
    exists = tl.load(reach_ptr + row, mask=row < rows, other=0) > level
    if tl.max(exists.to(tl.int32)) == 0:
        return
    dims = tl.arange(0, BLOCK_D)
    token = token_of(row, exists, offsets_ptr, LAST)
    at_x = (level * tokens + token)[:, None] * D + dims[None, :]
    x = tl.load(x_ptr + at_x, mask=exists[:, None] & (dims < D)[None, :], other=0.0).to(OPERAND)
    for start in range(0, OUT, CHUNK):
        out = start + tl.arange(0, CHUNK)
        w = load_w1(w_ptr, out, dims, OUT, D, OPERAND)
        y = hidden_before(x, w, bias_ptr, out, OUT, PRECISION)
        at_y = (level * rows + row)[:, None] * OUT + out[None, :]
        tl.store(y_ptr + at_y, y, mask=exists[:, None] & (out < OUT)[None, :])


@triton.jit(do_not_specialize=["rows", "tokens"])
def _linear_backward_kernel(
    grad_ptr, residual_ptr, w_ptr, offsets_ptr, reach_ptr, d_x_ptr, rows, tokens,
    D: tl.constexpr, OUT: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, LAST: tl.constexpr, ADD: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    level = tl.program_id(1).to(tl.int64)
    exists = tl.load(reach_ptr + row, mask=row < rows, other=0) > level
    if tl.max(exists.to(tl.int32)) == 0:
        return
    dims = tl.arange(0, BLOCK_D)
    mask = exists[:, None] & (dims < D)[None, :]
    d_x = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(0, OUT, CHUNK):
        out = start + tl.arange(0, CHUNK)
        at = (level * rows + row)[:, None] * OUT + out[None, :]
        grad = tl.load(grad_ptr + at, mask=exists[:, None] & (out < OUT)[None, :], other=0.0)
        w = load_w1(w_ptr, out, dims, OUT, D, OPERAND)
        d_x += product(grad.to(OPERAND), tl.trans(w), PRECISION)
    token = token_of(row, exists, offsets_ptr, LAST)
    at_x = (level * tokens + token)[:, None] * D + dims[None, :]
    if residual_ptr is not None:
        at = (level * rows + row)[:, None] * D + dims[None, :]
        d_x += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        d_x += tl.load(d_x_ptr + at_x, mask=mask, other=0.0).to(tl.float32)
    tl.store(d_x_ptr + at_x, d_x, mask=mask)


@triton.jit(do_not_specialize=["rows", "tokens", "planes"])
def _linear_weights_kernel(
    x_ptr, grad_ptr, offsets_ptr, reach_ptr, d_w_ptr, d_bias_ptr, rows, tokens, planes,
    D: tl.constexpr, OUT: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, LAST: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    slot = tl.program_id(0)
    slots = tl.num_programs(0)
    out = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    dims = tl.arange(0, BLOCK_D)
    d_w = tl.zeros((CHUNK, BLOCK_D), tl.float32)
    d_bias = tl.zeros((CHUNK,), tl.float32)
    tiles = tl.cdiv(rows, ROWS)
    for item in range(slot, tiles * planes, slots):
        level = (item // tiles).to(tl.int64)
        row = (item % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        exists = tl.load(reach_ptr + row, mask=row < rows, other=0) > level
        if tl.max(exists.to(tl.int32)) > 0:
            token = token_of(row, exists, offsets_ptr, LAST)
            at_x = (level * tokens + token)[:, None] * D + dims[None, :]
            inside = exists[:, None] & (dims < D)[None, :]
            x = tl.load(x_ptr + at_x, mask=inside, other=0.0).to(OPERAND)
            at = (level * rows + row)[:, None] * OUT + out[None, :]
            grad = tl.load(grad_ptr + at, mask=exists[:, None] & (out < OUT)[None, :], other=0.0)
            d_bias += tl.sum(grad.to(tl.float32), 0)
            d_w += product(tl.trans(grad.to(OPERAND)), x, PRECISION)
    at = (slot.to(tl.int64) * OUT + out)[:, None] * D + dims[None, :]
    tl.store(d_w_ptr + at, d_w, mask=(out < OUT)[:, None] & (dims < D)[None, :])
    tl.store(d_bias_ptr + slot.to(tl.int64) * OUT + out, d_bias, mask=out < OUT)


def _common(
    kernel: str, x: Tensor, offsets: Tensor, reach: Tensor, ops: Operands, out: int,
    last_only: bool,
) -> tuple[dict[str, Any], _heuristics.Tile]:
    size = x.shape[2]
    block = padded_size(size)
    tile = _heuristics.tile(kernel, block, ops.kind, architecture(x.device), reach.shape[0])
    return {
        "offsets_ptr": offsets, "reach_ptr": reach, "rows": reach.shape[0], "tokens": x.shape[1],
        "D": size, "OUT": out, "BLOCK_D": block, "ROWS": tile.rows, "CHUNK": tile.chunk,
        "LAST": last_only, "OPERAND": ops.dtype, "PRECISION": ops.precision,
    }, tile


def linear(
    x: Tensor, w: Tensor, bias: Tensor, offsets: Tensor, reach: Tensor, ops: Operands, *,
    last_only: bool = False,
) -> Tensor:
    """``x W^T + b``: ``[K, R, out]`` in the operands' dtype.

    Args:
        x: ``[K, N, D]``.
        w, bias: ``[out, D]`` and ``[out]``.
        offsets: int64 ``[B+1]``, read only if ``last_only``.
        reach: int32 ``[R]``, how many levels exist for a row.
        ops: precision of the product.
        last_only: rows are sequences, each with its last token; else R = N.
    """
    arguments, tile = _common("linear", x, offsets, reach, ops, w.shape[0], last_only)
    rows = reach.shape[0]
    y = x.new_empty(x.shape[0], rows, w.shape[0], dtype=ops.torch_dtype)
    arguments |= {"x_ptr": x, "w_ptr": w, "bias_ptr": bias, "y_ptr": y}
    launch(_linear_kernel, (triton.cdiv(rows, tile.rows), x.shape[0]), arguments, tile.options)
    return y


def linear_backward(
    grad: Tensor, residual: Tensor | None, w: Tensor, d_x: Tensor, offsets: Tensor,
    reach: Tensor, ops: Operands, *, last_only: bool = False, add: bool = False,
) -> None:
    """Write ``grad W + residual`` to ``d_x [K, N, D]``, or add it; ``residual [K, R, D]``."""
    arguments, tile = _common(
        "linear_backward", d_x, offsets, reach, ops, w.shape[0], last_only
    )
    arguments |= {
        "grad_ptr": grad, "residual_ptr": residual, "w_ptr": w, "d_x_ptr": d_x, "ADD": add,
    }
    grid = (triton.cdiv(reach.shape[0], tile.rows), d_x.shape[0])
    launch(_linear_backward_kernel, grid, arguments, tile.options)


def linear_weights(
    x: Tensor, grad: Tensor, offsets: Tensor, reach: Tensor, ops: Operands, *,
    last_only: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradients of w and bias, float32, given ``grad [K, R, out]``; summed in a fixed order."""
    planes, rows, out = grad.shape
    arguments, tile = _common("linear_weights", x, offsets, reach, ops, out, last_only)
    chunks = triton.cdiv(out, tile.chunk)
    slots = min(
        max(1, triton.cdiv(rows, tile.rows) * planes),
        max(2, triton.cdiv(2 * multiprocessors(x.device), chunks)),
    )
    wide = {"dtype": torch.float32, "device": x.device}
    d_w = torch.empty(slots, out, x.shape[2], **wide)
    d_bias = torch.empty(slots, out, **wide)
    arguments |= {
        "x_ptr": x, "grad_ptr": grad, "d_w_ptr": d_w, "d_bias_ptr": d_bias, "planes": planes,
    }
    launch(_linear_weights_kernel, (slots, chunks), arguments, tile.options)
    return d_w.sum(0), d_bias.sum(0)
