"""Eq. 13 in chunks of rows, with both gradients computed from the same logits.

Rows that are left out are masked, not removed: no shape depends on a target, so that nothing here
waits for the device, and a CUDA graph can hold it.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Logits of one chunk: at most so many numbers, 64 MiB in float32 on a CPU, whose larger temporaries
# are new pages from the system at every use; a GPU wants fewer launches, and has 1 GiB to spare.
_CHUNK_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 28}


def _product(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """``a @ b``, accumulated and kept in ``wide`` whatever the operands are rounded to."""
    if a.dtype == wide:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=wide)
    return a.to(wide) @ b.to(wide)


def fwd(
    hidden: Tensor, weight: Tensor, targets: Tensor, needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``linear_cross_entropy_fwd`` of the op's schema: the loss and both gradients.

    Under autocast the operands of the products are rounded, but no logit and no sum.
    """
    kind, operand = hidden.device.type, hidden.dtype
    if operand == torch.float32 and torch.is_autocast_enabled(kind):
        operand = torch.get_autocast_dtype(kind)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    items = weight[1:].to(operand)
    counted = targets > 0
    share = 1.0 / counted.sum().clamp(min=1).to(wide)
    loss = hidden.new_zeros((), dtype=wide)
    d_hidden = torch.empty_like(hidden) if needs_grad else hidden.new_empty(0)
    d_weight = torch.zeros_like(weight) if needs_grad else weight.new_empty(0)
    rows = max(1, _CHUNK_ELEMENTS[kind] // max(items.shape[0], 1))
    with torch.autocast(kind, enabled=False):
        for start in range(0, hidden.shape[0], rows):
            chunk = slice(start, start + rows)
            real = counted[chunk, None]
            # A row of capacity holds anything, NaN too.
            vectors = torch.where(real, hidden[chunk], 0.0).to(operand)
            wanted = (targets[chunk, None] - 1).clamp(min=0)
            logits = _product(vectors, items.T, wide)
            normaliser = torch.logsumexp(logits, -1, keepdim=True)
            loss += torch.where(real, normaliser - logits.gather(1, wanted), 0.0).sum()
            if not needs_grad:
                continue
            slope = logits.sub_(normaliser).exp_()
            slope.scatter_add_(1, wanted, torch.full_like(slope[:, :1], -1.0))
            slope = (slope * (real * share)).to(operand)
            d_hidden[chunk] = _product(slope, items, wide).to(hidden.dtype)
            d_weight[1:] += _product(slope.T, vectors, wide).to(weight.dtype)
    return loss * share, d_hidden, d_weight


def bwd(
    grad: Tensor, d_hidden: Tensor, d_weight: Tensor, hidden: Tensor, weight: Tensor,
    targets: Tensor,
) -> tuple[Tensor, Tensor]:
    """``linear_cross_entropy_bwd`` of the op's schema, where forward has found both gradients."""
    return d_hidden * grad, d_weight * grad
