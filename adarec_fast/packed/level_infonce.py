"""Eq. 6, level by level over the users that reach it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference.several_experts import level_group
from ._common import recompute


def _forward(
    z: Tensor, depth: Tensor, targets: Tensor, temperature: float, expert: int = 1,
    experts: int = 2,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(z.dtype, torch.float32)
    total = z.new_zeros((), dtype=wide)
    lse = z.new_zeros(z.shape[0] - 1, z.shape[1], dtype=wide)
    pairs = 0
    first, end = level_group(depth, expert, experts)
    for k in range(z.shape[0] - 1):
        users = (depth > k).nonzero()[:, 0]
        anchors = ((k >= first[users]) & (k < end[users])).nonzero()[:, 0]
        if anchors.numel() == 0:
            continue
        candidates = F.normalize(z[k + 1, users].to(wide), dim=-1)
        queries = F.normalize(z[k, users[anchors]].to(wide), dim=-1)
        similarity = queries @ candidates.T / temperature
        target = targets[users]
        excluded = target[anchors, None] == target
        # The positive is a user's own next level; it stays whatever its target.
        excluded[torch.arange(anchors.numel(), device=z.device), anchors] = False
        total_mass = torch.logsumexp(similarity.masked_fill(excluded, float("-inf")), -1)
        positive = similarity.gather(1, anchors[:, None])[:, 0]
        total = total + (total_mass - positive).sum()
        lse[k, users[anchors]] = total_mass.detach()
        pairs += anchors.numel()
    return total / max(pairs, 1), lse


def _full_precision(z: Tensor) -> AbstractContextManager[object]:
    """No autocast: divided by a temperature of 0.07, the products want all their bits."""
    return torch.autocast(z.device.type, enabled=False)


def of_group(
    z: Tensor, depth: Tensor, targets: Tensor, temperature: float, expert: int, experts: int
) -> Tensor:
    """:func:`adarec_fast.reference.level_infonce.level_infonce` of a group of levels, with the
    gradient of autograd."""
    with _full_precision(z):
        return _forward(z, depth, targets, temperature, expert, experts)[0]


def fwd(z: Tensor, depth: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """``level_infonce_fwd`` of the op's schema."""
    with torch.no_grad(), _full_precision(z):
        return _forward(z, depth, targets, temperature)


def bwd(
    grad_loss: Tensor, lse: Tensor, z: Tensor, depth: Tensor, targets: Tensor, temperature: float
) -> Tensor:
    """``level_infonce_bwd``: the gradient of z."""
    if not bool((depth > 0).any()):
        return torch.zeros_like(z)
    with _full_precision(z):
        return recompute(_forward, (z, depth, targets, temperature), (0,), (grad_loss,))[0]
