"""Eq. 13 in chunks of rows, with both gradients computed from the same logits.

Rows that are left out are masked, not removed: no shape depends on a target, so that nothing here
waits for the device, and a CUDA graph can hold it.
"""

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
    counted = targets > 0
    share = 1.0 / counted.sum().clamp(min=1).to(wide)
    loss = hidden.new_zeros((), dtype=wide)
    d_hidden = torch.empty_like(hidden) if needs_grad else hidden.new_empty(0)
    d_weight = torch.zeros_like(weight) if needs_grad else weight.new_empty(0)
    rows = max(1, _CHUNK_ELEMENTS // max(items.shape[0], 1))
    for start in range(0, hidden.shape[0], rows):
        chunk = slice(start, start + rows)
        real = counted[chunk, None]
        # A row of capacity holds anything, NaN too.
        vectors = torch.where(real, hidden[chunk], 0.0)
        wanted = (targets[chunk, None] - 1).clamp(min=0)
        logits = (vectors @ items.T).to(wide)
        normaliser = torch.logsumexp(logits, -1, keepdim=True)
        loss += torch.where(real, normaliser - logits.gather(1, wanted), 0.0).sum()
        if not needs_grad:
            continue
        slope = logits.sub_(normaliser).exp_()
        slope.scatter_add_(1, wanted, torch.full_like(slope[:, :1], -1.0))
        slope = (slope * (real * share)).to(hidden.dtype)
        d_hidden[chunk] = (slope @ items).to(hidden.dtype)
        d_weight[1:] += (slope.T @ vectors).to(weight.dtype)
    return loss * share, d_hidden, d_weight
