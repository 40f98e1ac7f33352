"""Recommendations in a catalogue's own ids: to read, to go through, and as a frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError
from ..data import DataError
from ..data.tables import import_polars

if TYPE_CHECKING:
    from ..data import Vocabulary
    from ..data.vocabulary import ExternalId

FrameKind = Literal["polars", "pandas"]
COLUMNS = ("user", "item", "score", "rank")
_SHOWN = 4  # items, and lines of users
_LONGEST = 24  # characters of an id that is shown


class Recommendation(NamedTuple):
    """What one was recommended, best first; ids are the catalogue's own.

    Attributes:
        items: fewer than k where no more may come.
        scores: of the items, falling.
        diagnostics: what the model tells of the user, by name; of an ADARec ``depth``.
        user: who, or None for a history.

    Example:
        >>> items, scores, *_ = recommender.recommend(["sku-1", "sku-9"], k=3)
        >>> len(items) == len(scores) == 3
        True
    """

    items: list[Any]
    scores: list[float]
    diagnostics: Mapping[str, float] = {}
    user: ExternalId | None = None

    def __repr__(self) -> str:
        who = "" if self.user is None else f"{short(self.user)}: "
        return f"Recommendation({who}{_listed(self)})"


class Recommendations(Sequence[Recommendation]):
    """What each of B users was recommended; a sequence of :class:`Recommendation`.

    Attributes:
        asked: the users' own ids, in order, or of similar items the items asked for; None for
            histories of nobody.
        ignored: ids of the question that nobody knows, under ``unknown_items="ignore"``.
        indices: int64 ``[B, k]``, the items as the model counts them.
        raw_scores: ``[B, k]``, falling; -inf behind the last item that may come.
        diagnostics: what the model tells of each user, ``[B]`` by name.

    Example:
        >>> found = recommender.recommend([["sku-1", "sku-9"], ["sku-4"]], k=3)
        >>> len(found), len(found[0].items)
        (2, 3)
        >>> found.to_frame("pandas").columns.tolist()
        ['user', 'item', 'score', 'rank']
    """

    def __init__(
        self,
        indices: Tensor,
        raw_scores: Tensor,
        diagnostics: Mapping[str, Tensor],
        vocabulary: Vocabulary,
        *,
        asked: list[Any] | None = None,
        ignored: Sequence[Any] = (),
        column: str = "user",
    ) -> None:
        self.indices, self.raw_scores = indices.cpu(), raw_scores.float().cpu()
        self.diagnostics = {name: tensor.cpu() for name, tensor in diagnostics.items()}
        self.asked, self.ignored = asked, list(ignored)
        self._vocabulary, self._column = vocabulary, column
        self._left = torch.isfinite(self.raw_scores)

    @property
    def items(self) -> list[list[Any]]:
        """Own ids, a list for every user.

        Example:
            >>> recommender.recommend([["sku-1"], ["sku-4"]], k=2).items[1] == (
            ...     recommender.recommend(["sku-4"], k=2).items)
            True
        """
        return [answer.items for answer in self]

    @property
    def scores(self) -> list[list[float]]:
        """Of the items, a list for every user.

        Example:
            >>> [len(row) for row in recommender.recommend([["sku-1"], ["sku-4"]], k=2).scores]
            [2, 2]
        """
        return [answer.scores for answer in self]

    def to_frame(self, kind: FrameKind | None = None) -> Any:
        """A frame of the columns user, item, score (float32) and rank (int32, from 1), a user's
        rows together; a history of nobody has its number for user.

        Args:
            kind: ``"polars"`` or ``"pandas"``; None: polars if it is there, else pandas.

        Raises:
            ConfigError: another kind.
            DataError: it is not installed.

        Example:
            >>> frame = recommender.recommend([["sku-1"], ["sku-4"]], k=2).to_frame("pandas")
            >>> frame["rank"].tolist()
            [1, 2, 1, 2]
        """
        return frame_maker(kind)(self.columns())

    def columns(self) -> dict[str, Any]:
        """What :meth:`to_frame` makes a frame of, by the names of the columns.

        Example:
            >>> list(recommender.recommend([["sku-1"]], k=2).columns())
            ['user', 'item', 'score', 'rank']
        """
        left, width = self._left, self.indices.shape[1]
        rows = torch.arange(len(self))[:, None].expand(-1, width)[left].tolist()
        rank = torch.arange(1, width + 1, dtype=torch.int32).expand(len(self), -1)
        asked = self.asked
        return {
            self._column: np.array(rows, np.int64) if asked is None else [asked[r] for r in rows],
            "item": self._vocabulary.decode(self.indices[left]),
            "score": self.raw_scores[left].numpy(),
            "rank": rank[left].numpy(),
        }

    def __len__(self) -> int:
        return self.indices.shape[0]

    @overload
    def __getitem__(self, place: int) -> Recommendation: ...
    @overload
    def __getitem__(self, place: slice) -> list[Recommendation]: ...
    def __getitem__(self, place: int | slice) -> Recommendation | list[Recommendation]:
        if isinstance(place, slice):
            return [self[row] for row in range(*place.indices(len(self)))]
        row = range(len(self))[place]
        left = self._left[row]
        return Recommendation(
            self._vocabulary.decode(self.indices[row][left]),
            self.raw_scores[row][left].tolist(),
            {name: tensor[row].item() for name, tensor in self.diagnostics.items()},
            None if self.asked is None else self.asked[row],
        )

    def __iter__(self) -> Iterator[Recommendation]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        many, k = len(self), self.indices.shape[1]
        of = "" if self._column == "user" else " similar"
        lines = [f"Recommendations: {many:,} list{'s' * (many != 1)} of at most {k}{of} items"]
        if self.ignored:
            lines[0] += f"; {len(self.ignored):,} ids unknown, such as {short(self.ignored[0])}"
        shown = many if many <= _SHOWN else _SHOWN - 1
        for row in range(shown):
            who = row if self.asked is None else short(self.asked[row])
            lines.append(f"  {who}: {_listed(self[row])}")
        if shown < many:
            lines.append(f"  and {many - shown:,} more")
        return "\n".join(lines)


def frame_maker(kind: FrameKind | None) -> Any:
    """What makes a frame of columns; the arguments and errors of
    :meth:`Recommendations.to_frame`."""
    if kind is not None and (not isinstance(kind, str) or kind not in ("polars", "pandas")):
        raise ConfigError(f"kind={kind!r} must be 'polars' or 'pandas'")
    why = "a frame of recommendations"
    if kind == "polars":
        return import_polars(why).DataFrame
    if kind is None:
        try:
            return import_polars(why).DataFrame
        except DataError:
            pass  # pandas will do
    try:
        import pandas
    except ImportError as error:
        raise DataError(f"{why} needs pandas: pip install adarec_fast[data]") from error
    return pandas.DataFrame


def short(own_id: Any) -> str:
    """An id as it is, cut where it is long."""
    text = str(own_id)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _listed(answer: Recommendation) -> str:
    pairs = list(zip(answer.items, answer.scores, strict=True))
    shown = ", ".join(f"{short(item)} {score:.3f}" for item, score in pairs[:_SHOWN])
    more = len(pairs) - _SHOWN
    return f"{shown}, and {more} more" if more > 0 else shown or "nothing may come"
