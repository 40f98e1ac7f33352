"""Attention of the last position only, without the keys and values of any other.

One query a (sequence, level) and head needs no keys: q_h . (W_k x_j + b_k) = (W_k^T q_h) . x_j + c,
and the softmax does not see c; and no values: sum_j a_j (W_v x_j + b_v) = W_v sum_j a_j x_j +
b_v sum_j a_j. So both products are per read-out instead of per token, and of each token nothing but
x is read, once.

A row of a tile is a (sequence, head) pair, so that all heads share the tile's tokens in a product.
A head is a mask on W_q's, W_k's and W_v's output columns. Query rows see their own sequence's keys,
in blocks with a running softmax, so a sequence may be longer than any tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import rng
from . import _heuristics
from ._attention import LOG2_E, LOWEST, seen_keys
from ._jagged import levels_of
from ._launch import Operands, architecture, launch, padded_size
from ._mlp import hidden_before, load_w1
from ._product import product
from .philox import drop, keep_bits

# Elements of a block of keys; where D is large, fewer keys.
BLOCK = 2048


@triton.jit
def _pairs(sequences, HEADS: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr):
    """Of each row its sequence, int64, its head, and whether there is such a pair.

    SLOTS is HEADS, rounded up to a power of two.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    sequence, head = row // SLOTS, (row % SLOTS).to(tl.int32)
    return sequence, head, (sequence < sequences) & (head < HEADS)


@triton.jit
def _tokens(sequence, exists, offsets_ptr):
    """The tile's first token, int64, and behind that as int32: each row's first and own token, and
    the end. A row that does not exist sees no key.
    """
    begin = tl.load(offsets_ptr + sequence, mask=exists, other=0)
    token = tl.load(offsets_ptr + sequence + 1, mask=exists, other=0) - 1
    end = tl.max(tl.where(exists, token + 1, 0))
    first = tl.min(tl.where(exists, begin, end))
    begin = tl.where(exists, begin - first, 1).to(tl.int32)
    token = tl.where(exists, token - first, 0).to(tl.int32)
    return first, begin, token, (end - first).to(tl.int32)


