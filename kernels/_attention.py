"""Causal attention over jagged sequences, forward and backward, in tiles of consecutive tokens.

A program takes one head, four levels, and a tile of tokens, so that several short sequences share a
tile. Query i sees the keys from the begin of its sequence to its own token, which is the causal and
the block-diagonal mask at once. Keys come in blocks with a running softmax, so a sequence may be
longer than any tile. Probabilities are never stored: backward makes them again from the row's
log-sum-exp. Where only last positions ask, ``_readout`` needs neither keys nor values.

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
def _queries(token, end, level, offsets_ptr, sequence_ptr, reach_ptr):
    """First key that each query token sees, int64, and whether the token is there at the level.

    One that is not there has its first key behind itself and sees none.
    """
    exists = tl.load(reach_ptr + token, mask=token < end, other=0) > level
    sequence = tl.load(sequence_ptr + token, mask=exists, other=0)
    begin = tl.load(offsets_ptr + sequence, mask=exists, other=0)
    return tl.where(exists, begin, token + 1), exists


@triton.jit
def seen_keys(begin, token, key):
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
def probabilities(q, k, lse, seen, scale, PRECISION: tl.constexpr):
    """P ``[rows, keys]`` again, zero where a key is not seen."""
    scores = product(q, tl.trans(k), PRECISION) * (scale * LOG2_E)
    return tl.where(seen, tl.exp2(scores - lse[:, None]), 0.0)


@triton.jit
def _token_tile(tokens, reach_ptr, ROWS: tl.constexpr):
    """This program's tokens, int64, group of four levels and head, and how deep its tokens go."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    deepest = tl.max(tl.load(reach_ptr + token, mask=token < tokens, other=0))
    return token, tl.program_id(1), tl.program_id(2), deepest


@triton.jit
def _key_span(token, tokens, group, offsets_ptr, sequence_ptr, reach_ptr):
    """First key of each token, and first key and end of all that the tile sees."""
    # Tokens of sequences that end within the group see keys that are zero, and are not stored.
    begin, any_level = _queries(token, tokens, 4 * group, offsets_ptr, sequence_ptr, reach_ptr)
    first = tl.min(tl.where(any_level, begin, tokens))
    end = tl.max(tl.where(any_level, token + 1, 0))
    return begin, first, end


