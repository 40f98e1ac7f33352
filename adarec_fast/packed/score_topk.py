"""Scores of a chunk of users at a time, seen items masked, the k best kept."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ragged

# Scores held at once: at most so many numbers, 64 MiB in float32.
CHUNK_ELEMENTS = 1 << 24


def ordered(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest of each row, equal ones in the order of their columns."""
    least = torch.topk(scores, k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, equal = scores > least, scores == least
    room = k - above.sum(-1, keepdim=True)
    chosen = (above | (equal & (equal.cumsum(-1) <= room))).nonzero()[:, 1].view(-1, k)
    best = torch.sort(scores.gather(1, chosen), dim=-1, descending=True, stable=True)
    return best.values, chosen.gather(1, best.indices)


def fwd(
    users: Tensor, items: Tensor, seen: Tensor, seen_offsets: Tensor, k: int, seen_score: float
) -> tuple[Tensor, Tensor]:
    """``score_topk_fwd`` of the op's schema."""
    batch = users.shape[0]
    owner = ragged.sequence_ids(seen_offsets, seen.shape[0])
    scores = users.new_empty(batch, k)
    best = torch.empty(batch, k, dtype=torch.int64, device=users.device)
    step = max(1, CHUNK_ELEMENTS // items.shape[0])
    for start in range(0, batch, step):
        stop = min(batch, start + step)
        chunk = users[start:stop] @ items.T
        mine = (owner >= start) & (owner < stop)
        chunk[owner[mine] - start, seen[mine]] = seen_score
        scores[start:stop], order = ordered(chunk[:, 1:], k)
        best[start:stop] = order + 1
    return scores, best
