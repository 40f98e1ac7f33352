"""What the models of this package share: an embedding a item, tied to the output, and noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import ops, ragged, rng
from ..config import ConfigError, ModelConfig
from ..data import Split
from ..defaults import on_cpu
from ..histories import (
    History,
    check_histories,
    check_k,
    check_seen,
    is_packed,
    pack_lists,
)
from ..precision import ranking
from .base import SequenceModel
from .evaluating import evaluating
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
        return self.item_embedding.weight.device

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
        from ..distributed.items import ShardedItems

        table = self.item_embedding.weight.detach()
        self.item_embedding = ShardedItems(table, workers).train(self.training)

    def _next_seed(self, place: Tensor | None = None) -> Tensor | None:
        if not self.training:
            return None
        seed = rng.at_place(self.noise_seed, place)
        self.noise_seed += 1
        return seed

    def _check_targets(self, values: Tensor, offsets: Tensor, targets: Tensor) -> None:
        everywhere = self.config.supervision == "all"
        expected = values.shape[0] if everywhere else offsets.shape[0] - 1
        if targets.shape != (expected,):
            raise ValueError(
                f"targets has shape {list(targets.shape)}; supervision={self.config.supervision!r} "
                f"takes [{expected}], one target a {'position' if everywhere else 'history'}"
            )

    @on_cpu()
    @torch.no_grad()
    def recommend(
        self,
        item_ids: History | Sequence[Sequence[int]],
        lengths: Tensor | None = None,
        *,
        k: int = 20,
        exclude_seen: bool = True,
        seen: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The k best items of every user, in evaluation mode whatever the module's mode.

        Who asks often asks a :class:`adarec_fast.Recommender`.

        Args:
            item_ids: histories, int64 ``[B, L]`` padded with 0, a jagged pair (values ``[N]``,
                offsets ``[B+1]``), or a list of lists of ids.
            lengths: optional int64 ``[B]`` for the padded form.
            k: how many; at most num_items.
            exclude_seen: leave out what a history holds. If fewer than k items remain, the rest
                of a row scores -inf.
            seen: jagged (values, offsets) of what to leave out instead of the histories.

        Returns:
            items int64 ``[B, k]`` and their scores ``[B, k]``, falling.

        Raises:
            ValueError: a history or ``seen`` that does not fit, naming row and value, or a k out
                of range.
        """
        device = self.device
        num_items = self.config.num_items
        check_k(k, num_items)
        packed: History = item_ids if is_packed(item_ids) else pack_lists(item_ids, device)
        values, offsets = check_histories(packed, lengths, num_items=num_items, crop=None)
        if seen is not None:
            check_seen(seen, offsets.shape[0] - 1, num_items)
        read = ragged.keep_last(values, offsets, self.config.max_length)
        user = evaluating(self).represent(*read)
        if not exclude_seen:
            seen = values[:0], torch.zeros_like(offsets)
        mask, mask_offsets = seen if seen is not None else (values, offsets)
        table, backend = self.item_embedding, self.config.backend
        with ranking(self.config.precision, device.type):
            if self.memory is not None:
                scores, items = ops.memory_topk(
                    user, self.table(), *read, mask, mask_offsets, self.memory.reads(), k,
                    max_length=self.config.max_length, backend=backend,
                )  # fmt: skip
            elif isinstance(table, nn.Embedding):
                scores, items = ops.score_topk(
                    user, table.weight, mask, mask_offsets, k, backend=backend
                )
            else:
                scores, items = table.topk(user, mask, mask_offsets, k, backend)
        return items, scores

    def _histories(
        self, item_ids: History, lengths: Tensor | None, *, aligned: bool = False
    ) -> ragged.Jagged:
        """Checked, and cut to ``max_length``; ``aligned``: targets stand beside every item, so
        that a graph, which cannot complain, must not move one against the other."""
        config = self.config
        whole = aligned and not isinstance(item_ids, Tensor) and torch.compiler.is_compiling()
        return check_histories(
            item_ids, lengths, num_items=config.num_items,
            crop=None if whole else config.max_length,
        )  # fmt: skip