@triton.jit
def _own(head, out, D: tl.constexpr, HEADS: tl.constexpr):
    """Which of the columns ``out`` are of a row's head, ``[rows, chunk]``."""
    return (out // (D // HEADS))[None, :] == head[:, None]


@triton.jit
def _bits(seed_ptr, offsets_ptr, key, real, level, stream, threshold, sequences, head,
          HEADS: tl.constexpr, SEARCH: tl.constexpr):
    """Dropout's masks of a block of keys, each of which has one query a head: ``keep_bits``.

    A key's sequence is one of the tile's 2^SEARCH. To find it among the rows would take two
    reductions a block, and by bisection, all from L1, four loads.
    """
    sequence = tl.zeros_like(key) + (tl.program_id(0).to(tl.int64) << SEARCH)
    for step in tl.static_range(SEARCH):
        middle = sequence + (1 << (SEARCH - 1 - step))
        starts = tl.load(offsets_ptr + middle, mask=real & (middle < sequences), other=1 << 62)
        sequence = tl.where(starts <= key, middle, sequence)
    begin = tl.load(offsets_ptr + sequence, mask=real, other=0)
    query = tl.load(offsets_ptr + sequence + 1, mask=real, other=1) - 1
    place = tl.where(real, key - begin, 0)
    bits = tl.zeros((head.shape[0], key.shape[0]), tl.int32)
    for one in tl.static_range(HEADS):
        index = ((query * HEADS + one) << 16) | place
        found = keep_bits(seed_ptr, index, stream, level // 4, threshold, HEADS << 16)
        bits = tl.where((head == one)[:, None], found[None, :], bits)
    return bits


@triton.jit(do_not_specialize=["sequences", "tokens", "planes", "threshold"])
def _readout_kernel(
    x_ptr, offsets_ptr, depth_ptr, reach_ptr, w_ptr, bias_ptr, seed_ptr, context_ptr,
    query_ptr, folded_ptr, mean_ptr, weight_ptr, lse_ptr,
    sequences, tokens, planes, scale, threshold, keep_scale, stream,
    D: tl.constexpr, HEADS: tl.constexpr, SLOTS: tl.constexpr, SEARCH: tl.constexpr,
    BLOCK_D: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, KEYS: tl.constexpr,
    DROPOUT: tl.constexpr, HAS_DEPTH: tl.constexpr, SAVE: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    level = tl.program_id(1).to(tl.int64)
    sequence, head, there = _pairs(sequences, HEADS, SLOTS, ROWS)
    reach = levels_of(depth_ptr, sequence, there, planes, HAS_DEPTH)
    if level == 0:
        # For the kernels that follow.
        tl.store(reach_ptr + sequence, reach, mask=there & (head == 0))
    exists = reach > level
    first, begin, token, end = _tokens(sequence, exists, offsets_ptr)
    if end == 0:
        return
    dims = tl.arange(0, BLOCK_D)
    inside = (dims < D)[None, :]
    at_row = level * sequences + sequence
    at_wide = (at_row * HEADS + head)[:, None] * D + dims[None, :]
    at_x = x_ptr + (level * tokens + first) * D
    last = tl.load(at_x + token[:, None] * D + dims[None, :], mask=exists[:, None] & inside,
                   other=0.0)
    folded = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(0, D, CHUNK):
        out = start + tl.arange(0, CHUNK)
        own = _own(head, out, D, HEADS)
        w = load_w1(w_ptr, out, dims, D, D, OPERAND)
        query = hidden_before(last.to(OPERAND), w, bias_ptr, out, D, PRECISION)
        query = tl.where(own, query, 0.0).to(OPERAND)
        if SAVE:
            tl.store(query_ptr + at_row[:, None] * D + out[None, :], query,
                     mask=exists[:, None] & own)
        w = load_w1(w_ptr + D * D, out, dims, D, D, OPERAND)
        folded += product(query, tl.trans(w), PRECISION)
    folded = folded.to(OPERAND)
    top = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    kept = tl.zeros((ROWS,), tl.float32)
    mean = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for block in range(0, tl.cdiv(end, KEYS)):
        key = block * KEYS + tl.arange(0, KEYS)
        seen = seen_keys(begin, token, key)
        # Nobody's keys, of sequences that end above this level, are not read.
        real = tl.max(seen.to(tl.int32), 0) > 0
        x = tl.load(at_x + key[:, None] * D + dims[None, :], mask=real[:, None] & inside,
                    other=0.0).to(OPERAND)
        scores = product(folded, tl.trans(x), PRECISION) * (scale * LOG2_E)
        scores = tl.where(seen, scores, LOWEST)
        higher = tl.maximum(top, tl.max(scores, 1))
        p = tl.where(seen, tl.exp2(scores - higher[:, None]), 0.0)
        decay = tl.exp2(top - higher)
        total = total * decay + tl.sum(p, 1)
        if DROPOUT:
            bits = _bits(seed_ptr, offsets_ptr, first + key, real, level, stream, threshold,
                         sequences, head, HEADS, SEARCH)
            p = drop(p, bits, (level % 4).to(tl.int32), keep_scale)
            kept = kept * decay + tl.sum(p, 1)
        mean = mean * decay[:, None] + product(p.to(OPERAND), x, PRECISION)
        top = higher
    total = tl.where(exists, total, 1.0)
    mean = (mean / total[:, None]).to(OPERAND)
    weight = kept / total if DROPOUT else tl.full((ROWS,), 1.0, tl.float32)
    if SAVE:
        mask = exists[:, None] & inside
        tl.store(folded_ptr + at_wide, folded, mask=mask)
        tl.store(mean_ptr + at_wide, mean, mask=mask)
        at = at_row * HEADS + head
        tl.store(weight_ptr + at, weight, mask=exists)
        tl.store(lse_ptr + at, top + tl.log2(total), mask=exists)
    for start in range(0, D, CHUNK):
        out = start + tl.arange(0, CHUNK)
        w = load_w1(w_ptr + 2 * D * D, out, dims, D, D, OPERAND)
        bias = tl.load(bias_ptr + 2 * D + out, mask=out < D, other=0.0).to(tl.float32)
        context = product(mean, w, PRECISION) + weight[:, None] * bias[None, :]
        tl.store(context_ptr + at_row[:, None] * D + out[None, :], context,
                 mask=exists[:, None] & _own(head, out, D, HEADS))


class Saved(NamedTuple):
    """What backward needs, ``[K, B, ...]``.

    ``query [D]``, ``folded [H, D]``, W_k^T q of each head, and ``mean [H, D]``, sum_j a_j x_j, in
    the operands' dtype; float32 ``[H]``: ``weight``, sum_j a_j, and ``lse``, base 2.
    """

    query: Tensor
    folded: Tensor
    mean: Tensor
    weight: Tensor
    lse: Tensor


def arguments_of(
    kernel: str, x: Tensor, weights: dict[str, Tensor], offsets: Tensor, reach: Tensor,
    ops: Operands, *, heads: int, dropout: float, seed: Tensor | None, stream: int,
) -> tuple[dict[str, Any], _heuristics.Tile, tuple[int, int]]:
    """What both directions are launched with: arguments, tile and grid."""
    planes, tokens, size = x.shape
    block, sequences = padded_size(size), reach.shape[0]
    slots = triton.next_power_of_2(heads)
    tile = _heuristics.tile(kernel, block, ops.kind, architecture(x.device), sequences * slots)
    rows = max(tile.rows, slots)
    return {
        "x_ptr": x, "offsets_ptr": offsets, "reach_ptr": reach,
        "w_ptr": weights["qkv_w"], "bias_ptr": weights["qkv_b"], "seed_ptr": seed,
        "sequences": sequences, "tokens": tokens,
        "scale": (size // heads) ** -0.5, "threshold": rng.dropout_threshold(dropout),
        "keep_scale": 1.0 / (1.0 - dropout), "stream": stream + rng.SITE_ATTENTION,
        "D": size, "HEADS": heads, "SLOTS": slots, "SEARCH": (rows // slots).bit_length() - 1,
        "BLOCK_D": block, "ROWS": rows,
        "CHUNK": tile.chunk, "KEYS": max(16, min(32, BLOCK // block)),
        "DROPOUT": seed is not None and dropout > 0,
        "OPERAND": ops.dtype, "PRECISION": ops.precision,
    }, tile, (triton.cdiv(sequences * slots, rows), planes)


def readout(
    x: Tensor, weights: dict[str, Tensor], offsets: Tensor, depth: Tensor | None, ops: Operands, *,
    heads: int, dropout: float, seed: Tensor | None, stream: int, save: bool,
) -> tuple[Tensor, Tensor, Saved | None]:
    """The attention's result at the last position of every sequence and level.

    Args:
        x: ``[K, N, D]``, the layer's input.
        weights: the layer's, by name; ``qkv_w [3D, D]`` and ``qkv_b [3D]`` are read.
        offsets: int64 ``[B+1]``.
        depth: int64 ``[B]``, or None where all levels exist.
        ops: precision of the products.
        heads: divides D.
        dropout, seed, stream: of the probabilities; ``stream`` is the layer's first.
        save: give what backward needs, too.

    Returns:
        ``[K, B, D]`` in the operands' dtype, levels that do not exist not written; how many levels
        exist for each sequence, int32 ``[B]``; and what is saved.
    """
    planes, _, size = x.shape
    sequences = offsets.shape[0] - 1
    reach = torch.empty(sequences, dtype=torch.int32, device=x.device)
    arguments, tile, grid = arguments_of(
        "readout", x, weights, offsets, reach, ops, heads=heads, dropout=dropout, seed=seed,
        stream=stream,
    )
    narrow = {"dtype": ops.torch_dtype, "device": x.device}
    context = torch.empty(planes, sequences, size, **narrow)
    saved = None
    if save:
        wide = {"dtype": torch.float32, "device": x.device}
        saved = Saved(
            torch.empty_like(context),
            *(torch.empty(planes, sequences, heads, size, **narrow) for _ in range(2)),
            *(torch.empty(planes, sequences, heads, **wide) for _ in range(2)),
        )
    arguments |= {
        "depth_ptr": depth, "planes": planes, "HAS_DEPTH": depth is not None,
        "context_ptr": context, "SAVE": save,
        **{f"{name}_ptr": saved and getattr(saved, name) for name in Saved._fields},
    }
    launch(_readout_kernel, grid, arguments, tile.options)
    return context, reach, saved
