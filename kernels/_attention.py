"""Causal attention over jagged sequences, forward and backward, in tiles of consecutive tokens.

A program takes one head, four levels, and a tile of rows: tokens, so that several short sequences
share a tile, or sequences (LAST), each with its last token as the only query. Query i sees the keys
from the begin of its sequence to its own token, which is the causal and the block-diagonal mask at
once. Keys come in blocks with a running softmax, so a sequence may be longer than any tile.
Probabilities are never stored: backward makes them again from the row's log-sum-exp.

Dropout's masks cost as much as the products, and one Philox call makes those of four levels. The
first block, for short sequences the only one, is made once and serves the four.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import rng
from . import _heuristics
from ._launch import Operands, architecture, launch, padded_size
from ._layout import Layout
from ._product import product
from .philox import drop, keep_bits

LOG2_E = tl.constexpr(1.4426950408889634)
# Below every score, and finite: the difference of two of them is a number.
LOWEST = tl.constexpr(-1e30)


@triton.jit
def _queries(row, rows, level, offsets_ptr, sequence_ptr, reach_ptr, LAST: tl.constexpr):
    """Token of each query row and first key it sees, int64, and whether it is there at the level.

    A row that is not there has its first key behind its last and sees none.
    """
    exists = tl.load(reach_ptr + row, mask=row < rows, other=0) > level
    if LAST:
        begin = tl.load(offsets_ptr + row, mask=exists, other=0)
        token = tl.load(offsets_ptr + row + 1, mask=exists, other=0) - 1
    else:
        sequence = tl.load(sequence_ptr + row, mask=exists, other=0)
        begin = tl.load(offsets_ptr + sequence, mask=exists, other=0)
        token = row
    return token, tl.where(exists, begin, token + 1), exists


@triton.jit
def _seen(begin, token, key):
    """The mask ``[rows, keys]``."""
    return (begin[:, None] <= key[None, :]) & (key[None, :] <= token[:, None])


@triton.jit
def _pair_bits(seed_ptr, token, begin, key, head, group, stream, threshold, HEADS: tl.constexpr):
    """Dropout's masks of four levels (``keep_bits``) for queries and keys, ``[rows, keys]``."""
    # A key that the query does not see may lie before its sequence; its p is zero anyway.
    place = tl.maximum(key[None, :] - begin[:, None], 0)
    index = ((token * HEADS + head) << 16)[:, None] | place
    return keep_bits(seed_ptr, index, stream, group, threshold, HEADS << 16)


@triton.jit
def _key_bits(seed_ptr, offsets_ptr, sequence_ptr, key, exists, head, group, stream, threshold,
              HEADS: tl.constexpr):
    """The same ``[1, keys]`` where a key has one query only, the last token of its sequence."""
    sequence = tl.load(sequence_ptr + key, mask=exists, other=0)
    begin = tl.load(offsets_ptr + sequence, mask=exists, other=0)
    token = tl.load(offsets_ptr + sequence + 1, mask=exists, other=1) - 1
    index = ((token * HEADS + head) << 16) | tl.where(exists, key - begin, 0)
    return keep_bits(seed_ptr, index[None, :], stream, group, threshold, HEADS << 16)