@triton.jit
def _head_columns(head, D: tl.constexpr, HEADS: tl.constexpr, BLOCK_H: tl.constexpr):
    """A head's columns of a row, ``[1, BLOCK_H]``, and which of them exist."""
    dims = tl.arange(0, BLOCK_H)
    return (head * (D // HEADS) + dims)[None, :], (dims < D // HEADS)[None, :]


@triton.jit
def _first_bits(seed_ptr, token, begin, first, head, group, stream, threshold,
                HEADS: tl.constexpr, KEYS: tl.constexpr, DROPOUT: tl.constexpr):
    """Dropout's masks of a tile's first block of keys, made once for four levels."""
    if DROPOUT:
        bits = _pair_bits(seed_ptr, token, begin, first + tl.arange(0, KEYS), head, group,
                          stream, threshold, HEADS)
    else:
        bits = tl.full((), 0, tl.int32)
    return bits


@triton.jit
def _block_bits(first_bits, block, seed_ptr, token, begin, key, head, group, stream, threshold,
                HEADS: tl.constexpr):
    """The masks of any block."""
    bits = first_bits
    if block > 0:
        bits = _pair_bits(seed_ptr, token, begin, key, head, group, stream, threshold, HEADS)
    return bits


@triton.jit(do_not_specialize=["tokens", "threshold"])
def _attention_kernel(
    q_ptr, kv_ptr, offsets_ptr, sequence_ptr, reach_ptr, seed_ptr, context_ptr, lse_ptr,
    tokens, scale, threshold, keep_scale, stream,
    D: tl.constexpr, HEADS: tl.constexpr, STRIDE: tl.constexpr, BLOCK_H: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):
    token, group, head, deepest = _token_tile(tokens, reach_ptr, ROWS)
    if deepest <= 4 * group:
        return
    begin, first, end = _key_span(token, tokens, group, offsets_ptr, sequence_ptr, reach_ptr)
    column, inside = _head_columns(head, D, HEADS, BLOCK_H)
    first_bits = _first_bits(seed_ptr, token, begin, first, head, group, stream, threshold,
                             HEADS, KEYS, DROPOUT)
    for level in range(4 * group, tl.minimum(4 * group + 4, deepest)):
        plane = tl.full((), level, tl.int64)
        exists = tl.load(reach_ptr + token, mask=token < tokens, other=0) > level
        at_row = plane * tokens + token
        there = exists[:, None] & inside
        q = tl.load(q_ptr + at_row[:, None] * STRIDE + column, mask=there, other=0.0)
        top = tl.full((ROWS,), LOWEST, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        context = tl.zeros((ROWS, BLOCK_H), tl.float32)
        for block in range(0, tl.cdiv(end - first, KEYS)):
            key = first + block * KEYS + tl.arange(0, KEYS)
            real = tl.load(reach_ptr + key, mask=key < end, other=0) > level
            at_key = (plane * tokens + key)[:, None] * STRIDE + column
            mask = real[:, None] & inside
            k = tl.load(kv_ptr + at_key, mask=mask, other=0.0)
            v = tl.load(kv_ptr + D + at_key, mask=mask, other=0.0)
            seen = seen_keys(begin, token, key)
            scores = product(q, tl.trans(k), PRECISION) * (scale * LOG2_E)
            scores = tl.where(seen, scores, LOWEST)
            higher = tl.maximum(top, tl.max(scores, 1))
            p = tl.where(seen, tl.exp2(scores - higher[:, None]), 0.0)
            decay = tl.exp2(top - higher)
            total = total * decay + tl.sum(p, 1)
            if DROPOUT:
                bits = _block_bits(first_bits, block, seed_ptr, token, begin, key, head, group,
                                   stream, threshold, HEADS)
                p = drop(p, bits, level - 4 * group, keep_scale)
            context = context * decay[:, None] + product(p.to(v.dtype), v, PRECISION)
            top = higher
        total = tl.where(exists, total, 1.0)
        context /= total[:, None]
        tl.store(context_ptr + at_row[:, None] * D + column, context, mask=there)
        if lse_ptr is not None:
            at = (plane * HEADS + head) * tokens + token
            tl.store(lse_ptr + at, top + tl.log2(total), mask=exists)


def _arguments(
    kernel: str, qkv: Tensor, offsets: Tensor, layout: Layout, heads: int, dropout: float,
    seed: Tensor | None, stream: int, ops: Operands,
) -> tuple[dict[str, Any], _heuristics.Tile]:
    size = qkv.shape[2] // 3
    block = padded_size(size // heads)
    # Tiles are chosen for the D of two such heads.
    tile = _heuristics.tile(kernel, 2 * block, ops.kind, architecture(qkv.device), qkv.shape[1])
    return {
        "q_ptr": qkv, "kv_ptr": qkv[..., size:], "offsets_ptr": offsets,
        "sequence_ptr": layout.sequence, "reach_ptr": layout.reach, "seed_ptr": seed,
        "tokens": qkv.shape[1], "scale": (size // heads) ** -0.5,
        "threshold": rng.dropout_threshold(dropout), "keep_scale": 1.0 / (1.0 - dropout),
        "stream": stream + rng.SITE_ATTENTION, "D": size, "HEADS": heads, "STRIDE": 3 * size,
        "BLOCK_H": block, "ROWS": tile.rows, "KEYS": tile.chunk,
        "DROPOUT": seed is not None and dropout > 0, "PRECISION": ops.precision,
    }, tile


class Attended(NamedTuple):
    """``context [K, N, D]`` in the operands' dtype; ``lse [K, H, N]``, base 2, or None."""

    context: Tensor
    lse: Tensor | None


def attention(
    qkv: Tensor, offsets: Tensor, layout: Layout, ops: Operands, *, heads: int, dropout: float,
    seed: Tensor | None, stream: int, save: bool,
) -> Attended:
    """softmax(q k^T / sqrt(d)) v for every head and level.

    Args:
        qkv: ``[K, N, 3D]``, queries before keys before values, in the operands' dtype.
        offsets: int64 ``[B+1]``.
        layout: of the batch.
        ops: precision of the products.
        heads: divides D.
        dropout, seed, stream: of the probabilities; ``stream`` is the layer's first.
        save: give the log-sum-exp too, which backward needs.
    """
    arguments, tile = _arguments(
        "attention", qkv, offsets, layout, heads, dropout, seed, stream, ops
    )
    planes, tokens, width = qkv.shape
    context = qkv.new_empty(planes, tokens, width // 3)
    lse = None
    if save:
        lse = torch.empty(planes, heads, tokens, dtype=torch.float32, device=qkv.device)
    grid = (triton.cdiv(tokens, tile.rows), triton.cdiv(planes, rng.LANES), heads)
    launch(
        _attention_kernel, grid, {**arguments, "context_ptr": context, "lse_ptr": lse},
        tile.options,
    )
    return Attended(context, lse)
