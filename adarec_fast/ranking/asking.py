"""Questions of a recommender beside "what next": known users, similar items, reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops, ragged
from ..config import ConfigError
from ..data import InteractionData, Split, load
from ..data.flat import gather_ranges
from ..data.readers import is_frame
from ..defaults import on_cpu
from ..histories import check_k
from ..models.answers import Recommendations, short
from ..models.base import SequenceModel
from ..models.limits import Limits, best_allowed
from ..models.own_ids import Ids, Question, UnknownItems, holds_text
from ..packed.score_topk import CHUNK_ELEMENTS
from .ranked import Ranking
from .reasons import differences, scores_without

if TYPE_CHECKING:
    from ..data.vocabulary import ExternalId

HeldOut = Literal["valid", "test"]
_SHOWN = 3


class Reason(NamedTuple):
    """What a score owes to one place of the history.

    Attributes:
        item: what stands there.
        difference: the score less what it would be without that place.
    """

    item: Any
    difference: float


class Explanation(NamedTuple):
    """Which items of a history carried an item's score.

    Attributes:
        item: the one explained.
        score: with the whole history.
        reasons: the history's places, the strongest first.

    Example:
        >>> [explanation] = recommender.explain(["sku-1", "sku-9"], ["sku-3"])
        >>> sorted(reason.item for reason in explanation.reasons)
        ['sku-1', 'sku-9']
    """

    item: Any
    score: float
    reasons: list[Reason]

    def __repr__(self) -> str:
        shown = ", ".join(f"{short(r.item)} {r.difference:+.3f}" for r in self.reasons[:_SHOWN])
        more = len(self.reasons) - _SHOWN
        tail = f", and {more} more" if more > 0 else ""
        return f"Explanation({short(self.item)} {self.score:.3f}: {shown}{tail})"


class Asking:
    """What :class:`adarec_fast.Recommender` answers beside ``recommend``."""

    model: SequenceModel
    _unit: Tensor | None = None

    def _answered(
        self, question: Question, k: int, exclude_seen: bool, exclude: Any, allow: Any, mask: Any
    ) -> Ranking:
        raise NotImplementedError

    @on_cpu()
    def recommend_users(
        self,
        data: InteractionData,
        users: Sequence[ExternalId] | None = None,
        k: int = 20,
        *,
        exclude_seen: bool = True,
        exclude: Any = None,
        allow: Any = None,
        mask: Any = None,
        part: HeldOut | None = None,
        unknown_items: UnknownItems = "refuse",
    ) -> Recommendations:
        """The k best items of users of the data, by their own ids.

        Args:
            data: their histories; of the model's catalogue, or of another one whose items the
                model knows by their own ids. A frame is read as :func:`adarec_fast.load` does.
            users: own ids, None for all. Those that filters dropped are answered by their items.
            k, exclude_seen, exclude, allow, mask: as in :meth:`Recommender.recommend`.
            part: ``"test"`` or ``"valid"``: from the history before that target of the
                leave-one-out split; None: from the whole history.
            unknown_items: of the histories and lists. Under ``"ignore"`` users without any item
                that is known are left out.

        Raises:
            DataError: an unknown user or item, or a user without a history.
            ValueError: k or a list out of range.

        Example:
            >>> recommender.recommend_users(data, ["u2", "u1"], k=3).asked
            ['u2', 'u1']
        """
        if is_frame(data):
            data = load(data, min_length=1)
        if not isinstance(data, InteractionData):
            raise ConfigError(f"data is a {type(data).__name__}; it must be InteractionData")
        vocabulary = self.model.item_vocabulary
        if vocabulary is None and data.num_items == self.model.config.num_items:
            vocabulary = data.items
        chosen, names = _of_users(data, users, part)
        question = Question.of_data(data, chosen, vocabulary, unknown_items, names)
        found = self._answered(question, k, exclude_seen, exclude, allow, mask)
        answer: Recommendations = question.answer(*found)
        return answer

    @torch.inference_mode()
    @on_cpu()
    def similar_items(
        self,
        items: Any,
        k: int = 20,
        *,
        exclude: Any = None,
        allow: Any = None,
        mask: Any = None,
        own_ids: bool | None = None,
        unknown_items: UnknownItems = "refuse",
    ) -> Any:
        """The k items whose vectors point most nearly where an item's own does (the cosine).

        The memory takes no part, and no item is similar to itself.

        Args:
            items: one item or a list of them: text for own ids, ints for indices.
            k: 1..num_items.
            exclude, allow, mask, own_ids, unknown_items: as in :meth:`Recommender.recommend`.

        Returns:
            Of one own id a :class:`Recommendation`, of several :class:`Recommendations`, whose
            ``asked`` are the items; of indices a :class:`Ranking`, ``[1, k]`` for one. Scores are
            cosines.

        Raises:
            ConfigError: the model has no vectors that could be compared.
            ValueError: an unknown item, or k out of range.

        Example:
            >>> recommender.similar_items("sku-1", k=2, allow=["sku-2", "sku-3"]).user
            'sku-1'
            >>> len(recommender.similar_items(["sku-1", "sku-2"], k=5))
            2
        """
        model, config = self.model, self.model.config
        check_k(k, config.num_items)
        single = isinstance(items, (str, int, np.integer)) and not isinstance(items, bool)
        given = [items] if single else items
        own = own_ids is True or (
            own_ids is None and model.item_vocabulary is not None and holds_text(given)
        )
        ids = Ids(model.item_vocabulary, own, unknown_items)
        asked = ids.flat(given, "items", config.num_items)
        limits = Limits.of(
            ids, asked.shape[0], config.num_items, exclude=exclude, allow=allow, mask=mask
        )
        ranking = self._nearest(asked, k, limits)
        if not own:
            return ranking
        assert ids.vocabulary is not None
        names = ids.vocabulary.decode(asked)
        question = Question(None, ids, names, single)
        return question.answer(*ranking, column="similar_to")

    @on_cpu()
    def explain(
        self,
        history: Any,
        items: Any = None,
        k: int = 5,
        *,
        own_ids: bool | None = None,
        unknown_items: UnknownItems = "refuse",
    ) -> list[Explanation]:
        """Which items of a history carried the scores of some items; exact, since the model
        answers without each of them; the memory's share included.

        Args:
            history: one history, oldest first: text for own ids, ints for indices.
            items: of which to tell, in the same ids; None: the k best.
            k: how many, where ``items`` is None.
            own_ids, unknown_items: as in :meth:`Recommender.recommend`.

        Raises:
            ValueError: an empty history, or an unknown id.

        Example:
            >>> explanations = recommender.explain(["sku-1", "sku-9"], k=2)
            >>> best = recommender.recommend(["sku-1", "sku-9"], k=2).items
            >>> [explanation.item for explanation in explanations] == best
            True
        """
        model, count = self.model, self.model.config.num_items
        own = own_ids is True or (
            own_ids is None and model.item_vocabulary is not None and holds_text(history)
        )
        ids = Ids(model.item_vocabulary, own, unknown_items)
        read = ids.flat(history, "history", count)
        if not read.numel():
            raise ValueError("history is empty; it must hold one item or more")
        if items is None:
            question = Question((read, torch.tensor([0, read.shape[0]])), ids)
            ranking = self._answered(question, k, True, None, None, None)
            wanted = ranking.items[0][torch.isfinite(ranking.scores[0])].cpu()
        else:
            wanted = ids.flat(items, "items", count)
        told, best = read.tolist(), wanted.tolist()
        found = scores_without(model, told, best)
        if own:
            assert ids.vocabulary is not None
            told, best = ids.vocabulary.decode(told), ids.vocabulary.decode(best)
        explanations = []
        for row, item in enumerate(best):
            owed = zip(told, differences(found)[row].tolist(), strict=True)
            reasons = sorted((Reason(*pair) for pair in owed), key=lambda r: -r.difference)
            explanations.append(Explanation(item, float(found[0, row]), reasons))
        return explanations

    def _nearest(self, asked: Tensor, k: int, limits: Limits) -> Ranking:
        """By the cosine, of int64 ``[B]`` indices."""
        unit = self._directions()
        asked = asked.to(unit.device)
        offsets = torch.arange(asked.shape[0] + 1, device=unit.device)
        left_out = ragged.Jagged(asked, offsets)
        if limits.exclude is not None:
            more = ragged.Jagged(*(tensor.to(unit.device) for tensor in limits.exclude))
            left_out = ragged.joined(left_out, more)
        if limits.allowed is None:
            scores, items = ops.score_topk(
                unit[asked], unit, *left_out, k, backend=self.model.config.backend
            )
            return Ranking(items, scores)
        parts, many = [], max(1, CHUNK_ELEMENTS // unit.shape[0])
        for first in range(0, asked.shape[0], many):
            last = min(first + many, asked.shape[0])
            mask = limits.allowed.rows(first, last, unit.device)
            some = unit[asked[first:last]] @ unit.T
            parts.append(best_allowed(some, mask, *ragged.rows(left_out, first, last), k))
        scores, items = (torch.cat(part) for part in zip(*parts, strict=True))
        return Ranking(items, scores)

    def why_not_similar(self) -> str | None:
        """Why :meth:`similar_items` cannot answer for this model, or None: it can.

        Example:
            >>> recommender.why_not_similar() is None
            True
        """
        if self.model.by_products and self.model.table().shape[1] > 1:
            return None
        return (
            f"similar items: {type(self.model).__name__} has no vectors of items that could be "
            "compared; recommendations for a history of one item say what follows it"
        )

    def _directions(self) -> Tensor:
        """Items' vectors of length one ``[V+1, D']``."""
        why = self.why_not_similar()
        if why is not None:
            raise ConfigError(why)
        if self._unit is None:
            self._unit = F.normalize(self.model.table().detach().float(), dim=1)
        return self._unit


def _of_users(
    data: InteractionData, users: Sequence[ExternalId] | None, part: HeldOut | None
) -> tuple[ragged.Jagged, list[Any]]:
    """Histories of users and the users' ids as the data has them."""
    histories = ragged.Jagged(data.values, data.offsets)
    if part is not None:
        if part not in ("valid", "test"):
            raise ConfigError(f"part={part!r} must be 'valid', 'test' or None")
        histories = ragged.Jagged(*Split(data).inputs(part))
    if users is None:
        # Of a split by time some have no history before a part.
        asked = torch.nonzero(histories.offsets.diff()).flatten()
        sizes = histories.offsets.diff()[asked]
        there = gather_ranges(histories.values, histories.offsets[asked], sizes)
        return ragged.Jagged(*there), data.users.decode(asked)
    if isinstance(users, (str, int)):
        raise ConfigError(f"users={users!r}: give a list of users' ids, such as [{users!r}]")
    rows, names = [], []
    for user, index in zip(users, data.users.find(users).tolist(), strict=True):
        if index >= 0:
            begin, end = histories.offsets[index], histories.offsets[index + 1]
            rows.append(histories.values[begin:end])
            names.append(data.users.decode([index])[0])
            continue
        rows.append(data.history_of(user))  # of one that was dropped, or an error
        assert data.dropped is not None
        names.append(data.dropped.known(user))
        if part is not None:
            raise ConfigError(f"users: {data.dropped.why(user)}; leave out part")
    sizes = torch.tensor([0, *map(len, rows)])
    values = torch.cat(rows) if rows else data.values[:0]
    return ragged.Jagged(values, sizes.cumsum(0)), names
