"""``level_biases`` in Triton: two small layers over the same rows, a launch in each direction.

A program of the forward kernel owns a chunk of either layer's outputs. One of the backward kernel
owns a chunk of outputs, whose weights' gradients it makes, or a chunk of the table's columns, for
which it goes through both layers. A few hundred KB at most: launches are what this costs, two
instead of eleven.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch, operands, padded_size
from ._product import product

CHUNK, DEPTH = 32, 32


@triton.jit
def _tile(ptr, rows, columns, row_count, column_count, STRIDE: tl.constexpr,
          OPERAND: tl.constexpr):
    """Elements of a matrix with STRIDE columns; zero beyond its end, and at negative rows."""
    mask = ((rows >= 0) & (rows < row_count))[:, None] & (columns < column_count)[None, :]
    at = rows[:, None] * STRIDE + columns[None, :]
    return tl.load(ptr + at, mask=mask, other=0.0).to(OPERAND)


@triton.jit
def _layer(table_ptr, w_ptr, b_ptr, y_ptr, chunk, planes, skipped, D: tl.constexpr,
           OUT: tl.constexpr, LEVELS: tl.constexpr, CHUNK: tl.constexpr, DEPTH: tl.constexpr,
           OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """A chunk of a layer's outputs for all levels but the first ``skipped``."""
    row, out = tl.arange(0, LEVELS), chunk * CHUNK + tl.arange(0, CHUNK)
    y = tl.zeros((LEVELS, CHUNK), tl.float32)
    y += tl.load(b_ptr + out, mask=out < OUT, other=0.0).to(tl.float32)[None, :]
    for start in range(0, D, DEPTH):
        dims = start + tl.arange(0, DEPTH)
        x = _tile(table_ptr, row + skipped, dims, planes, D, D, OPERAND)
        w = _tile(w_ptr, out, dims, OUT, D, D, OPERAND)
        y += product(x, tl.trans(w), PRECISION)
    mask = (row + skipped < planes)[:, None] & (out < OUT)[None, :]
    tl.store(y_ptr + row[:, None] * OUT + out[None, :], y, mask=mask)


