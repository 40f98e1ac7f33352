"""A Transformer layer on packed tokens; attention in buckets of similar length."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ragged, rng
from ..reference.encoder_layer import attention, drop
from ._common import existing_pairs, last_token_pairs, recompute, scatter_rows, token_pairs

# Sequences are padded to the longest of their bucket: lengths up to 4, 8, 16, 32, ...
_FIRST_BUCKET = 4


def _attend(
    qkv: Tensor,
    starts: Tensor,
    sizes: Tensor,
    first_tokens: Tensor,
    level: Tensor,
    heads: int,
    dropout: float,
    seed: Tensor | None,
    stream: int,
    causal: bool,
) -> Tensor:
    """Context ``[P, D]`` of packed rows ``qkv [P, 3D]``.

    ``starts`` and ``sizes`` are the sequences' places in the P rows; ``first_tokens`` and
    ``level``, int64 ``[S]``, name their first token and level in the noise contract.
    """
    width = qkv.shape[1] // 3
    context = qkv.new_zeros(qkv.shape[0], width)
    upper, lower = _FIRST_BUCKET, 0
    longest = int(sizes.max()) if sizes.numel() else 0
    while lower < longest:
        chosen = ((sizes > lower) & (sizes <= upper)).nonzero()[:, 0]
        lower, upper = upper, 2 * upper
        if chosen.numel() == 0:
            continue
        size = int(sizes[chosen].max())
        place = torch.arange(size, device=qkv.device)
        valid = place < sizes[chosen, None]
        rows = torch.where(valid, starts[chosen, None] + place, 0)
        q, k, v = qkv[rows].view(*rows.shape, 3, heads, -1).permute(2, 0, 3, 1, 4)
        keep = None
        if seed is not None and dropout > 0:
            query = first_tokens[chosen, None] + place + rng.first_token(seed)
            index = rng.attention_index(query, heads, place)
            group = (level[chosen] // rng.LANES)[:, None, None, None]
            lane = (level[chosen] % rng.LANES)[:, None, None, None]
            four = rng.philox(seed, index, stream + rng.SITE_ATTENTION, group)
            word = four[0]
            for i in range(1, rng.LANES):
                word = torch.where(lane == i, four[i], word)
            keep = (word >= rng.dropout_threshold(dropout)).transpose(1, 2)
        out = attention(q, k, v, valid, keep, dropout, causal).transpose(1, 2).flatten(2)
        context = context.index_copy(0, rows[valid], out[valid].to(context.dtype))
    return context


def _forward(
    x: Tensor,
    offsets: Tensor,
    depth: Tensor | None,
    qkv_w: Tensor,
    qkv_b: Tensor,
    out_w: Tensor,
    out_b: Tensor,
    ln1_w: Tensor,
    ln1_b: Tensor,
    ff1_w: Tensor,
    ff1_b: Tensor,
    ff2_w: Tensor,
    ff2_b: Tensor,
    ln2_w: Tensor,
    ln2_b: Tensor,
    heads: int,
    eps: float,
    attention_dropout: float,
    hidden_dropout: float,
    seed: Tensor | None,
    stream: int,
    last_only: bool,
    max_length: int,
    causal: bool,
) -> Tensor:
    levels, tokens, size = x.shape
    batch = offsets.shape[0] - 1
    pairs = token_pairs(offsets, depth, levels, tokens)
    sequences = existing_pairs(depth, levels, batch).to(x.device)
    owner = sequences % max(batch, 1)
    sizes = ragged.lengths(offsets)[owner]
    starts = sizes.cumsum(0) - sizes
    packed = x.flatten(0, 1)[pairs]
    context = _attend(
        F.linear(packed, qkv_w, qkv_b),
        starts, sizes, offsets[owner], sequences // max(batch, 1),
        heads, attention_dropout, seed, stream, causal,
    )
    source, target, rows = pairs, pairs, tokens
    if last_only:
        source, target = last_token_pairs(offsets, depth, levels, tokens)
        rows = batch
        packed, context = packed[starts + sizes - 1], context[starts + sizes - 1]
    keep: list[Tensor | None] = [None, None]
    if seed is not None and hidden_dropout > 0:
        index = rng.element_index(tokens, size, seed)
        keep = [
            rng.keep_levels(seed, index, stream + site, levels, hidden_dropout)
            .flatten(0, 1)[source]
            for site in (rng.SITE_PROJECTION, rng.SITE_FEEDFORWARD)
        ]
    projected = drop(F.linear(context, out_w, out_b), keep[0], hidden_dropout)
    middle = F.layer_norm(packed + projected, (size,), ln1_w, ln1_b, eps)
    hidden = F.linear(F.gelu(F.linear(middle, ff1_w, ff1_b)), ff2_w, ff2_b)
    y = F.layer_norm(middle + drop(hidden, keep[1], hidden_dropout), (size,), ln2_w, ln2_b, eps)
    return scatter_rows(y.to(x.dtype), target, (levels, rows))


def fwd(*inputs: Any) -> Tensor:
    """``encoder_layer_fwd`` of the op's schema."""
    with torch.no_grad():
        return _forward(*inputs)


def bwd(grad_y: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """``encoder_layer_bwd``: gradients of x and the twelve parameters."""
    return recompute(_forward, inputs, (0, *range(3, 15)), (grad_y,))