@triton.jit
def _row_tile(rows, row_reach_ptr, ROWS: tl.constexpr):
    """This program's rows, int64, group of four levels and head, and how deep its rows go."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    deepest = tl.max(tl.load(row_reach_ptr + row, mask=row < rows, other=0))
    return row, tl.program_id(1), tl.program_id(2), deepest


@triton.jit
def _key_span(row, rows, tokens, group, offsets_ptr, sequence_ptr, row_reach_ptr,
              LAST: tl.constexpr):
    """Token and first key of each row, and first key and end of all that the tile sees."""
    # Rows of sequences that end within the group see keys that are zero, and are not stored.
    token, begin, any_level = _queries(
        row, rows, 4 * group, offsets_ptr, sequence_ptr, row_reach_ptr, LAST
    )
    first = tl.min(tl.where(any_level, begin, tokens))
    end = tl.max(tl.where(any_level, token + 1, 0))
    return token, begin, first, end


@triton.jit
def _head_columns(head, D: tl.constexpr, HEADS: tl.constexpr, BLOCK_H: tl.constexpr):
    """A head's columns of a row, ``[1, BLOCK_H]``, and which of them exist."""
    dims = tl.arange(0, BLOCK_H)
    return (head * (D // HEADS) + dims)[None, :], (dims < D // HEADS)[None, :]


@triton.jit
def _first_bits(seed_ptr, token, begin, first, head, group, stream, threshold,
                HEADS: tl.constexpr, KEYS: tl.constexpr, DROPOUT: tl.constexpr,
                LAST: tl.constexpr):
    """Dropout's masks of a tile's first block of keys, made once for four levels."""
    if DROPOUT and not LAST:
        bits = _pair_bits(seed_ptr, token, begin, first + tl.arange(0, KEYS), head, group,
                          stream, threshold, HEADS)
    else:
        bits = tl.full((), 0, tl.int32)
    return bits


@triton.jit
def _block_bits(first_bits, block, seed_ptr, offsets_ptr, sequence_ptr, token, begin, key, exists,
                head, group, stream, threshold, HEADS: tl.constexpr, LAST: tl.constexpr):
    """The masks of any block of keys, for a tile of rows."""
    if LAST:
        bits = _key_bits(seed_ptr, offsets_ptr, sequence_ptr, key, exists, head, group, stream,
                         threshold, HEADS)
    else:
        bits = first_bits
        if block > 0:
            bits = _pair_bits(seed_ptr, token, begin, key, head, group, stream, threshold, HEADS)
    return bits


@triton.jit(do_not_specialize=["rows", "tokens", "threshold"])
def _attention_kernel(
    q_ptr, kv_ptr, offsets_ptr, sequence_ptr, row_reach_ptr, token_reach_ptr, seed_ptr,
    context_ptr, lse_ptr, rows, tokens, scale, threshold, keep_scale, stream,
    D: tl.constexpr, HEADS: tl.constexpr, Q_STRIDE: tl.constexpr, KV_STRIDE: tl.constexpr,
    BLOCK_H: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DROPOUT: tl.constexpr,
    LAST: tl.constexpr, PRECISION: tl.constexpr,
):
    row, group, head, deepest = _row_tile(rows, row_reach_ptr, ROWS)
    if deepest <= 4 * group:
        return
    token, begin, first, end = _key_span(row, rows, tokens, group, offsets_ptr, sequence_ptr,
                                         row_reach_ptr, LAST)
    column, inside = _head_columns(head, D, HEADS, BLOCK_H)
    first_bits = _first_bits(seed_ptr, token, begin, first, head, group, stream, threshold,
                             HEADS, KEYS, DROPOUT, LAST)
    for level in range(4 * group, tl.minimum(4 * group + 4, deepest)):
        plane = tl.full((), level, tl.int64)
        exists = tl.load(row_reach_ptr + row, mask=row < rows, other=0) > level
        at_row = plane * rows + row
        there = exists[:, None] & inside
        q = tl.load(q_ptr + at_row[:, None] * Q_STRIDE + column, mask=there, other=0.0)
        top = tl.full((ROWS,), LOWEST, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        context = tl.zeros((ROWS, BLOCK_H), tl.float32)
        for block in range(0, tl.cdiv(end - first, KEYS)):
            key = first + block * KEYS + tl.arange(0, KEYS)
            real = tl.load(token_reach_ptr + key, mask=key < end, other=0) > level
            at_key = (plane * tokens + key)[:, None] * KV_STRIDE + column
            mask = real[:, None] & inside
            k = tl.load(kv_ptr + at_key, mask=mask, other=0.0)
            v = tl.load(kv_ptr + D + at_key, mask=mask, other=0.0)
            seen = _seen(begin, token, key)
            scores = product(q, tl.trans(k), PRECISION) * (scale * LOG2_E)
            scores = tl.where(seen, scores, LOWEST)
            higher = tl.maximum(top, tl.max(scores, 1))
            p = tl.where(seen, tl.exp2(scores - higher[:, None]), 0.0)
            decay = tl.exp2(top - higher)
            total = total * decay + tl.sum(p, 1)
            if DROPOUT:
                bits = _block_bits(first_bits, block, seed_ptr, offsets_ptr, sequence_ptr, token,
                                   begin, key, real, head, group, stream, threshold, HEADS, LAST)
                p = drop(p, bits, level - 4 * group, keep_scale)
            context = context * decay[:, None] + product(p.to(v.dtype), v, PRECISION)
            top = higher
        total = tl.where(exists, total, 1.0)
        context /= total[:, None]
        tl.store(context_ptr + at_row[:, None] * D + column, context, mask=there)
        if lse_ptr is not None:
            at = (plane * HEADS + head) * rows + row
            tl.store(lse_ptr + at, top + tl.log2(total), mask=exists)


def _arguments(
    kernel: str, q: Tensor, kv: Tensor, offsets: Tensor, layout: Layout, heads: int,
    dropout: float, seed: Tensor | None, stream: int, last_only: bool, ops: Operands,
) -> tuple[dict[str, Any], _heuristics.Tile]:
    size = q.shape[2]
    block = padded_size(size // heads)
    # Tiles are chosen for the D of two such heads.
    tile = _heuristics.tile(kernel, 2 * block, ops.kind, architecture(q.device), q.shape[1])
    return {
        "q_ptr": q, "kv_ptr": kv, "offsets_ptr": offsets, "sequence_ptr": layout.sequence,
        "row_reach_ptr": layout.row_reach, "token_reach_ptr": layout.token_reach,
        "seed_ptr": seed, "rows": q.shape[1], "tokens": kv.shape[1],
        "scale": (size // heads) ** -0.5, "threshold": rng.dropout_threshold(dropout),
        "keep_scale": 1.0 / (1.0 - dropout), "stream": stream + rng.SITE_ATTENTION,
        "D": size, "HEADS": heads, "Q_STRIDE": q.stride(1), "KV_STRIDE": kv.stride(1),
        "BLOCK_H": block, "ROWS": tile.rows, "KEYS": tile.chunk,
        "DROPOUT": seed is not None and dropout > 0, "LAST": last_only,
        "PRECISION": ops.precision,
    }, tile


class Attended(NamedTuple):
    """``context [K, R, D]`` in the operands' dtype; ``lse [K, H, R]``, base 2, or None."""

    context: Tensor
    lse: Tensor | None


def attention(
    q: Tensor, kv: Tensor, offsets: Tensor, layout: Layout, ops: Operands, *, heads: int,
    dropout: float, seed: Tensor | None, stream: int, last_only: bool, save: bool,
) -> Attended:
    """softmax(q k^T / sqrt(d)) v for every head and level.

    Args:
        q: ``[K, R, D]``, its rows and planes perhaps part of longer ones.
        kv: ``[K, N, 2D]``, keys before values, the same.
        offsets: int64 ``[B+1]``.
        layout: of the batch.
        ops: precision of the products; q and kv are in its dtype.
        heads: divides D.
        dropout, seed, stream: of the probabilities; ``stream`` is the layer's first.
        last_only: rows are sequences; else R = N.
        save: give the log-sum-exp too, which backward needs.
    """
    planes, rows, size = q.shape
    arguments, tile = _arguments(
        "attention", q, kv, offsets, layout, heads, dropout, seed, stream, last_only, ops
    )
    context = q.new_empty(planes, rows, size)
    lse = None
    if save:
        lse = torch.empty(planes, heads, rows, dtype=torch.float32, device=q.device)
    grid = (triton.cdiv(rows, tile.rows), triton.cdiv(planes, rng.LANES), heads)
    launch(
        _attention_kernel, grid, {**arguments, "context_ptr": context, "lse_ptr": lse},
        tile.options,
    )
    return Attended(context, lse)
