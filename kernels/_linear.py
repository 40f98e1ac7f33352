"""A linear layer over (level, row) pairs of ragged depth, and the gradient of its input.

Rows are tokens or sequences. Weights are ``[out, in]`` with ``in`` = D, and out is taken in chunks,
so that its size does not matter. Rows that do not exist at a level are neither read nor written.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _heuristics
from ._launch import Operands, architecture, launch, padded_size
from ._layout import Layout, asked, lay_out, layout
from ._mlp import hidden_before, load_w1
from ._product import product


@triton.jit(do_not_specialize=["rows", "batch", "steps", "planes"])
def _linear_kernel(
    x_ptr, w_ptr, bias_ptr, offsets_ptr, depth_ptr, sequence_ptr, reach_ptr, y_ptr,
    rows, batch, steps, planes,
    D: tl.constexpr, OUT: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, LAYOUT: tl.constexpr, HAS_DEPTH: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    level = tl.program_id(1).to(tl.int64)
    if LAYOUT:
        reach = lay_out(row, row < rows, offsets_ptr, depth_ptr, sequence_ptr, reach_ptr, rows,
                        batch, steps, planes, HAS_DEPTH)
    else:
        reach = tl.load(reach_ptr + row, mask=row < rows, other=0)
    exists = reach > level
    if tl.max(exists.to(tl.int32)) == 0:
        return
    dims = tl.arange(0, BLOCK_D)
    at_row = (level * rows + row)[:, None]
    mask = exists[:, None] & (dims < D)[None, :]
    x = tl.load(x_ptr + at_row * D + dims[None, :], mask=mask, other=0.0).to(OPERAND)
    for start in range(0, OUT, CHUNK):
        out = start + tl.arange(0, CHUNK)
        w = load_w1(w_ptr, out, dims, OUT, D, OPERAND)
        y = hidden_before(x, w, bias_ptr, out, OUT, PRECISION)
        tl.store(y_ptr + at_row * OUT + out[None, :], y,
                 mask=exists[:, None] & (out < OUT)[None, :])


@triton.jit(do_not_specialize=["rows"])
def _linear_backward_kernel(
    grad_ptr, residual_ptr, w_ptr, reach_ptr, d_x_ptr, rows,
    D: tl.constexpr, OUT: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    level = tl.program_id(1).to(tl.int64)
    exists = tl.load(reach_ptr + row, mask=row < rows, other=0) > level
    if tl.max(exists.to(tl.int32)) == 0:
        return
    dims = tl.arange(0, BLOCK_D)
    mask = exists[:, None] & (dims < D)[None, :]
    at_row = (level * rows + row)[:, None]
    d_x = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(0, OUT, CHUNK):
        out = start + tl.arange(0, CHUNK)
        grad = tl.load(grad_ptr + at_row * OUT + out[None, :],
                       mask=exists[:, None] & (out < OUT)[None, :], other=0.0)
        w = load_w1(w_ptr, out, dims, OUT, D, OPERAND)
        d_x += product(grad.to(OPERAND), tl.trans(w), PRECISION)
    at = at_row * D + dims[None, :]
    d_x += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(d_x_ptr + at, d_x, mask=mask)


def _common(
    kernel: str, size: int, rows: int, device: torch.device, ops: Operands, out: int
) -> tuple[dict[str, Any], _heuristics.Tile]:
    block = padded_size(size)
    tile = _heuristics.tile(kernel, block, ops.kind, architecture(device), rows)
    return {
        "rows": rows, "D": size, "OUT": out, "BLOCK_D": block,
        "ROWS": tile.rows, "CHUNK": tile.chunk, "OPERAND": ops.dtype, "PRECISION": ops.precision,
    }, tile


def linear(
    x: Tensor, w: Tensor, bias: Tensor, offsets: Tensor, depth: Tensor | None, ops: Operands
) -> tuple[Tensor, Layout]:
    """``x W^T + b``: ``[K, N, out]`` in the operands' dtype; and the layout of the tokens.

    Of a single level the kernel lays out its own tokens; of several levels its programs would do
    that again and again, so there a launch before it does.

    Args:
        x: ``[K, N, D]``.
        w, bias: ``[out, D]`` and ``[out]``.
        offsets, depth: int64 ``[B+1]``, and ``[B]`` or None.
        ops: precision of the product.
    """
    planes, tokens, size = x.shape
    arguments, tile = _common("linear", size, tokens, x.device, ops, w.shape[0])
    where, laid_out = asked(x, offsets, depth)
    if planes > 1:
        where = layout(x, offsets, depth)
        laid_out |= {"sequence_ptr": where.sequence, "reach_ptr": where.reach}
    y = x.new_empty(planes, tokens, w.shape[0], dtype=ops.torch_dtype)
    arguments |= {
        "x_ptr": x, "w_ptr": w, "bias_ptr": bias, "y_ptr": y, "LAYOUT": planes == 1, **laid_out,
    }
    launch(_linear_kernel, (triton.cdiv(tokens, tile.rows), planes), arguments, tile.options)
    return y, where


def linear_backward(
    grad: Tensor, residual: Tensor, w: Tensor, reach: Tensor, ops: Operands
) -> Tensor:
    """``grad W + residual``, like ``residual [K, R, D]``; ``grad [K, R, out]``."""
    planes, rows, size = residual.shape
    arguments, tile = _common("linear_backward", size, rows, grad.device, ops, w.shape[0])
    d_x = torch.empty_like(residual)
    arguments |= {
        "grad_ptr": grad, "residual_ptr": residual, "w_ptr": w, "reach_ptr": reach, "d_x_ptr": d_x,
    }
    grid = (triton.cdiv(rows, tile.rows), planes)
    launch(_linear_backward_kernel, grid, arguments, tile.options)
    return d_x
