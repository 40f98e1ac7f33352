"""Systems that count and learn no weight: popularity, a Markov chain, and windowed co-occurrence.

Each is fitted by :meth:`SequenceModel.prepare` from the training histories alone, in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ... import ragged
from ...config import ModelConfig
from ...data import EvaluationBatch, Split
from ..base import SequenceModel
from ..pretrained import Pretrained
from ..transitions import Recipe, popularity, transitions
from .config import CountingConfig, MarkovConfig, PopularityConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..options import CountingOptions, PopularityOptions


class Popularity(Pretrained, SequenceModel):
    """Scores every item by its number of training interactions, the same for everybody.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: ``num_items`` and the like.
    """

    config_type: ClassVar[type[ModelConfig]] = PopularityConfig
    popularity: Tensor

    def __init__(
        self, config: PopularityConfig | None = None, **options: Unpack[PopularityOptions]
    ) -> None:
        super().__init__(_config(PopularityConfig, config, options))
        counts = torch.zeros(self.config.num_items + 1, dtype=torch.float32)
        self.register_buffer("popularity", counts)

    def prepare(self, split: Split) -> None:
        self.popularity.copy_(popularity(split.inputs("train")[0], self.config.num_items))

    def represent(self, values: Tensor, offsets: Tensor) -> Tensor:
        """A one for every user, ``[B, 1]``."""
        return self.popularity.new_ones(offsets.shape[0] - 1, 1)

    def table(self) -> Tensor:
        """The counts, ``[V+1, 1]``."""
        return self.popularity[:, None]


class Counting(Pretrained, SequenceModel):
    """Item-to-item counts of a window, summed over a history that fades.

    With R the training histories' :mod:`..transitions`, of which the ``neighbours`` largest entries
    of a row are kept, over the history i_1..i_n

        score of j = sum_s decay^s R[i_{n-s}, j]

    and ``prior`` P[j] / (max P + 1). Memory is ``[V+1, M]`` of each of two tables.

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

    def __init__(
        self, config: ModelConfig | None = None, **options: Unpack[CountingOptions]
    ) -> None:
        made = _config(self.config_type, config, options)
        super().__init__(made)
        self.recipe, self.decay, self.prior = self._recipe(made)
        rows, kept = made.num_items + 1, min(made.neighbours, made.num_items)
        self.register_buffer("neighbours", torch.zeros(rows, kept, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(rows, kept, dtype=torch.float32))
        self.register_buffer("popularity", torch.zeros(rows, dtype=torch.float32))

    @staticmethod
    def _recipe(config: Any) -> tuple[Recipe, float, float]:
        """How to count and to scale; decay; prior."""
        recipe = Recipe(*(getattr(config, name) for name in Recipe._fields))
        return recipe, config.decay, config.prior

    def prepare(self, split: Split) -> None:
        values, offsets = split.inputs("train")
        wide = self.weights.shape[1]
        found = transitions(values, offsets, self.config.num_items, self.recipe, wide)
        rows = ragged.sequence_ids(found.rows, found.items.shape[0])
        # By falling weight, as saved models always had them.
        order = torch.argsort(found.weights, descending=True, stable=True)
        order = order[torch.argsort(rows[order], stable=True)]
        place = torch.arange(rows.numel()) - found.rows[rows]
        self.neighbours.zero_()[rows, place] = found.items[order]
        self.weights.zero_()[rows, place] = found.weights[order]
        seen = popularity(values, self.config.num_items)
        # Below the prior: in a chain of counts it orders only what the counts leave equal.
        self.popularity.copy_(seen / (seen.max() + 1) * self.prior)

    def scores(self, batch: EvaluationBatch) -> Tensor:
        """float32 ``[B, V+1]``."""
        values, offsets = batch.item_ids, batch.offsets
        users, width = offsets.shape[0] - 1, self.popularity.shape[0]
        user = ragged.sequence_ids(offsets, values.shape[0])
        decay = self.weights.new_tensor(self.decay)
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
    def _recipe(config: Any) -> tuple[Recipe, float, float]:
        return Recipe(1, 0.0, 0.0, 0.0, 0.0), 0.0, 1.0


def _config(
    kind: type[ModelConfig], config: ModelConfig | None, options: Mapping[str, Any]
) -> Any:
    if config is None:
        return kind.create(**options)
    return config.replace(**options) if options else config

