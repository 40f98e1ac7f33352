"""The full cross entropy where an item's score is the greatest of a user's several products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ELEMENTS = 1 << 23  # products of a chunk


def multi_interest_cross_entropy(users: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """The mean of -log softmax_i(max_k m_k e_i)[target] over the rows that have a target.

    The gradient of a score goes to the k whose product is the greatest; of equal ones to the first.
    No ``[R, K, V]`` tensor is kept, and the gradients of both sides come from the same pass.

    Args:
        users: m ``[R, K, D]``; rows of target 0 may hold anything.
        table: ``[V+1, D]``; row 0 is padding and takes no part.
        targets: int64 ``[R]``; rows of target 0 are left out of sum and count.

    Returns:
        A scalar, float32 or wider; 0 if no row counts.

    Example:
        >>> users = torch.eye(2)[None]  # one user, two interests
        >>> table = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> multi_interest_cross_entropy(users, table, torch.tensor([3]))  # ln(2 e + 1)
        tensor(1.8620)
    """
    loss: Tensor = _MultiInterest.apply(users, table, targets)
    return loss


class _MultiInterest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, users: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        wide = torch.promote_types(users.dtype, torch.float32)
        counted = targets > 0
        share = counted.to(wide) / counted.sum().clamp(min=1)
        items = table[1:].to(wide)
        each = users.shape[1]
        loss = torch.zeros((), dtype=wide, device=users.device)
        d_users = torch.zeros(users.shape, dtype=wide, device=users.device)
        d_table = torch.zeros(table.shape, dtype=wide, device=users.device)
        chunk_size = max(1, _ELEMENTS // max(1, each * items.shape[0]))
        with torch.autocast(users.device.type, enabled=False):
            for start in range(0, users.shape[0], chunk_size):
                chunk = slice(start, start + chunk_size)
                rows = torch.where(counted[chunk, None, None], users[chunk].to(wide), 0.0)
                products = (rows.flatten(0, 1) @ items.T).view(-1, each, items.shape[0])
                scores, which = products.max(1)
                wanted = (targets[chunk, None] - 1).clamp(min=0)
                normaliser = scores.logsumexp(1, keepdim=True)
                loss += ((normaliser - scores.gather(1, wanted))[:, 0] * share[chunk]).sum()
                slope = scores.sub_(normaliser).exp_()
                slope.scatter_add_(1, wanted, torch.full_like(slope[:, :1], -1.0))
                slope *= share[chunk, None]
                spread = products.zero_().scatter_(1, which[:, None], slope[:, None]).flatten(0, 1)
                d_users[chunk] = (spread @ items).view_as(rows)
                d_table[1:].addmm_(spread.T, rows.flatten(0, 1))
        ctx.save_for_backward(d_users.to(users.dtype), d_table.to(table.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_users, d_table = ctx.saved_tensors
        return d_users * grad, d_table * grad, None
