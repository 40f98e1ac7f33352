"""Questions in a catalogue's own ids: histories as lists, frames or data, and further lists."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError
from ..data import DataError, InteractionData, Vocabulary, load
from ..data.readers import is_frame
from ..histories import as_row, check_ids, is_packed, pack_lists
from ..ragged import Jagged, lengths
from .answers import FrameKind, Recommendation, Recommendations

UnknownItems = Literal["refuse", "ignore"]
_CPU = torch.device("cpu")


class Ids:
    """Reads item ids of one question: the catalogue's own, or indices.

    Args:
        vocabulary: of the catalogue, or None.
        own: whether ints, too, are the catalogue's own ids; text always is where there is a
            vocabulary.
        unknown_items: ``"refuse"`` ids that nobody knows, or ``"ignore"`` them.

    Attributes:
        ignored: ids that were left out.
    """

    def __init__(
        self, vocabulary: Vocabulary | None, own: bool, unknown_items: UnknownItems
    ) -> None:
        if unknown_items not in ("refuse", "ignore"):
            raise ConfigError(f"unknown_items={unknown_items!r} must be 'refuse' or 'ignore'")
        if own and vocabulary is None:
            raise ConfigError(
                "the model has no item_vocabulary, so it knows no ids but 1..num_items; "
                "model.item_vocabulary = data.items gives it those of the data"
            )
        self.vocabulary, self.own, self.unknown_items = vocabulary, own, unknown_items
        self.ignored: list[Any] = []

    def rows(self, given: Any, name: str, num_items: int) -> Jagged:
        """Lists of ids as packed indices on the CPU.

        Raises:
            ValueError: what is no list of lists, or an index outside the catalogue.
            DataError: an unknown id, with its place.
        """
        if not self.own and not holds_text(given):
            packed = pack_lists(given, _CPU, name=name)
            check_ids(*packed, num_items, f"{name}: ")
            return packed
        rows = [as_row(row, f"{name}[{place}]") for place, row in enumerate(as_row(given, name))]
        offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
        flat = [item for row in rows for item in row]
        found = self._found(flat, lambda at: _place(name, offsets, at))
        return _without_unknown(found, offsets)

    def flat(self, given: Any, name: str, num_items: int) -> Tensor:
        """One list of ids as indices, int64 on the CPU. Raises as :meth:`rows`."""
        items = list(given) if isinstance(given, (set, frozenset)) else as_row(given, name)
        if self.own or holds_text(items):
            found = self._found(items, lambda at: f"{name}[{at}]")
            if len(found) and not (found >= 0).any():
                raise DataError(f"{name}: none of its {len(found)} ids is in the catalogue, such "
                                f"as {items[0]!r}")  # fmt: skip
            return found[found >= 0]
        values, offsets = pack_lists([items], _CPU, name=name)
        check_ids(values, offsets, num_items, f"{name}: ")
        return values

    def _found(self, ids: Sequence[Any], place: Any) -> Tensor:
        """Indices, -1 where an id is unknown and may be."""
        if self.vocabulary is None:
            raise DataError(
                f"{place(0)} is {ids[0]!r}, and the model has no item_vocabulary; give indices, "
                "1..num_items, or set model.item_vocabulary = data.items"
            )
        ids = [item.item() if isinstance(item, Tensor) and item.dim() == 0 else item
               for item in ids]  # fmt: skip
        found = torch.from_numpy(self.vocabulary.find(ids))
        unknown = (found < 0).nonzero()[:, 0].tolist()
        if unknown and self.unknown_items == "refuse":
            try:
                self.vocabulary.encode([ids[unknown[0]]])
            except DataError as error:
                raise DataError(
                    f"{place(unknown[0])}: {error}; unknown_items='ignore' leaves such ids out"
                ) from None
        self.ignored += [ids[at] for at in unknown]
        return found


class Question(NamedTuple):
    """Histories to answer, and how their answers are given.

    Attributes:
        histories: in indices: lists, padded or packed; empty histories are the asker's fault.
        ids: what reads further ids of the question.
        users: own ids of those who ask, or None.
        single: one history was given, not a list of them.
        kind: of the frame that was given, if one was.
    """

    histories: Any
    ids: Ids
    users: list[Any] | None = None
    single: bool = False
    kind: FrameKind | None = None

    @classmethod
    def of(
        cls,
        histories: Any,
        vocabulary: Vocabulary | None,
        own_ids: bool | None,
        unknown_items: UnknownItems,
    ) -> Question:
        """Read histories: tensors or lists of indices, one list or lists of own ids, or a frame.

        Args:
            own_ids: whether ints are own ids; None: only where the histories are text or a frame.
        """
        if own_ids is not None and not isinstance(own_ids, bool):
            raise ConfigError(f"own_ids={own_ids!r} must be True, False or None")
        if is_frame(histories):
            data = load(histories, min_length=1)
            question = cls.of_data(data, None, vocabulary, unknown_items)
            pandas = type(histories).__module__.startswith("pandas")
            return question._replace(kind="pandas" if pandas else "polars")
        if is_packed(histories) and not own_ids:
            return cls(histories, Ids(vocabulary, False, unknown_items))
        own = own_ids is True or (
            own_ids is None and vocabulary is not None and holds_text(histories)
        )
        ids = Ids(vocabulary, own, unknown_items)
        if not own:
            return cls(histories, ids)
        assert vocabulary is not None
        rows = as_row(histories, "histories")
        single = len(rows) > 0 and isinstance(rows[0], (str, int, np.integer))
        given = [rows] if single else rows
        values, offsets = ids.rows(given, "histories", len(vocabulary))
        for row, size in enumerate(lengths(offsets).tolist()):
            if not size:
                why = "holds no item of the catalogue" if len(given[row]) else "is empty"
                raise DataError(f"histories[{row}] {why}, so there is nothing to go by")
        return cls((values, offsets), ids, single=single)

    @classmethod
    def of_data(
        cls,
        data: InteractionData,
        chosen: Jagged | None,
        vocabulary: Vocabulary | None,
        unknown_items: UnknownItems,
        users: list[Any] | None = None,
    ) -> Question:
        """Histories of data, whose catalogue may be another than the model's.

        Args:
            chosen: some histories of the data, None for all.
            users: whose they are, None for all of the data.
        """
        ids = Ids(vocabulary, True, unknown_items)
        assert ids.vocabulary is not None
        values, offsets = Jagged(data.values, data.offsets) if chosen is None else chosen
        users = data.users.ids if users is None else users
        if ids.vocabulary != data.items:
            known = torch.from_numpy(ids.vocabulary.find(data.items.array()))
            met = torch.zeros(data.num_items, dtype=torch.bool)
            met[values - 1] = True
            lost = (met & (known < 0)).nonzero()[:, 0]
            if len(lost) and unknown_items == "refuse":
                first = data.items.decode(lost[:1] + 1)[0]
                at = int((values == int(lost[0]) + 1).nonzero()[0])
                user = users[int(torch.searchsorted(offsets, at, right=True)) - 1]
                raise DataError(
                    f"item {first!r} of user {user!r} is not among the {len(ids.vocabulary)} items "
                    f"of the model, nor are {len(lost) - 1} others; unknown_items='ignore' leaves "
                    "such items out"
                )
            ids.ignored += data.items.decode(lost + 1)
            values, offsets = _without_unknown(known[values - 1], offsets)
        sizes = lengths(offsets)
        if unknown_items == "ignore":  # nobody can be answered by nothing
            users = [user for user, size in zip(users, sizes.tolist(), strict=True) if size]
            offsets = torch.cat([offsets[:1], offsets[1:][sizes > 0]])
        elif not bool(sizes.all()):
            user = users[int((sizes == 0).nonzero()[0])]
            raise DataError(f"user {user!r} has no item there, so there is nothing to go by")
        return cls((values, offsets), ids, users)

    def answer(
        self, items: Tensor, scores: Tensor, diagnostics: Any, column: str = "user"
    ) -> Any:
        """The answer in own ids, in the question's form: of one history, of several, or a frame.

        Args:
            items: int64 ``[B, k]``.
            scores: ``[B, k]``.
            diagnostics: ``[B]`` by name.
            column: what those who ask are called in a frame.
        """
        assert self.ids.vocabulary is not None
        ignored = self.ids.ignored
        found = Recommendations(
            items, scores, diagnostics, self.ids.vocabulary, asked=self.users, ignored=ignored,
            column=column,
        )  # fmt: skip
        if ignored and (self.single or self.kind is not None):  # these have no place to tell it
            warnings.warn(
                f"{len(ignored):,} ids are not in the catalogue and were left out, such as "
                f"{ignored[0]!r}", stacklevel=3,
            )  # fmt: skip
        if self.kind is not None:
            return found.to_frame(self.kind)
        one: Recommendation | Recommendations = found[0] if self.single else found
        return one


def holds_text(given: Any) -> bool:
    """Whether a list, or the first list in a list, begins with text."""
    if isinstance(given, (str, bytes, Tensor)) or not isinstance(given, Iterable):
        return False
    if isinstance(given, np.ndarray) and given.dtype.kind in "biuf":
        return False
    for row in given if isinstance(given, Sequence) else list(given):
        if isinstance(row, str):
            return True
        if not isinstance(row, (list, tuple, np.ndarray)):
            return False
        if len(row):
            return isinstance(row[0], str)
    return False


def is_list_of_lists(given: Any) -> bool:
    """Whether a list begins with a list, as one for every user does; an empty list does not."""
    if isinstance(given, (Tensor, np.ndarray)):
        return given.ndim > 1
    if isinstance(given, (str, bytes, set, frozenset)) or not isinstance(given, Sequence):
        return False
    first = given[0] if len(given) else None
    return isinstance(first, Iterable) and not isinstance(first, str) and bool(
        getattr(first, "ndim", 1)
    )


def _place(name: str, offsets: Tensor, at: int) -> str:
    row = int(torch.searchsorted(offsets, at, right=True)) - 1
    return f"{name}[{row}][{at - int(offsets[row])}]"


def _without_unknown(found: Tensor, offsets: Tensor) -> Jagged:
    kept = found >= 0
    before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
    return Jagged(found[kept], before[offsets])
