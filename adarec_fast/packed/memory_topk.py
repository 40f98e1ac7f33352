"""Scores of a chunk of users at a time, the memory added, seen items masked, the k best kept."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ragged
from .score_topk import CHUNK_ELEMENTS, ordered


def history_sums(
    users: int,
    values: Tensor,
    offsets: Tensor,
    rows: Tensor,
    neighbours: Tensor,
    weights: Tensor,
    widest: int,
    decay: float,
) -> tuple[Tensor, Tensor]:
    """S of every user and item, and where it may be more than zero.

    An item's sum runs over the history from its oldest item on; see :func:`ops.memory_topk`.

    Returns:
        S ``[users * (V+1)]``, and int64 places in it, with repeats.
    """
    tokens, width = values.shape[0], rows.shape[0] - 1
    sums = torch.zeros(users * width, dtype=weights.dtype, device=values.device)
    if not neighbours.shape[0]:
        return sums, values[:0]
    user = ragged.sequence_ids(offsets, tokens)
    begin = rows[values]
    lane = torch.arange(widest, device=values.device)
    # Tokens behind the last history, and lanes behind an item's last neighbour, count for nothing.
    there = (lane < (rows[values + 1] - begin)[:, None]) & (user < users)[:, None]
    at = (begin[:, None] + lane).clamp(max=neighbours.shape[0] - 1)
    steps = ragged.from_end(offsets, tokens).to(weights.dtype)
    fading = torch.tensor(decay, dtype=weights.dtype, device=values.device) ** steps
    added = torch.where(there, weights[at] * fading[:, None], 0.0)
    places = torch.where(there, user[:, None] * width + neighbours[at].long(), 0).flatten()
    return sums.index_add_(0, places, added.flatten()), places


def add_remembered(
    scores: Tensor,
    values: Tensor,
    offsets: Tensor,
    rows: Tensor,
    neighbours: Tensor,
    weights: Tensor,
    widest: int,
    alpha: float,
    gamma: float,
    decay: float,
) -> None:
    """Add alpha log(1 + gamma S) to contiguous scores ``[B, V+1]``, in place."""
    sums, places = history_sums(
        scores.shape[0], values, offsets, rows, neighbours, weights, widest, decay
    )
    flat = scores.view(-1)
    # Repeats of a place write the same value.
    flat[places] = flat[places] + alpha * torch.log1p(gamma * sums[places]).to(scores.dtype)


def fwd(
    users: Tensor,
    items: Tensor,
    values: Tensor,
    offsets: Tensor,
    seen: Tensor,
    seen_offsets: Tensor,
    rows: Tensor,
    neighbours: Tensor,
    weights: Tensor,
    widest: int,
    k: int,
    alpha: float,
    gamma: float,
    decay: float,
) -> tuple[Tensor, Tensor]:
    """``memory_topk_fwd`` of the op's schema, in float32 whatever comes in, or in float64."""
    kind, given = torch.promote_types(users.dtype, torch.float32), users.dtype
    users, items, weights = users.to(kind), items.to(kind), weights.to(kind)
    batch = users.shape[0]
    owner = ragged.sequence_ids(seen_offsets, seen.shape[0])
    scores = users.new_empty(batch, k)
    best = torch.empty(batch, k, dtype=torch.int64, device=users.device)
    step = max(1, CHUNK_ELEMENTS // items.shape[0])
    ends = offsets.tolist()
    for start in range(0, batch, step):
        stop = min(batch, start + step)
        chunk = users[start:stop] @ items.T
        add_remembered(
            chunk, values[ends[start] : ends[stop]], offsets[start : stop + 1] - ends[start],
            rows, neighbours, weights, widest, alpha, gamma, decay,
        )  # fmt: skip
        mine = (owner >= start) & (owner < stop)
        chunk[owner[mine] - start, seen[mine]] = float("-inf")
        scores[start:stop], order = ordered(chunk[:, 1:], k)
        best[start:stop] = order + 1
    return scores.to(given), best
