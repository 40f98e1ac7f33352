"""Eq. 13 in chunks of rows, with both gradients computed from the same logits."""

from __future__ import annotations

import torch
from torch import Tensor

# Logits of one chunk: at most so many numbers, 64 MiB in float32.
_CHUNK_ELEMENTS = 1 << 24


def fwd(
    hidden: Tensor, weight: Tensor, targets: Tensor, needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``linear_cross_entropy_fwd`` of the op's schema."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    items = weight[1:]
    counted = (targets > 0).nonzero()[:, 0]
    share = 1.0 / max(counted.numel(), 1)
    loss = hidden.new_zeros((), dtype=wide)
    d_hidden = torch.zeros_like(hidden) if needs_grad else hidden.new_empty(0)
    d_weight = torch.zeros_like(weight) if needs_grad else weight.new_empty(0)
    rows = max(1, _CHUNK_ELEMENTS // max(items.shape[0], 1))
    for chunk in counted.split(rows):
        vectors, wanted = hidden[chunk], targets[chunk, None] - 1
        logits = (vectors @ items.T).to(wide)
        normaliser = torch.logsumexp(logits, -1, keepdim=True)
        loss += (normaliser - logits.gather(1, wanted)).sum()
        if not needs_grad:
            continue
        slope = logits.sub_(normaliser).exp_()
        slope.scatter_add_(1, wanted, torch.full_like(slope[:, :1], -1.0))
        slope = (slope * share).to(hidden.dtype)
        d_hidden[chunk] = (slope @ items).to(hidden.dtype)
        d_weight[1:] += (slope.T @ vectors).to(weight.dtype)
    return loss * share, d_hidden, d_weight
