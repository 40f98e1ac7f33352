"""The full cross entropy with a weight a row, in chunks of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ELEMENTS = 1 << 23  # logits of a chunk


def weighted_cross_entropy(
    hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor
) -> Tensor:
    """sum_r w_r (-log softmax(h_r E^T)[target]) / R over the R rows that have a target.

    No ``[R, V]`` tensor is kept, and the gradients of both sides come from the same pass.

    Args:
        hidden: ``[R, D]``; rows of target 0 may hold anything.
        table: ``[V+1, D]``; row 0 is padding and takes no part.
        targets: int64 ``[R]``; rows of target 0 are left out of sum and count.
        weights: ``[R]``, no gradient goes there.

    Returns:
        A scalar, float32 or wider; 0 if no row counts.
    """
    return weighted_rows(hidden, table, targets, weights)[0]


def weighted_rows(
    hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`weighted_cross_entropy`, and each row's own loss ``[R]`` without its weight, of which
    no gradient comes; 0 where there is no target."""
    loss: Tensor
    rows: Tensor
    loss, rows = _Weighted.apply(hidden, table, targets, weights)
    return loss, rows


class _Weighted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        counted = targets > 0
        share = torch.where(counted, weights.to(wide), 0.0) / counted.sum().clamp(min=1)
        items = table[1:].to(wide)
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        each = torch.zeros(targets.shape, dtype=wide, device=hidden.device)
        d_hidden = torch.zeros(hidden.shape, dtype=wide, device=hidden.device)
        d_table = torch.zeros(table.shape, dtype=wide, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], max(1, _ELEMENTS // items.shape[0])):
                chunk = slice(start, start + max(1, _ELEMENTS // items.shape[0]))
                rows = torch.where(counted[chunk, None], hidden[chunk].to(wide), 0.0)
                wanted = (targets[chunk, None] - 1).clamp(min=0)
                logits = rows @ items.T
                normaliser = logits.logsumexp(1, keepdim=True)
                lost = (normaliser - logits.gather(1, wanted))[:, 0]
                each[chunk] = torch.where(counted[chunk], lost, 0.0)
                loss += (lost * share[chunk]).sum()
                slope = logits.sub_(normaliser).exp_()
                slope.scatter_add_(1, wanted, torch.full_like(slope[:, :1], -1.0))
                slope *= share[chunk, None]
                d_hidden[chunk] = slope @ items
                d_table[1:].addmm_(slope.T, rows)
        ctx.save_for_backward(d_hidden.to(hidden.dtype), d_table.to(table.dtype))
        ctx.mark_non_differentiable(each)
        return loss, each

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        d_hidden, d_table = ctx.saved_tensors
        return d_hidden * grad, d_table * grad, None, None
