"""A linear layer over (level, row) pairs of ragged depth: forward and both of its gradients.

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
from ._jagged import token_of
from ._launch import Operands, architecture, launch, multiprocessors, padded_size
from ._mlp import hidden_before, load_w1
from ._product import product
from ._reduce import Partials


@triton.jit(do_not_specialize=["rows"])
def _linear_kernel(
    x_ptr, w_ptr, bias_ptr, reach_ptr, y_ptr, rows,
    D: tl.constexpr, OUT: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    level = tl.program_id(1).to(tl.int64)
    exists = tl.load(reach_ptr + row, mask=row < rows, other=0) > level
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


@triton.jit(do_not_specialize=["rows", "tokens", "planes"])
def _linear_weights_kernel(
    x_ptr, grad_ptr, weight_ptr, offsets_ptr, reach_ptr, d_w_ptr, d_bias_ptr, rows, tokens, planes,
    D: tl.constexpr, OUT: tl.constexpr, HEADS: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, LAST: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    slot = tl.program_id(0)
    slots = tl.num_programs(0)
    # Each head has columns of its own, and rows of x of its own.
    size: tl.constexpr = OUT // HEADS
    head = tl.program_id(1) % HEADS
    part = tl.program_id(1) // HEADS * CHUNK + tl.arange(0, CHUNK)
    there, out = part < size, head * size + part
    dims = tl.arange(0, BLOCK_D)
    d_w = tl.zeros((CHUNK, BLOCK_D), tl.float32)
    d_bias = tl.zeros((CHUNK,), tl.float32)
    tiles = tl.cdiv(rows, ROWS)
    for item in range(slot, tiles * planes, slots):
        level = (item // tiles).to(tl.int64)
        row = (item % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        exists = row < rows
        if reach_ptr is not None:
            exists = tl.load(reach_ptr + row, mask=exists, other=0) > level
        if tl.max(exists.to(tl.int32)) > 0:
            token = token_of(row, exists, offsets_ptr, LAST)
            at_x = ((level * tokens + token) * HEADS + head)[:, None] * D + dims[None, :]
            inside = exists[:, None] & (dims < D)[None, :]
            x = tl.load(x_ptr + at_x, mask=inside, other=0.0).to(OPERAND)
            at = (level * rows + row)[:, None] * OUT + out[None, :]
            grad = tl.load(grad_ptr + at, mask=exists[:, None] & there[None, :], other=0.0)
            through = grad.to(tl.float32)
            if weight_ptr is not None:
                at = (level * rows + row) * HEADS + head
                through *= tl.load(weight_ptr + at, mask=exists, other=0.0)[:, None]
            if d_bias_ptr is not None:
                d_bias += tl.sum(through, 0)
            d_w += product(tl.trans(grad.to(OPERAND)), x, PRECISION)
    at = (slot.to(tl.int64) * OUT + out)[:, None] * D + dims[None, :]
    tl.store(d_w_ptr + at, d_w, mask=there[:, None] & (dims < D)[None, :])
    if d_bias_ptr is not None:
        tl.store(d_bias_ptr + slot.to(tl.int64) * OUT + out, d_bias, mask=there)


def _common(
    kernel: str, size: int, rows: int, device: torch.device, ops: Operands, out: int
) -> tuple[dict[str, Any], _heuristics.Tile]:
    block = padded_size(size)
    tile = _heuristics.tile(kernel, block, ops.kind, architecture(device), rows)
    return {
        "rows": rows, "D": size, "OUT": out, "BLOCK_D": block,
        "ROWS": tile.rows, "CHUNK": tile.chunk, "OPERAND": ops.dtype, "PRECISION": ops.precision,
    }, tile


def linear(x: Tensor, w: Tensor, bias: Tensor, reach: Tensor, ops: Operands) -> Tensor:
    """``x W^T + b``: ``[K, R, out]`` in the operands' dtype.

    Args:
        x: ``[K, R, D]``.
        w, bias: ``[out, D]`` and ``[out]``.
        reach: int32 ``[R]``, how many levels exist for a row.
        ops: precision of the product.
    """
    planes, rows, size = x.shape
    arguments, tile = _common("linear", size, rows, x.device, ops, w.shape[0])
    y = x.new_empty(planes, rows, w.shape[0], dtype=ops.torch_dtype)
    arguments |= {"x_ptr": x, "w_ptr": w, "bias_ptr": bias, "reach_ptr": reach, "y_ptr": y}
    launch(_linear_kernel, (triton.cdiv(rows, tile.rows), planes), arguments, tile.options)
    return y


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


def linear_weights(
    x: Tensor, grad: Tensor, w: Tensor, bias: Tensor | None, offsets: Tensor | None,
    reach: Tensor | None, ops: Operands, parts: Partials, *, outputs: tuple[int, int] | None = None,
    weight: Tensor | None = None, last_only: bool = False,
) -> None:
    """Leave partials of W's and b's gradients.

    Args:
        x: ``[K, R, D]``; or ``[K, R, H, D]`` where out falls into H heads, each with an x of its
            own; or ``[K, N, D]`` if last_only.
        grad: ``[K, R, out]``, of the layer's result.
        w, bias: ``[out, D]`` and ``[out]``, or more rows of which ``outputs`` says which are meant;
            without a bias it gets no gradient.
        offsets: int64 ``[B+1]``, read only if ``last_only``.
        reach: int32 ``[R]``, how many levels exist for a row; None: all.
        ops: precision of the product.
        parts: where the partials go.
        outputs: begin and end of the rows of w.
        weight: float32 ``[K, R, H]`` that the bias was multiplied by, or None.
        last_only: a row is a sequence and its x that of its last token.
    """
    planes, rows, out = grad.shape
    heads, size = x.shape[2] if x.dim() == 4 else 1, x.shape[-1]
    arguments, tile = _common("linear_weights", size, rows, x.device, ops, out)
    chunks = heads * triton.cdiv(out // heads, tile.chunk)
    slots = min(
        max(1, triton.cdiv(rows, tile.rows) * planes),
        max(2, triton.cdiv(2 * multiprocessors(x.device), chunks)),
    )
    arguments |= {
        "x_ptr": x, "grad_ptr": grad, "weight_ptr": weight, "offsets_ptr": offsets,
        "reach_ptr": reach, "d_w_ptr": parts.new(w, slots, rows=outputs),
        "d_bias_ptr": None if bias is None else parts.new(bias, slots, rows=outputs),
        "tokens": x.shape[1], "planes": planes, "HEADS": heads, "LAST": last_only,
    }
    launch(_linear_weights_kernel, (slots, chunks), arguments, tile.options)
