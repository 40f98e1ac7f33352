"""What the models of this package share: an embedding a item, tied to the output, and noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from .. import ops, ragged, rng
from ..config import ConfigError, ModelConfig
from ..data import Split
from ..data.batches import every_position
from ..histories import (
    History,
    check_histories,
    check_k,
    check_seen,
    is_packed,
    pack_lists,
)
from ..packed.score_topk import CHUNK_ELEMENTS
from ..precision import ranking
from .base import SequenceModel
from .evaluating import evaluating
from .limits import Allowed, Limits, best_allowed
from .own_ids import Question, UnknownItems
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
        everywhere = every_position(self.config.supervision)
        expected = values.shape[0] if everywhere else offsets.shape[0] - 1
        if targets.shape != (expected,):
            raise ValueError(
                f"targets has shape {list(targets.shape)}; supervision={self.config.supervision!r} "
                f"takes [{expected}], one target a {'position' if everywhere else 'history'}"
            )

    @overload
    def recommend(
        self, item_ids: History | Sequence[Sequence[int]], lengths: Tensor | None = None, *,
        k: int = 20, exclude_seen: bool = True, seen: tuple[Tensor, Tensor] | None = None,
        exclude: Any = None, allow: Any = None, mask: Any = None,
        own_ids: Literal[False] | None = None, unknown_items: UnknownItems = "refuse",
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def recommend(
        self, item_ids: Any, lengths: Tensor | None = None, *, k: int = 20,
        exclude_seen: bool = True, seen: tuple[Tensor, Tensor] | None = None, exclude: Any = None,
        allow: Any = None, mask: Any = None, own_ids: bool | None = None,
        unknown_items: UnknownItems = "refuse",
    ) -> Any: ...
    @torch.no_grad()
    def recommend(
        self,
        item_ids: Any,
        lengths: Tensor | None = None,
        *,
        k: int = 20,
        exclude_seen: bool = True,
        seen: tuple[Tensor, Tensor] | None = None,
        exclude: Any = None,
        allow: Any = None,
        mask: Any = None,
        own_ids: bool | None = None,
        unknown_items: UnknownItems = "refuse",
    ) -> Any:
        """The k best items of every user, in evaluation mode whatever the module's mode.

        Who asks often asks a :class:`adarec_fast.Recommender`, which knows users, similar items
        and reasons, too.

        Args:
            item_ids: histories, int64 ``[B, L]`` padded with 0, a jagged pair (values ``[N]``,
                offsets ``[B+1]``), or a list of lists of indices; or in the catalogue's own ids,
                as text, a list of them, a list of lists, or a frame of users, items and times.
            lengths: optional int64 ``[B]`` for the padded form.
            k: how many; at most num_items.
            exclude_seen: leave out what a history holds. If fewer than k items remain, the rest
                of a row scores -inf.
            seen: jagged (values, offsets) of what to leave out instead of the histories.
            exclude, allow, mask, own_ids, unknown_items: as in
                :meth:`adarec_fast.Recommender.recommend`.

        Returns:
            Of indices: items int64 ``[B, k]`` and their scores ``[B, k]``, falling. Of own ids
            what :meth:`adarec_fast.Recommender.recommend` returns.

        Raises:
            ValueError: a history, a list, a mask or ``seen`` that does not fit, naming row and
                value, or a k out of range.
            ConfigError: ``allow`` or ``mask`` while the item table is split over workers.

        Example:
            >>> items, scores, *_ = model.recommend(["sku-1", "sku-9"], k=3)
            >>> items, scores = model.recommend([[1, 9], [4]], k=3)
            >>> items.shape
            torch.Size([2, 3])
        """
        device = self.device
        num_items = self.config.num_items
        check_k(k, num_items)
        question = Question.of(item_ids, self.item_vocabulary, own_ids, unknown_items)
        given = question.histories
        packed: History = given if is_packed(given) else pack_lists(given, device)
        values, offsets = check_histories(packed, lengths, num_items=num_items, crop=None)
        values, offsets = values.to(device), offsets.to(device)
        users = offsets.shape[0] - 1
        if seen is not None:
            check_seen(seen, users, num_items)
        more, allowed = Limits.of(
            question.ids, users, num_items, exclude=exclude, allow=allow, mask=mask
        )
        read = ragged.keep_last(values, offsets, self.config.max_length)
        user = evaluating(self).represent(*read)
        if not exclude_seen:
            seen = values[:0], torch.zeros_like(offsets)
        without = ragged.Jagged(*(seen if seen is not None else (values, offsets)))
        if more is not None:
            further = ragged.Jagged(more.values.to(device), more.offsets.to(device))
            without = ragged.joined(without, further)
        with ranking(self.config.precision, device.type):
            scores, items = self._best(user, read, without, k, allowed)
        return question.answer(items, scores, {}) if question.ids.own else (items, scores)

    def _best(
        self, user: Tensor, read: ragged.Jagged, without: ragged.Jagged, k: int,
        allowed: Allowed | None,
    ) -> tuple[Tensor, Tensor]:
        """Scores and items of users ``[B, D']`` whose histories are ``read``."""
        table, backend = self.item_embedding, self.config.backend
        if allowed is not None:
            if self.sharded is not None:
                raise ConfigError(
                    "allow and mask need the whole item table, which is split over workers here"
                )
            many, parts = max(1, CHUNK_ELEMENTS // (self.config.num_items + 1)), []
            for first in range(0, user.shape[0], many):
                last = min(first + many, user.shape[0])
                all_scores = self.score(user[first:last])
                if self.memory is not None:
                    self.memory.add_to(all_scores, *ragged.rows(read, first, last))
                mask = allowed.rows(first, last, user.device)
                some = ragged.rows(without, first, last)
                parts.append(best_allowed(all_scores, mask, *some, k))
            scores, items = (torch.cat(part) for part in zip(*parts, strict=True))
            return scores, items
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
            item_ids, lengths, num_items=config.num_items,
            crop=None if whole else config.max_length,
        )  # fmt: skip
