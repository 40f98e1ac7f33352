"""Pool of Eq. 7 on the (level, token) pairs that exist."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ragged
from ..reference.level_pool import level_pool
from ._common import existing_pairs, recompute, scatter_rows, token_pairs


def _forward(x: Tensor, offsets: Tensor, depth: Tensor | None, causal: bool) -> Tensor:
    levels, tokens, size = x.shape
    batch = offsets.shape[0] - 1
    sizes = ragged.lengths(offsets)
    if causal:
        longest = max(1, int(sizes.max())) if batch else 1
        padded = ragged.to_padded(ragged.mask_levels(x, offsets, depth), offsets, longest, dim=1)
        pooled = level_pool(padded, ragged.padding_mask(offsets, longest), True)
        return ragged.from_padded(pooled, offsets, tokens, dim=1).contiguous()
    pairs = token_pairs(offsets, depth, levels, tokens)
    level, token = pairs // max(tokens, 1), pairs % max(tokens, 1)
    owner = level * batch + ragged.sequence_ids(offsets, tokens)[token]
    total = x.new_zeros(levels * batch, size).index_add(0, owner, x.flatten(0, 1)[pairs])
    reached = existing_pairs(depth, levels, batch).to(x.device)
    mean = total[reached] / sizes[reached % max(batch, 1)].clamp(min=1)[:, None].to(x.dtype)
    return scatter_rows(mean, reached, (levels, batch))


def fwd(x: Tensor, offsets: Tensor, depth: Tensor | None, causal: bool) -> Tensor:
    """``level_pool_fwd`` of the op's schema."""
    with torch.no_grad():
        return _forward(x, offsets, depth, causal)


def bwd(
    grad: Tensor, offsets: Tensor, depth: Tensor | None, causal: bool, tokens: int
) -> Tensor:
    """``level_pool_bwd``: the gradient of x ``[K, tokens, D]``; the op is linear in x."""
    if causal:
        # What was not computed sends no gradient, whatever the buffer holds there.
        grad = ragged.mask_levels(grad, offsets, depth)
    x = grad.new_zeros(grad.shape[0], tokens, grad.shape[2])
    return recompute(_forward, (x, offsets, depth, causal), (0,), (grad,))[0]
