"""Full-catalogue cross entropy, Eq. 13, with the item embeddings as output weights."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(h W^T)[target] over the rows whose target is not 0.

    Args:
        hidden: ``[R, D]``.
        weight: ``[V+1, D]``; row 0 is padding and takes no part.
        targets: int64 ``[R]`` in 1..V; 0 marks a row to leave out.

    Returns:
        The loss, a scalar; 0 if no row counts.
    """
    logits = hidden @ weight[1:].T
    counted = targets > 0
    picked = logits.gather(1, (targets - 1).clamp(min=0)[:, None])[:, 0]
    losses = torch.logsumexp(logits, -1) - picked
    losses = torch.where(counted, losses, torch.zeros_like(losses))
    return losses.sum() / counted.sum().clamp(min=1).to(hidden.dtype)
