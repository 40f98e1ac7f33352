"""Systems that count and learn no weight: popularity, a Markov chain, and windowed co-occurrence.

Each is fitted by :meth:`SequenceModel.prepare` from the training histories alone, in seconds.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ... import ragged
from ...config import ModelConfig
from ...data import EvaluationBatch, Split
from ..base import SequenceModel
from ..pretrained import Pretrained
from .config import CountingConfig, MarkovConfig, PopularityConfig


class Recipe(NamedTuple):
    """How pairs are counted, scaled and summed; the fields are those of :class:`CountingConfig`."""

    window: int
    transition: float
    backward: float
    decay: float
    row_exponent: float
    popularity_exponent: float
    prior: float


class Popularity(Pretrained, SequenceModel):
    """Scores every item by its number of training interactions, the same for everybody.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: ``num_items`` and the like.
    """

    config_type: ClassVar[type[ModelConfig]] = PopularityConfig
    popularity: Tensor

    def __init__(self, config: PopularityConfig | None = None, **options: Any) -> None:
        super().__init__(_config(PopularityConfig, config, options))
        self.register_buffer("popularity", torch.zeros(self.config.num_items + 1))

    def prepare(self, split: Split) -> None:
        self.popularity.copy_(_popularity(split))

    def represent(self, values: Tensor, offsets: Tensor) -> Tensor:
        """A one for every user, ``[B, 1]``."""
        return self.popularity.new_ones(offsets.shape[0] - 1, 1)

    def table(self) -> Tensor:
        """The counts, ``[V+1, 1]``."""
        return self.popularity[:, None]


class Counting(Pretrained, SequenceModel):
    """Item-to-item counts of a window, summed over a history that fades.

    A pair (i, then j at distance d <= ``window``) of a training history adds 1/d to C[i, j] (and
    ``transition`` where d = 1) and ``backward``/d to C[j, i]. With P the items' popularity

        R[i, j] = C[i, j] / (sum_j C[i, j])^row_exponent / P[j]^popularity_exponent
        score of j = sum_s decay^s R[i_{n-s}, j]

    over the history i_1..i_n, and ``prior`` P[j] / (max P + 1). Of a row of R the ``neighbours``
    largest entries are kept. Memory is ``[V+1, M]`` of each of two tables.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: fields of :class:`CountingConfig`, e.g. ``num_items=12101, window=5``.

    Attributes:
        neighbours: int32 ``[V+1, M]``, the items of a row of R, falling by weight; 0: none.
        weights: float32 ``[V+1, M]``, their entries.
    """

    config_type: ClassVar[type[ModelConfig]] = CountingConfig
    neighbours: Tensor
    weights: Tensor
    popularity: Tensor

    def __init__(self, config: ModelConfig | None = None, **options: Any) -> None:
        made = _config(self.config_type, config, options)
        super().__init__(made)
        self.recipe = self._recipe(made)
        rows, kept = made.num_items + 1, min(made.neighbours, made.num_items)
        self.register_buffer("neighbours", torch.zeros(rows, kept, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(rows, kept))
        self.register_buffer("popularity", torch.zeros(rows))

    @staticmethod
    def _recipe(config: Any) -> Recipe:
        return Recipe(*(getattr(config, name) for name in Recipe._fields))

    def prepare(self, split: Split) -> None:
        rows, items, weights = self._scaled_counts(split)
        order = torch.argsort(weights, descending=True, stable=True)
        order = order[torch.argsort(rows[order], stable=True)]
        rows, items, weights = rows[order], items[order], weights[order]
        starts = torch.searchsorted(rows, torch.arange(self.config.num_items + 1))
        place = torch.arange(rows.numel()) - starts[rows]
        kept = place < self.weights.shape[1]
        self.neighbours.zero_()[rows[kept], place[kept]] = items[kept].int()
        self.weights.zero_()[rows[kept], place[kept]] = weights[kept].float()
        popularity = _popularity(split)
        # Below the prior: in a chain of counts it orders only what the counts leave equal.
        self.popularity.copy_(popularity / (popularity.max() + 1) * self.recipe.prior)

    def _scaled_counts(self, split: Split) -> tuple[Tensor, Tensor, Tensor]:
        """R's entries: row, column, and the weight in float64, by row and column."""
        recipe = self.recipe
        values, offsets = split.inputs("train")
        width = self.config.num_items + 1
        user = torch.repeat_interleave(torch.arange(offsets.numel() - 1), offsets.diff())
        pairs, weights = [], []
        for distance in range(1, min(recipe.window, values.numel() - 1) + 1):
            same = user[:-distance] == user[distance:]
            first, then = values[:-distance][same], values[distance:][same]
            forward = 1 / distance + (recipe.transition if distance == 1 else 0.0)
            for one, other, weight in (
                (first, then, forward), (then, first, recipe.backward / distance)
            ):  # fmt: skip
                if weight:
                    pairs.append(one * width + other)
                    weights.append(torch.full(one.shape, weight, dtype=torch.float64))
        pairs = pairs or [values[:0]]
        weights = weights or [torch.zeros(0, dtype=torch.float64)]
        unique, which = torch.unique(torch.cat(pairs), return_inverse=True)
        counts = torch.zeros(unique.shape, dtype=torch.float64)
        counts.index_add_(0, which, torch.cat(weights))
        rows, items = unique // width, unique % width
        sums = torch.zeros(width, dtype=torch.float64).index_add_(0, rows, counts)
        counts /= sums[rows] ** recipe.row_exponent
        counts /= _popularity(split)[items].clamp(min=1) ** recipe.popularity_exponent
        return rows, items, counts

    def scores(self, batch: EvaluationBatch) -> Tensor:
        """float32 ``[B, V+1]``."""
        values, offsets = batch.item_ids, batch.offsets
        users, width = offsets.shape[0] - 1, self.popularity.shape[0]
        user = ragged.sequence_ids(offsets, values.shape[0])
        decay = torch.tensor(self.recipe.decay, device=values.device)
        fading = decay ** ragged.from_end(offsets, values.shape[0])
        found = self.popularity.repeat(users, 1)
        places = user[:, None] * width + self.neighbours[values].long()
        added = self.weights[values] * fading[:, None]
        found.view(-1).index_add_(0, places.flatten(), added.flatten())
        found[:, 0] = float("-inf")
        return found


class MarkovChain(Counting):
    """:class:`Counting` of adjacent pairs alone, read from the last item.

    Score of j after i: the count of i then j; popularity orders what the counts leave equal.
    """

    config_type: ClassVar[type[ModelConfig]] = MarkovConfig

    @staticmethod
    def _recipe(config: Any) -> Recipe:
        return Recipe(
            window=1, transition=0.0, backward=0.0, decay=0.0, row_exponent=0.0,
            popularity_exponent=0.0, prior=1.0,
        )  # fmt: skip


def _config(kind: type[ModelConfig], config: ModelConfig | None, options: dict[str, Any]) -> Any:
    if config is None:
        return kind.create(**options)
    return config.replace(**options) if options else config


def _popularity(split: Split) -> Tensor:
    """float64 ``[V+1]``, interactions of each item in the training histories."""
    values, _ = split.inputs("train")
    return torch.bincount(values, minlength=split.num_items + 1).double()