@triton.jit(do_not_specialize=["planes"])
def _forward_kernel(
    table_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, y1_ptr, y2_ptr, planes,
    D: tl.constexpr, H: tl.constexpr, R: tl.constexpr, LEVELS: tl.constexpr, CHUNK: tl.constexpr,
    DEPTH: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    chunk = tl.program_id(0)
    first: tl.constexpr = (H + CHUNK - 1) // CHUNK
    if chunk < first:
        _layer(table_ptr, w1_ptr, b1_ptr, y1_ptr, chunk, planes, 1, D, H, LEVELS, CHUNK, DEPTH,
               OPERAND, PRECISION)
    else:
        _layer(table_ptr, w2_ptr, b2_ptr, y2_ptr, chunk - first, planes, 0, D, R, LEVELS, CHUNK,
               DEPTH, OPERAND, PRECISION)


@triton.jit
def _layer_weights(grad_ptr, table_ptr, d_w_ptr, d_b_ptr, chunk, planes, skipped, D: tl.constexpr,
                   OUT: tl.constexpr, LEVELS: tl.constexpr, CHUNK: tl.constexpr,
                   DEPTH: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    row, out = tl.arange(0, LEVELS), chunk * CHUNK + tl.arange(0, CHUNK)
    grad = _tile(grad_ptr, row, out, planes - skipped, OUT, OUT, tl.float32)
    tl.store(d_b_ptr + out, tl.sum(grad, 0), mask=out < OUT)
    for start in range(0, D, DEPTH):
        dims = start + tl.arange(0, DEPTH)
        x = _tile(table_ptr, row + skipped, dims, planes, D, D, OPERAND)
        d_w = product(tl.trans(grad.to(OPERAND)), x, PRECISION)
        mask = (out < OUT)[:, None] & (dims < D)[None, :]
        tl.store(d_w_ptr + out[:, None] * D + dims[None, :], d_w, mask=mask)


@triton.jit
def _through(total, grad_ptr, w_ptr, dims, planes, skipped, D: tl.constexpr, OUT: tl.constexpr,
             LEVELS: tl.constexpr, DEPTH: tl.constexpr, OPERAND: tl.constexpr,
             PRECISION: tl.constexpr):
    """``total`` and what comes through a layer to columns of the table."""
    row = tl.arange(0, LEVELS) - skipped
    for start in range(0, OUT, DEPTH):
        out = start + tl.arange(0, DEPTH)
        grad = _tile(grad_ptr, row, out, planes - skipped, OUT, OUT, OPERAND)
        w = _tile(w_ptr, out, dims, OUT, D, D, OPERAND)
        total += product(grad, w, PRECISION)
    return total


@triton.jit(do_not_specialize=["planes"])
def _backward_kernel(
    grad1_ptr, grad2_ptr, table_ptr, w1_ptr, w2_ptr, d_table_ptr, d_w1_ptr, d_b1_ptr, d_w2_ptr,
    d_b2_ptr, planes,
    D: tl.constexpr, H: tl.constexpr, R: tl.constexpr, LEVELS: tl.constexpr, CHUNK: tl.constexpr,
    DEPTH: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    chunk = tl.program_id(0)
    first: tl.constexpr = (H + CHUNK - 1) // CHUNK
    second: tl.constexpr = first + (R + CHUNK - 1) // CHUNK
    if chunk < first:
        _layer_weights(grad1_ptr, table_ptr, d_w1_ptr, d_b1_ptr, chunk, planes, 1, D, H, LEVELS,
                       CHUNK, DEPTH, OPERAND, PRECISION)
    elif chunk < second:
        _layer_weights(grad2_ptr, table_ptr, d_w2_ptr, d_b2_ptr, chunk - first, planes, 0, D, R,
                       LEVELS, CHUNK, DEPTH, OPERAND, PRECISION)
    else:
        dims = (chunk - second) * CHUNK + tl.arange(0, CHUNK)
        total = tl.zeros((LEVELS, CHUNK), tl.float32)
        total = _through(total, grad1_ptr, w1_ptr, dims, planes, 1, D, H, LEVELS, DEPTH, OPERAND,
                         PRECISION)
        total = _through(total, grad2_ptr, w2_ptr, dims, planes, 0, D, R, LEVELS, DEPTH, OPERAND,
                         PRECISION)
        row = tl.arange(0, LEVELS)
        mask = (row < planes)[:, None] & (dims < D)[None, :]
        tl.store(d_table_ptr + row[:, None] * D + dims[None, :], total, mask=mask)


def _arguments(table: Tensor, w1: Tensor, w2: Tensor) -> dict[str, Any]:
    ops, (planes, size) = operands(table), table.shape
    padded_size(size)  # raises where it is too large
    return {
        "table_ptr": table, "w1_ptr": w1, "w2_ptr": w2, "planes": planes, "D": size,
        "H": w1.shape[0], "R": w2.shape[0], "LEVELS": max(16, triton.next_power_of_2(planes)),
        "CHUNK": CHUNK, "DEPTH": DEPTH, "OPERAND": ops.dtype, "PRECISION": ops.precision,
    }


def _chunks(*sizes: int) -> tuple[int]:
    return (sum(triton.cdiv(size, CHUNK) for size in sizes),)


def fwd(
    table: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> tuple[Tensor, Tensor]:
    """``level_biases_fwd`` of the op's schema: ``[T, H]`` and ``[T+1, R]``."""
    table, w1, w2 = table.contiguous(), w1.contiguous(), w2.contiguous()
    planes = table.shape[0]
    y1, y2 = w1.new_empty(planes - 1, w1.shape[0]), w2.new_empty(planes, w2.shape[0])
    arguments = _arguments(table, w1, w2)
    arguments |= {"b1_ptr": b1, "b2_ptr": b2, "y1_ptr": y1, "y2_ptr": y2}
    launch(_forward_kernel, _chunks(w1.shape[0], w2.shape[0]), arguments, {"num_warps": 4})
    return y1, y2


def bwd(
    d_denoiser: Tensor, d_router: Tensor, table: Tensor, w1: Tensor, b1: Tensor, w2: Tensor,
    b2: Tensor,
) -> tuple[Tensor, ...]:
    """``level_biases_bwd``: gradients of the table and of both layers."""
    table, w1, w2 = table.contiguous(), w1.contiguous(), w2.contiguous()
    found = [torch.empty_like(t) for t in (table, w1, b1, w2, b2)]
    names = ("d_table_ptr", "d_w1_ptr", "d_b1_ptr", "d_w2_ptr", "d_b2_ptr")
    arguments = _arguments(table, w1, w2)
    arguments |= {
        "grad1_ptr": d_denoiser.contiguous(), "grad2_ptr": d_router.contiguous(),
        **dict(zip(names, found, strict=True)),
    }
    grid = _chunks(w1.shape[0], w2.shape[0], table.shape[1])
    launch(_backward_kernel, grid, arguments, {"num_warps": 4})
    return tuple(found)
