"""Catalogue scores and what a memory of transitions adds to them, the k best."""

from __future__ import annotations

import torch
from torch import Tensor

from .score_topk import best_of


def remembered(
    item_ids: Tensor, matrix: Tensor, alpha: float, gamma: float, decay: float
) -> Tensor:
    """alpha log(1 + gamma S) ``[B, V+1]``, S_j = sum_s decay^s R[i_{n-s}, j] over i_1..i_n.

    Args:
        item_ids: int64 ``[B, L]``, padded with 0 on the right.
        matrix: R ``[V+1, V+1]``, dense; row 0 is zero.
    """
    lengths = (item_ids != 0).sum(1, keepdim=True)
    back = (lengths - 1 - torch.arange(item_ids.shape[1], device=item_ids.device)).clamp(min=0)
    fading = torch.where(item_ids != 0, decay ** back.to(matrix.dtype), 0.0)
    sums = torch.einsum("bl,blv->bv", fading, matrix[item_ids])
    return alpha * torch.log1p(gamma * sums)


def memory_topk(
    users: Tensor,
    items: Tensor,
    item_ids: Tensor,
    matrix: Tensor,
    seen: Tensor,
    k: int,
    alpha: float,
    gamma: float,
    decay: float,
) -> tuple[Tensor, Tensor]:
    """The k items of highest score; among equal scores the lower id comes first.

    Args:
        users: ``[B, D]``.
        items: ``[V+1, D]``; row 0 is padding and never appears.
        item_ids, matrix, alpha, gamma, decay: see :func:`remembered`.
        seen: bool ``[B, V+1]``, what scores -inf.
        k: 1 <= k <= V.

    Returns:
        scores ``[B, k]`` in falling order and items int64 ``[B, k]``.
    """
    scores = users @ items.T + remembered(item_ids, matrix, alpha, gamma, decay)
    return best_of(scores.masked_fill(seen, float("-inf")), k)
