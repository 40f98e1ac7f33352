"""Embedding of packed items; nothing here is ragged but the positions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ragged, rng
from ..reference.embedding import embedding
from ..reference.encoder_layer import drop
from ._common import recompute


def _forward(
    item_ids: Tensor, offsets: Tensor, table: Tensor, positions: Tensor, norm_weight: Tensor,
    norm_bias: Tensor, eps: float, p: float, seed: Tensor | None,
) -> Tensor:
    embedded = F.embedding(item_ids, table, padding_idx=0)
    x = embedding(embedded, offsets, positions, norm_weight, norm_bias, eps)
    if seed is None:
        return x
    index = rng.element_index(x.shape[0], x.shape[1], seed)
    return drop(x, rng.keep_mask(seed, index, rng.STREAM_EMBEDDING, 0, p), p)


def fwd(*inputs: Any) -> Tensor:
    """``embedding_fwd`` of the op's schema."""
    with torch.no_grad():
        return _forward(*inputs)


def bwd(
    grad: Tensor, d_table: Tensor, item_ids: Tensor, offsets: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """``embedding_bwd``: adds to d_table; the gradients of positions, LayerNorm's weight, bias."""
    grad = ragged.mask_levels(grad[None], offsets, None)[0]
    inputs = (item_ids, offsets, *rest)
    d_items, d_positions, d_weight, d_bias = recompute(_forward, inputs, (2, 3, 4, 5), (grad,))
    d_table += d_items
    return d_positions, d_weight, d_bias
