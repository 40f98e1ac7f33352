"""Ranks and metrics where a user has several relevant items: all that came behind a cut.

HR@k is whether any of them is among the first k, Recall@k the share that is, MRR@k 1 / rank of the
first one, NDCG@k the sum of 1 / log2(rank + 1) over those among the first k, over what it would be
with min(k, their number) of them in front, and MAP@k the sum of the precision at the rank of each
that is among the first k, over their number: Success, R, RR, nDCG and AP of ir-measures. With one
relevant item they are those of :mod:`.ranks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data import EvaluationBatch
from .ranks import UNREACHABLE, SeenMask, candidates_before, target_ranks

_BLOCK_ROWS = 64


def relevant_ranks(
    scores: Tensor, batch: EvaluationBatch, seen_mask: SeenMask, rows: Tensor, items: Tensor
) -> Tensor:
    """The rank of each relevant item among the catalogue, from 1, as :func:`.ranks.target_ranks`.

    Args:
        scores: floating [B, num_items + 1]; overwritten where items are masked.
        batch: what was seen.
        seen_mask: as there.
        rows: int64 [M], whose each item is.
        items: int64 [M], 1..num_items.
    """
    nan = target_ranks(scores, batch, seen_mask) == 0  # masks, too
    columns = torch.arange(scores.shape[1], device=scores.device)
    found = [torch.zeros(0, dtype=torch.int64, device=scores.device)]
    for row, item in zip(rows.split(_BLOCK_ROWS), items.split(_BLOCK_ROWS), strict=True):
        own, goal = scores[row], item[:, None]
        at = own.gather(1, goal)
        rank = 1 + candidates_before(own, at, goal, columns)
        if seen_mask == "neg-inf":
            rank = torch.where(at[:, 0] == float("-inf"), UNREACHABLE, rank)
        found.append(torch.where(nan[row], 0, rank))
    return torch.cat(found)


def best_ranks(ranks: Tensor, offsets: Tensor) -> Tensor:
    """int64 [U]: the least of each user's ranks, jagged int64 [M]; UNREACHABLE without any."""
    owner = torch.repeat_interleave(torch.arange(offsets.numel() - 1), offsets.diff())
    best = torch.full((offsets.numel() - 1,), UNREACHABLE)
    return best.scatter_reduce_(0, owner, ranks, "amin")


def several_metrics(
    ranks: Tensor, offsets: Tensor, unseen: Tensor, ks: Sequence[int]
) -> dict[str, Tensor]:
    """What each user's ranks are worth.

    Args:
        ranks: int64 [M] from 1, of the relevant items of all users, on the CPU.
        offsets: int64 [U + 1].
        unseen: int64 [U], further relevant items that no model could rank.
        ks: the cut-offs.

    Returns:
        float64 [U] by metric, ``"HR@5"`` and so on.
    """
    users = offsets.numel() - 1
    owner = torch.repeat_interleave(torch.arange(users), offsets.diff())
    total = (offsets.diff() + unseen).double()
    best = best_ranks(ranks, offsets).double()
    # Each one's place among its user's, by rank: how many are found when it is.
    order = torch.argsort(ranks, stable=True)
    order = order[torch.argsort(owner[order], stable=True)]
    place = torch.empty_like(ranks)
    place[order] = torch.arange(ranks.numel()) - offsets[owner] + 1
    found = {}
    for k in ks:
        hit = ranks <= k
        gains = 1 / torch.log2(ranks[hit].double() + 1)
        gained = torch.zeros(users, dtype=torch.float64).index_add_(0, owner[hit], gains)
        ideal = (1 / torch.log2(torch.arange(2, k + 2).double())).cumsum(0)
        found[f"HR@{k}"] = (best <= k).double()
        found[f"NDCG@{k}"] = gained / ideal[total.clamp(max=k).long() - 1]
        found[f"MRR@{k}"] = torch.where(best <= k, 1 / best, 0.0)
        precise = place[hit].double() / ranks[hit]
        summed = torch.zeros(users, dtype=torch.float64).index_add_(0, owner[hit], precise)
        found[f"MAP@{k}"] = summed / total
        found[f"Recall@{k}"] = torch.bincount(owner[hit], minlength=users).double() / total
    return found
