"""Full-catalogue cross entropy, Eq. 13, with the item embeddings as output weights."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Mean of -log softmax(h W^T)[target] over the rows whose target is not 0.

    With smoothing s, of the cross entropy with (1 - s) of the target and s / V of each item.

    Args:
        hidden: ``[R, D]``.
        weight: ``[V+1, D]``; row 0 is padding and takes no part.
        targets: int64 ``[R]`` in 1..V; 0 marks a row to leave out.
        label_smoothing: s, 0 <= s < 1.

    Returns:
        The loss, a scalar; 0 if no row counts.
    """
    logits = hidden @ weight[1:].T
    counted = targets > 0
    picked = logits.gather(1, (targets - 1).clamp(min=0)[:, None])[:, 0]
    if label_smoothing:
        picked = (1.0 - label_smoothing) * picked + label_smoothing * logits.mean(-1)
    losses = torch.logsumexp(logits, -1) - picked
    losses = torch.where(counted, losses, torch.zeros_like(losses))
    return losses.sum() / counted.sum().clamp(min=1).to(hidden.dtype)
