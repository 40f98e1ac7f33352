"""What follows the attention in a post-LN layer, in one kernel a direction.

x' = LN(x + Drop(context W_o^T + b_o)), y = LN(x' + Drop(FF(x'))). A program takes a tile of rows
(tokens, or the last tokens of sequences) and four levels, which share the Philox calls of their
dropout; neither the projection nor the inner activations leave the chip.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .. import rng
from . import _heuristics
from ._jagged import token_of
from ._launch import Operands, architecture, launch, padded_size
from ._mlp import load_w2, normalise, perceptron
from ._product import product
from .philox import drop, keep_bits


@triton.jit
def _bits(seed_ptr, index, stream, group, threshold, D: tl.constexpr, DROPOUT: tl.constexpr):
    """Dropout's masks of four levels; see ``keep_bits``."""
    if DROPOUT:
        bits = keep_bits(seed_ptr, index, stream, group, threshold, D)
    else:
        bits = tl.full((), 0, tl.int32)
    return bits


@triton.jit
def _drop(y, bits, lane, keep_scale, DROPOUT: tl.constexpr):
    """Dropout, if there is one, of y or of its gradient."""
    if DROPOUT:
        y = drop(y, bits, lane, keep_scale)
    return y


@triton.jit
def _vector(ptr, dims, D: tl.constexpr):
    """A parameter ``[D]`` as a float32 row."""
    return tl.load(ptr + dims, mask=dims < D, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _project(context_ptr, at_row, exists, w_ptr, dims, D: tl.constexpr, BLOCK_D: tl.constexpr,
             ROWS: tl.constexpr, CHUNK: tl.constexpr, OPERAND: tl.constexpr,
             PRECISION: tl.constexpr):
    """context W_o^T, the sum over context's dimensions in chunks."""
    y = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(0, D, CHUNK):
        part = start + tl.arange(0, CHUNK)
        at = context_ptr + at_row[:, None] * D + part[None, :]
        context = tl.load(at, mask=exists[:, None] & (part < D)[None, :], other=0.0)
        w = load_w2(w_ptr, part, dims, D, D, OPERAND)
        y += product(context.to(OPERAND), tl.trans(w), PRECISION)
    return y


@triton.jit(do_not_specialize=["rows", "tokens", "threshold"])
def _sublayers_kernel(
    x_ptr, context_ptr, offsets_ptr, reach_ptr, out_w_ptr, out_b_ptr, ln1_w_ptr, ln1_b_ptr,
    ff1_w_ptr, ff1_b_ptr, ff2_w_ptr, ff2_b_ptr, ln2_w_ptr, ln2_b_ptr, seed_ptr, y_ptr,
    rows, tokens, eps, threshold, keep_scale, stream1, stream2,
    D: tl.constexpr, F: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, DROPOUT: tl.constexpr, LAST: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1)
    reach = tl.load(reach_ptr + row, mask=row < rows, other=0)
    deepest = tl.max(reach)
    if deepest <= 4 * group:
        return
    dims = tl.arange(0, BLOCK_D)
    inside = (dims < D)[None, :]
    token = token_of(row, reach > 0, offsets_ptr, LAST)
    index = token[:, None] * D + dims[None, :]
    bits1 = _bits(seed_ptr, index, stream1, group, threshold, D, DROPOUT)
    bits2 = _bits(seed_ptr, index, stream2, group, threshold, D, DROPOUT)
    for level in range(4 * group, tl.minimum(4 * group + 4, deepest)):
        exists = reach > level
        mask = exists[:, None] & inside
        plane = tl.full((), level, tl.int64)
        at_row = plane * rows + row
        x = tl.load(x_ptr + plane * tokens * D + index, mask=mask, other=0.0).to(tl.float32)
        projected = _project(context_ptr, at_row, exists, out_w_ptr, dims, D, BLOCK_D, ROWS,
                             CHUNK, OPERAND, PRECISION) + _vector(out_b_ptr, dims, D)
        lane = level - 4 * group
        h, _ = normalise(x + _drop(projected, bits1, lane, keep_scale, DROPOUT), inside, eps, D)
        h = h * _vector(ln1_w_ptr, dims, D) + _vector(ln1_b_ptr, dims, D)
        ff2_b = tl.load(ff2_b_ptr + dims, mask=dims < D, other=0.0).to(tl.float32)
        y = perceptron(h.to(OPERAND), ff2_b, ff1_w_ptr, ff1_b_ptr, ff2_w_ptr, dims, F, D, CHUNK,
                       PRECISION)
        y, _ = normalise(h + _drop(y, bits2, lane, keep_scale, DROPOUT), inside, eps, D)
        y = y * _vector(ln2_w_ptr, dims, D) + _vector(ln2_b_ptr, dims, D)
        tl.store(y_ptr + at_row[:, None] * D + dims[None, :], y, mask=mask)


def _arguments(
    kernel: str, x: Tensor, context: Tensor, offsets: Tensor, reach: Tensor,
    weights: dict[str, Tensor], eps: float, dropout: float, seed: Tensor | None, stream: int,
    last_only: bool, ops: Operands,
) -> tuple[dict[str, Any], _heuristics.Tile]:
    _, tokens, size = x.shape
    block = padded_size(size)
    tile = _heuristics.tile(kernel, block, ops.kind, architecture(x.device), reach.shape[0])
    return {
        "x_ptr": x, "context_ptr": context, "offsets_ptr": offsets, "reach_ptr": reach,
        **{f"{name}_ptr": w for name, w in weights.items() if not name.startswith("qkv")},
        "seed_ptr": seed, "rows": reach.shape[0], "tokens": tokens, "eps": eps,
        "threshold": rng.dropout_threshold(dropout), "keep_scale": 1.0 / (1.0 - dropout),
        "stream1": stream + rng.SITE_PROJECTION, "stream2": stream + rng.SITE_FEEDFORWARD,
        "D": size, "F": weights["ff1_w"].shape[0], "BLOCK_D": block,
        "ROWS": tile.rows, "CHUNK": tile.chunk, "DROPOUT": seed is not None and dropout > 0,
        "LAST": last_only, "OPERAND": ops.dtype, "PRECISION": ops.precision,
    }, tile


def sublayers(
    x: Tensor, context: Tensor, offsets: Tensor, reach: Tensor, weights: dict[str, Tensor],
    ops: Operands, *, eps: float, dropout: float, seed: Tensor | None, stream: int,
    last_only: bool,
) -> Tensor:
    """y ``[K, R, D]`` in x's dtype.

    Args:
        x: ``[K, N, D]``, the layer's input.
        context: ``[K, R, D]``, the attention's result.
        offsets: int64 ``[B+1]``, read only if ``last_only``.
        reach: int32 ``[R]``, how many levels exist for a row.
        weights: the layer's, by name.
        ops: precision of the products.
        eps: LayerNorm's.
        dropout, seed, stream: of the hidden states; ``stream`` is the layer's first.
        last_only: rows are sequences; else R = N.
    """
    arguments, tile = _arguments(
        "sublayers", x, context, offsets, reach, weights, eps, dropout, seed, stream, last_only,
        ops,
    )
    rows = reach.shape[0]
    y = x.new_empty(x.shape[0], rows, x.shape[2])
    grid = (triton.cdiv(rows, tile.rows), triton.cdiv(x.shape[0], rng.LANES))
    launch(_sublayers_kernel, grid, {**arguments, "y_ptr": y}, tile.options)
    return y
