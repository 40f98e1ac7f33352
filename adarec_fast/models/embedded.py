"""What the models of this package share: an embedding a item, tied to the output, and noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import ops, ragged, rng
from ..config import ConfigError, ModelConfig
from ..data import ItemFeatures, Split
from ..data.batches import every_position
from ..histories import (
    History,
    check_histories,
)
from ..ops.score_topk import best_of_several
from .base import SequenceModel
from .featured import FeaturedItems
from .limits import Allowed
from .soft_targets import SoftTargets

if TYPE_CHECKING:
    from ..distributed import Workers
    from ..distributed.items import ShardedItems


class EmbeddingModel(SequenceModel):
    """A :class:`SequenceModel` whose items are an ``nn.Embedding`` ``[V+1, D]``, tied.

    Args:
        config: the configuration.
        size: D.

    Attributes:
        item_embedding: the table, or a worker's part of it.
        noise_seed: int64 ``[1]``, of dropout and noise; advances by one a step.
        soft_targets: while a model with ``transition_smoothing`` is trained.
    """

    noise_seed: Tensor

    def __init__(self, config: ModelConfig, size: int) -> None:
        super().__init__(config)
        self.soft_targets: SoftTargets | None = None
        self.item_embedding: nn.Embedding | ShardedItems = nn.Embedding(
            config.num_items + 1, size, padding_idx=0, dtype=torch.float32
        )

    def _add_noise_seed(self) -> None:
        """The buffer, at its place in ``state_dict``."""
        self.register_buffer("noise_seed", rng.spread_seed(self.config.seed))

    @property
    def device(self) -> torch.device:
        items = self.item_embedding
        return items.ids.device if isinstance(items, FeaturedItems) else items.weight.device

    @property
    def ranked_items(self) -> int:
        """The items that the table has in the module's mode: in training only those that training
        has, where they have features."""
        items = self.item_embedding
        if isinstance(items, FeaturedItems) and self.training:
            return items.trained
        return self.config.num_items

    def join_features(self, features: ItemFeatures) -> None:
        if not self.takes_features or not isinstance(self.item_embedding, nn.Embedding):
            super().join_features(features)
        if len(features.rows) != self.config.num_items:
            raise ConfigError(
                f"features are of {len(features.rows):,} items, the model has "
                f"{self.config.num_items:,}"
            )
        config = self.config
        own = self.item_embedding.weight
        made = FeaturedItems(own, features, config.feature_net, config.id_dropout, config.seed)
        # On the meta device it has shapes to compare, and nothing to move there.
        self.item_embedding = (made if own.is_meta else made.to(own.device)).train(self.training)
        self.item_features = features

    def table(self) -> Tensor:
        return self.item_embedding.weight

    @property
    def sharded(self) -> ShardedItems | None:
        return None if isinstance(self.item_embedding, nn.Embedding) else self.item_embedding

    def begin_training(self, split: Split) -> None:
        if getattr(self.config, "transition_smoothing", 0.0):
            counted = SoftTargets(*split.inputs("train"), self.config.num_items)
            self.soft_targets = counted.to(self.device)

    def split_items(self, workers: Workers) -> None:
        smoothed = getattr(self.config, "transition_smoothing", 0.0)
        if smoothed:
            raise ConfigError(
                f"transition_smoothing={smoothed} needs the vectors of items that other workers "
                "hold; leave it off, or do not split the items (--no-shard-items)"
            )
        if self.item_features is not None:
            raise ConfigError(
                "shard_items=True: items with features are not split; leave it off "
                "(--no-shard-items)"
            )
        from ..distributed.items import ShardedItems

        table = self.item_embedding.weight.detach()
        self.item_embedding = ShardedItems(table, workers).train(self.training)

    def forward(self, item_ids: History, lengths: Tensor | None = None) -> Any:
        """Users ``[B, D']``; in training mode with dropout.

        Args:
            item_ids: int64 ``[B, L]`` padded with 0, or a jagged pair (values ``[N]``, offsets
                ``[B+1]``). Of longer histories the last items are read, as many as the model takes.
            lengths: optional int64 ``[B]`` for the padded form.

        Raises:
            ValueError: a shape, dtype, length or id that does not fit, naming the argument.
        """
        return self.represent(*self._histories(item_ids, lengths))

    def _next_seed(self, place: Tensor | None = None) -> Tensor | None:
        if not self.training:
            return None
        seed = rng.at_place(self.noise_seed, place)
        self.noise_seed += 1
        return seed

    def _check_targets(self, values: Tensor, offsets: Tensor, targets: Tensor) -> None:
        everywhere = every_position(self.config.supervision)
        expected = values.shape[0] if everywhere else offsets.shape[0] - 1
        if targets.shape != (expected,):
            raise ValueError(
                f"targets has shape {list(targets.shape)}; supervision={self.config.supervision!r} "
                f"takes [{expected}], one target a {'position' if everywhere else 'history'}"
            )

    def _best(
        self, user: Tensor | None, read: ragged.Jagged, without: ragged.Jagged, k: int,
        allowed: Allowed | None, user_from: int = 0,
    ) -> tuple[Tensor, Tensor]:
        table, backend = self.item_embedding, self.config.backend
        if allowed is not None and self.sharded is not None:
            raise ConfigError(
                "allow and mask need the whole item table, which is split over workers here"
            )
        several = user is not None and user.dim() == 3
        if user is None or allowed is not None or (several and self.memory is not None):
            return super()._best(user, read, without, k, allowed, user_from)
        if several:
            return best_of_several(user, self.table(), *without, k, backend=backend)
        if self.memory is not None:
            return ops.memory_topk(
                user, self.table(), *read, *without, self.memory.reads(), k,
                max_length=self.config.max_length, backend=backend,
            )  # fmt: skip
        if isinstance(table, nn.Embedding):
            return ops.score_topk(user, self.table(), *without, k, backend=backend)
        return table.topk(user, *without, k, backend)

    def _histories(
        self, item_ids: History, lengths: Tensor | None, *, aligned: bool = False
    ) -> ragged.Jagged:
        """Checked, and cut to ``max_length``; ``aligned``: targets stand beside every item, so
        that a graph, which cannot complain, must not move one against the other."""
        config = self.config
        whole = aligned and not isinstance(item_ids, Tensor) and torch.compiler.is_compiling()
        return check_histories(
            item_ids, lengths, num_items=self.ranked_items,
            crop=None if whole else config.max_length,
        )  # fmt: skip
