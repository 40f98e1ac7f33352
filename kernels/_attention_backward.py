"""The attention's gradients: one kernel for the queries', one for the keys' and values'.

With P the probabilities, m the kept scales, C the context and dC its gradient: dP = m (dC V^T),
delta = rowsum(dC C) = rowsum(P dP), dS = P (dP - delta) / sqrt(d), dQ = dS K, dK = dS^T Q and
dV = (P m)^T dC. Each kernel makes P again from the log-sum-exp and owns what it writes, so there
is no atomic addition and the result is the same from run to run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import rng
from ._attention import (
    Attended,
    _arguments,
    _block_bits,
    _first_bits,
    _head_columns,
    _key_span,
    _pair_bits,
    _queries,
    _token_tile,
    probabilities,
    seen_keys,
)
from ._launch import Operands, launch
from ._layout import Layout
from ._product import product
from .philox import drop


@triton.jit(do_not_specialize=["tokens", "threshold"])
def _attention_queries_kernel(
    q_ptr, kv_ptr, offsets_ptr, sequence_ptr, reach_ptr, seed_ptr, context_ptr, d_context_ptr,
    lse_ptr, delta_ptr, d_q_ptr, tokens, scale, threshold, keep_scale, stream,
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
        at_context = at_row[:, None] * D + column
        d_context = tl.load(d_context_ptr + at_context, mask=there, other=0.0)
        context = tl.load(context_ptr + at_context, mask=there, other=0.0).to(tl.float32)
        delta = tl.sum(d_context.to(tl.float32) * context, 1)
        at = (plane * HEADS + head) * tokens + token
        tl.store(delta_ptr + at, delta, mask=exists)
        lse = tl.load(lse_ptr + at, mask=exists, other=0.0)
        d_q = tl.zeros((ROWS, BLOCK_H), tl.float32)
        for block in range(0, tl.cdiv(end - first, KEYS)):
            key = first + block * KEYS + tl.arange(0, KEYS)
            real = tl.load(reach_ptr + key, mask=key < end, other=0) > level
            at_key = (plane * tokens + key)[:, None] * STRIDE + column
            mask = real[:, None] & inside
            k = tl.load(kv_ptr + at_key, mask=mask, other=0.0)
            v = tl.load(kv_ptr + D + at_key, mask=mask, other=0.0)
            p = probabilities(q, k, lse, seen_keys(begin, token, key), scale, PRECISION)
            d_p = product(d_context, tl.trans(v), PRECISION)
            if DROPOUT:
                bits = _block_bits(first_bits, block, seed_ptr, token, begin, key, head, group,
                                   stream, threshold, HEADS)
                d_p = drop(d_p, bits, level - 4 * group, keep_scale)
            d_scores = p * (d_p - delta[:, None]) * scale
            d_q += product(d_scores.to(k.dtype), k, PRECISION)
        tl.store(d_q_ptr + at_row[:, None] * STRIDE + column, d_q, mask=there)


@triton.jit(do_not_specialize=["tokens", "threshold"])
def _attention_keys_kernel(
    q_ptr, kv_ptr, offsets_ptr, sequence_ptr, reach_ptr, seed_ptr, d_context_ptr, lse_ptr,
    delta_ptr, d_kv_ptr, tokens, scale, threshold, keep_scale, stream,
    D: tl.constexpr, HEADS: tl.constexpr, STRIDE: tl.constexpr, BLOCK_H: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):
    key, group, head, deepest = _token_tile(tokens, reach_ptr, KEYS)
    if deepest <= 4 * group:
        return
    reach = tl.load(reach_ptr + key, mask=key < tokens, other=0)
    # The queries that see one of these keys: from the first key's own, to the last sequence's end.
    any_level = reach > 4 * group
    sequence = tl.load(sequence_ptr + key, mask=any_level, other=0).to(tl.int64)
    first = tl.min(tl.where(any_level, key, tokens))
    end = tl.max(tl.load(offsets_ptr + sequence + 1, mask=any_level, other=0))
    column, inside = _head_columns(head, D, HEADS, BLOCK_H)
    if DROPOUT:
        token = first + tl.arange(0, ROWS)
        begin, _ = _queries(token, end, 4 * group, offsets_ptr, sequence_ptr, reach_ptr)
        first_bits = _pair_bits(seed_ptr, token, begin, key, head, group, stream, threshold, HEADS)
    for level in range(4 * group, tl.minimum(4 * group + 4, deepest)):
        plane = tl.full((), level, tl.int64)
        at_key = (plane * tokens + key)[:, None] * STRIDE + column
        there = (reach > level)[:, None] & inside
        d_k = tl.zeros((KEYS, BLOCK_H), tl.float32)
        d_v = tl.zeros((KEYS, BLOCK_H), tl.float32)
        for block in range(0, tl.cdiv(end - first, ROWS)):
            token = first + block * ROWS + tl.arange(0, ROWS)
            begin, asks = _queries(token, end, level, offsets_ptr, sequence_ptr, reach_ptr)
            at_row = plane * tokens + token
            mask = asks[:, None] & inside
            q = tl.load(q_ptr + at_row[:, None] * STRIDE + column, mask=mask, other=0.0)
            at_context = at_row[:, None] * D + column
            d_context = tl.load(d_context_ptr + at_context, mask=mask, other=0.0)
            # Keys and values come anew from L1: held in registers over the loop, they spill. A
            # mask that seems to change keeps the compiler from taking them out of it.
            going_on = tl.full((KEYS,), first + block * ROWS, tl.int64) < end
            again = there & going_on[:, None]
            k = tl.load(kv_ptr + at_key, mask=again, other=0.0)
            v = tl.load(kv_ptr + D + at_key, mask=again, other=0.0)
            at = (plane * HEADS + head) * tokens + token
            lse = tl.load(lse_ptr + at, mask=asks, other=0.0)
            delta = tl.load(delta_ptr + at, mask=asks, other=0.0)
            # A key that does not exist lies behind its sequence, or in one that asks nothing.
            p = probabilities(q, k, lse, seen_keys(begin, token, key), scale, PRECISION)
            kept = p
            d_p = product(d_context, tl.trans(v), PRECISION)
            if DROPOUT:
                bits = first_bits
                if block > 0:
                    bits = _pair_bits(seed_ptr, token, begin, key, head, group, stream,
                                      threshold, HEADS)
                kept = drop(p, bits, level - 4 * group, keep_scale)
                d_p = drop(d_p, bits, level - 4 * group, keep_scale)
            d_v += product(tl.trans(kept.to(q.dtype)), d_context, PRECISION)
            d_scores = p * (d_p - delta[:, None]) * scale
            d_k += product(tl.trans(d_scores.to(q.dtype)), q, PRECISION)
        tl.store(d_kv_ptr + at_key, d_k, mask=there)
        tl.store(d_kv_ptr + D + at_key, d_v, mask=there)


def attention_backward(
    d_context: Tensor, attended: Attended, qkv: Tensor, offsets: Tensor, layout: Layout,
    ops: Operands, *, heads: int, dropout: float, seed: Tensor | None, stream: int,
) -> Tensor:
    """The gradient of ``qkv [K, N, 3D]``, given that of the context in the operands' dtype.

    The rest is as in ``attention``.
    """
    planes, tokens, width = qkv.shape
    options = (offsets, layout, heads, dropout, seed, stream, ops)
    assert attended.lse is not None
    d_qkv = torch.empty_like(qkv)
    shared = {
        "d_context_ptr": d_context, "lse_ptr": attended.lse,
        "delta_ptr": torch.empty_like(attended.lse),
    }
    groups = triton.cdiv(planes, rng.LANES)
    arguments, tile = _arguments("attention_queries", qkv, *options)
    arguments |= {**shared, "context_ptr": attended.context, "d_q_ptr": d_qkv}
    grid = (triton.cdiv(tokens, tile.rows), groups, heads)
    launch(_attention_queries_kernel, grid, arguments, tile.options)
    arguments, tile = _arguments("attention_keys", qkv, *options)
    arguments |= {
        **shared, "d_kv_ptr": d_qkv[..., width // 3 :], "KEYS": tile.rows, "ROWS": tile.chunk,
    }
    grid = (triton.cdiv(tokens, tile.rows), groups, heads)
    launch(_attention_keys_kernel, grid, arguments, tile.options)
    return d_qkv
