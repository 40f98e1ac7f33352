"""The contrastive loss on the coarse expert, Eq. 6."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .several_experts import level_group


def level_infonce(
    z: Tensor, depth: Tensor, targets: Tensor, temperature: float, expert: int = 1,
    experts: int = 2,
) -> Tensor:
    """InfoNCE between neighbouring coarse levels of a user, mean over all pairs.

    Pairs (z_{u,k}, z_{u,k+1}) for k = floor(T_u / 2)..T_u - 1, or for those of another group of
    levels. The candidates B_k of an anchor at level k are the level-(k+1) representations, the
    positive's own level, of every user whose depth reaches k+1, less the other users that share
    u's target.

    Args:
        z: ``[K, B, D]``, pooled coarse outputs, not yet normalised; levels k > depth are ignored.
        depth: int64 ``[B]``, T_u.
        targets: int64 ``[B]``, the item each user is asked for.
        temperature: tau.
        expert, experts: whose group of levels, see :func:`.several_experts.level_group`.

    Returns:
        The loss, a scalar; 0 if there is no pair.
    """
    levels, batch, _ = z.shape
    k = torch.arange(levels, device=z.device)[:, None]
    reached = k <= depth
    unit = F.normalize(torch.where(reached[..., None], z, torch.ones_like(z)), dim=-1)
    same_target = (targets[:, None] == targets[None, :]) & ~torch.eye(
        batch, dtype=torch.bool, device=z.device
    )
    first, end = level_group(depth, expert, experts)
    paired = (k[:-1] >= first) & (k[:-1] < end)  # [K-1, B]
    similarity = unit[:-1] @ unit[1:].transpose(-1, -2) / temperature  # [K-1, B, B]
    excluded = same_target | ~reached[1:, None, :]
    positive = similarity.diagonal(dim1=-2, dim2=-1)
    # A user that has no pair here keeps its own column, so that no row is empty.
    excluded = excluded & ~torch.eye(batch, dtype=torch.bool, device=z.device)
    total = torch.logsumexp(similarity.masked_fill(excluded, float("-inf")), -1)
    losses = torch.where(paired, total - positive, torch.zeros_like(total))
    return losses.sum() / paired.sum().clamp(min=1).to(z.dtype)
