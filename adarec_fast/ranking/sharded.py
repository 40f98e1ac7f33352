"""Ranks of targets in a catalogue that is split over workers."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..data import EvaluationBatch
from ..distributed.items import ShardedItems
from .ranks import SeenMask, candidates_before, mask_unreachable, seen_rows


def sharded_target_ranks(
    scores: Tensor, batch: EvaluationBatch, seen_mask: SeenMask, items: ShardedItems
) -> Tensor:
    """:func:`.ranks.target_ranks` of scores ``[B, n + 1]`` of each worker's items.

    Every worker counts the candidates before the target among its own.
    """
    scores[:, 0] = float("-inf")
    rows = seen_rows(batch)
    if seen_mask != "off":
        # An item of another worker becomes column 0, which is no candidate.
        value = float("-inf") if seen_mask == "neg-inf" else 0.0
        scores[rows, items.local(batch.seen_values)] = value
        scores[:, 0] = float("-inf")
    here = items.local(batch.targets)
    target = torch.where(here > 0, scores.gather(1, here[:, None])[:, 0], float("-inf"))
    dist.all_reduce(target, dist.ReduceOp.MAX, group=items.workers.group)
    # Columns of the workers before the target's lie before it, those of the workers after behind.
    columns = torch.arange(scores.shape[1], device=scores.device)
    column = batch.targets - items.begin
    before = candidates_before(scores, target[:, None], column[:, None], columns)
    counts = torch.stack([before, scores.amax(1).isnan().long()])
    counts = items.workers.sum(counts)
    rank = torch.where(counts[1] > 0, 0, 1 + counts[0])
    return mask_unreachable(rank, rows, batch, seen_mask)
