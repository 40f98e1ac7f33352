"""Catalogue scores, seen items masked, the k best."""

from __future__ import annotations

import torch
from torch import Tensor


def score_topk(
    users: Tensor, items: Tensor, seen: Tensor, k: int, seen_score: float
) -> tuple[Tensor, Tensor]:
    """The k items of highest score; among equal scores the lower id comes first.

    Args:
        users: ``[B, D]``.
        items: ``[V+1, D]``; row 0 is padding and never appears.
        seen: bool ``[B, V+1]``.
        k: 1 <= k <= V.
        seen_score: the score that seen items get instead of their own.

    Returns:
        scores ``[B, k]`` in falling order and items int64 ``[B, k]``.
    """
    return best_of((users @ items.T).masked_fill(seen, seen_score), k)


def best_of(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of scores ``[B, V+1]``, falling, and their items; column 0 is no item."""
    order = torch.sort(scores[:, 1:], dim=-1, descending=True, stable=True)
    return order.values[:, :k], order.indices[:, :k] + 1
