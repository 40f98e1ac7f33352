"""Two baselines without learning, ranked by the same code as the models.

Both learn from training histories alone and are scorers of :mod:`adarec_fast.ranking.evaluation`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..data import EvaluationBatch, Split


class Popularity:
    """Scores every item by its number of training interactions, the same for everybody.

    Args:
        split: the leave-one-out split to learn from.
    """

    name = "popularity"

    def __init__(self, split: Split) -> None:
        self._counts = _item_counts(split)

    def scores(self, batch: EvaluationBatch) -> Tensor:
        """float64 [B, num_items + 1]."""
        counts = self._counts.to(batch.targets.device)
        return counts.repeat(batch.targets.numel(), 1)


class MarkovChain:
    """A first-order chain: how often the training histories go from the last item to another.

    Score of item j after item i: the count of i → j, plus popularity scaled below 1, so that
    popularity orders what the counts leave equal (most of the catalogue).

    Transitions are kept as flat sorted pairs, so memory grows with the interactions, and scores
    exist for a chunk of users only.

    Args:
        split: the leave-one-out split to learn from.
    """

    name = "markov chain"

    def __init__(self, split: Split) -> None:
        values, offsets = split.inputs("train")
        width = split.num_items + 1
        ends = torch.zeros(values.numel(), dtype=torch.bool)
        ends[offsets[1:] - 1] = True
        inside = ~ends[:-1]
        pairs = (values[:-1] * width + values[1:])[inside]
        unique, counts = torch.unique(pairs, return_counts=True)  # sorted
        self._next = unique % width
        self._counts = counts.double()
        self._starts = torch.searchsorted(unique, torch.arange(width + 1) * width)
        popularity = _item_counts(split)
        self._popularity = popularity / (popularity.max() + 1)

    def scores(self, batch: EvaluationBatch) -> Tensor:
        """float64 [B, num_items + 1]."""
        device = batch.targets.device
        last = batch.item_ids[batch.offsets[1:] - 1]
        starts = self._starts.to(device)
        begin, lengths = starts[last], starts[last + 1] - starts[last]
        rows = torch.repeat_interleave(torch.arange(last.numel(), device=device), lengths)
        first = lengths.cumsum(0) - lengths
        places = begin[rows] + torch.arange(rows.numel(), device=device) - first[rows]
        scores = self._popularity.to(device).repeat(last.numel(), 1)
        scores[rows, self._next.to(device)[places]] += self._counts.to(device)[places]
        return scores


def _item_counts(split: Split) -> Tensor:
    """float64 [num_items + 1], interactions of each item in the training histories."""
    values, _ = split.inputs("train")
    return torch.bincount(values, minlength=split.num_items + 1).double()
