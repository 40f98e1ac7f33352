"""``recommend`` of every model: histories in any form to the best items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from .. import ragged
from ..config import ModelConfig
from ..data import EvaluationBatch, Vocabulary
from ..defaults import on_cpu
from ..histories import History, check_histories, check_k, check_seen, is_packed, pack_lists
from ..packed.score_topk import CHUNK_ELEMENTS
from ..precision import ranking
from .evaluating import evaluating
from .limits import Allowed, Limits, best_allowed
from .own_ids import Question, UnknownItems

if TYPE_CHECKING:
    from .memory import Memory


class Recommends(nn.Module):
    """The part of :class:`.base.SequenceModel` that answers histories."""

    config: ModelConfig
    item_vocabulary: Vocabulary | None
    memory: Memory | None

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
    @on_cpu()
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
        model: Any = evaluating(self)
        device = model.device
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
        user = model.represent(*read) if model.by_products else None
        if not exclude_seen:
            seen = values[:0], torch.zeros_like(offsets)
        without = ragged.Jagged(*(seen if seen is not None else (values, offsets)))
        if more is not None:
            further = ragged.Jagged(more.values.to(device), more.offsets.to(device))
            without = ragged.joined(without, further)
        with ranking(self.config.precision, device.type):
            scores, items = model._best(user, read, without, k, allowed)
        return question.answer(items, scores, {}) if question.ids.own else (items, scores)

    def _best(
        self, user: Tensor | None, read: ragged.Jagged, without: ragged.Jagged, k: int,
        allowed: Allowed | None, user_from: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Scores and items ``[B, k]``, of all scores of the catalogue, a chunk of users at a time.

        Args:
            user: ``[B, D']`` or ``[B, K, D']``; None where scores are no products.
            read: the histories that were read.
            without: what each user is not to get.
            k: 1..num_items.
            allowed: what may come, None for all.
            user_from: the first of them among the users of ``allowed``.
        """
        model: Any = self
        users, width = read.offsets.shape[0] - 1, self.config.num_items + 1
        device = read.values.device
        everything = torch.ones(1, width, dtype=torch.bool, device=device)
        scores = [read.values.new_empty(0, k, dtype=torch.float32)]
        items = [read.values.new_empty(0, k)]
        many = max(1, CHUNK_ELEMENTS // width)
        for first in range(0, users, many):
            last = min(first + many, users)
            histories = ragged.rows(read, first, last)
            if user is not None:
                found = model.score(user[first:last])
            else:
                found = model.scores(EvaluationBatch.of_nobody(*histories))
            if self.memory is not None:
                self.memory.add_to(found, *histories)
            mask = everything
            if allowed is not None:
                mask = allowed.rows(user_from + first, user_from + last, device)
            best = best_allowed(found, mask, *ragged.rows(without, first, last), k)
            scores.append(best[0])
            items.append(best[1])
        return torch.cat(scores[min(1, users):]), torch.cat(items)
