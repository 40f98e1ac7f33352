"""A post-LN Transformer layer, causal or not (Vaswani et al. 2017; SASRec's block with GELU)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def drop(x: Tensor, keep: Tensor | None, p: float) -> Tensor:
    """Inverted dropout with a given mask; None keeps everything."""
    return x if keep is None else torch.where(keep, x / (1 - p), torch.zeros_like(x))


def attention(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor, keep: Tensor | None, p: float, causal: bool
) -> Tensor:
    """Attention, softmax(q k^T / sqrt(d)) v, padding never taking part.

    Args:
        q, k, v: ``[..., H, L, d]``.
        valid: bool ``[..., L]``, broadcast over leading axes.
        keep: dropout mask of the probabilities ``[..., H, L, L]``, or None.
        p: dropout probability.
        causal: whether a place sees those before it and itself alone, or its whole sequence.
    """
    size = q.shape[-2]
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    square = torch.ones(size, size, dtype=torch.bool, device=q.device)
    allowed = (square.tril() if causal else square) & valid[..., None, None, :]
    scores = scores.masked_fill(~allowed, float("-inf"))
    # A padded query may have no key at all: it attends to nothing instead of becoming NaN.
    scores = scores.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return drop(torch.softmax(scores, -1), keep, p) @ v


def encoder_layer(
    x: Tensor,
    valid: Tensor,
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
    keep_attention: Tensor | None,
    keep_projection: Tensor | None,
    keep_feedforward: Tensor | None,
    causal: bool = True,
) -> Tensor:
    """y = LN(x' + FF(x')), x' = LN(x + Attention(x)), dropout before each residual sum.

    Args:
        x: ``[..., L, D]``, sequences beginning at the left.
        valid: bool ``[..., L]``.
        qkv_w, qkv_b: ``[3D, D]``, ``[3D]``: queries, keys, values stacked.
        out_w, out_b, ff1_w, ff1_b, ff2_w, ff2_b: the linear layers, ``[out, in]`` and ``[out]``.
        ln1_w, ln1_b, ln2_w, ln2_b: ``[D]``.
        heads: H, divides D.
        eps: LayerNorm's.
        attention_dropout, hidden_dropout: probabilities that go with the masks.
        keep_attention: ``[..., H, L, L]`` or None.
        keep_projection, keep_feedforward: ``[..., L, D]`` or None.
        causal: whether a place sees those before it and itself alone, or its whole sequence.

    Returns:
        ``[..., L, D]``; rows at padding are meaningless.
    """
    size = x.shape[-1]
    q, k, v = (
        part.unflatten(-1, (heads, -1)).transpose(-2, -3)
        for part in F.linear(x, qkv_w, qkv_b).chunk(3, -1)
    )
    context = attention(q, k, v, valid, keep_attention, attention_dropout, causal)
    projected = F.linear(context.transpose(-2, -3).flatten(-2), out_w, out_b)
    x = F.layer_norm(
        x + drop(projected, keep_projection, hidden_dropout), (size,), ln1_w, ln1_b, eps
    )
    hidden = F.linear(F.gelu(F.linear(x, ff1_w, ff1_b)), ff2_w, ff2_b)
    return F.layer_norm(
        x + drop(hidden, keep_feedforward, hidden_dropout), (size,), ln2_w, ln2_b, eps
    )
