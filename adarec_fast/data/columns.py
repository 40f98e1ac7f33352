"""Which columns of a table are users, items and times, and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .text import known
from .time_columns import FILE_ORDER, guess_times

# Values looked at to tell what a column holds.
SAMPLE = 1000
# Compared in lower case and without punctuation, the first that is there wins.
_COMMON_NAMES = {
    "user": ("userid", "user", "uid", "reviewerid", "customerid", "visitorid", "sessionid",
             "customer", "clientid", "memberid", "accountid", "buyerid", "personid", "profileid",
             "username", "customeruniqueid", "session"),
    "item": ("itemid", "item", "iid", "movieid", "productid", "asin", "parentasin", "articleid",
             "businessid", "bookid", "trackid", "songid", "stockcode", "sku", "productcode",
             "videoid", "newsid", "gameid", "recipeid", "courseid", "venueid", "poiid", "isbn"),
}  # fmt: skip
# Of a session, which stands in where hardly anybody was known.
_SESSIONS = ("sessionid", "session", "visitorid")


@dataclass(frozen=True)
class Table:
    """What there is to choose from.

    Attributes:
        where: the file, for messages.
        names: of all columns, in order; one may occur twice.
        sample: some values of a column, spread over its rows.
    """

    where: str
    names: Sequence[str]
    sample: Callable[[str], list[Any]]


@dataclass(frozen=True)
class Choice:
    """The columns that are read.

    Attributes:
        user, item: columns of ids.
        times: columns to sort by, the first before the second; empty for the order of the file.
        event: column that says what happened; None where all rows count.
        why: the reason for each of ``user``, ``item`` and ``time``, in words.
    """

    user: str
    item: str
    times: tuple[str, ...]
    event: str | None
    why: dict[str, str]

    def names(self) -> list[str]:
        """All columns, each once."""
        event = () if self.event is None else (self.event,)
        return list(dict.fromkeys((self.user, self.item, *self.times, *event)))

    def of_any_type(self, name: str) -> bool:
        """Whether a column's cells may be whatever they are, as those of events may."""
        return name == self.event


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read, as the caller gave them; None is guessed.

    ``time`` may be the names of several columns, also as one text with commas, or ``file-order``.
    ``time_format`` says how times are written, as for ``strptime``; ``text_ids`` keeps ids as text.
    The column of ``event`` alone is not guessed: without a name there is none.
    """

    user: str | None = None
    item: str | None = None
    time: str | Sequence[str] | None = None
    time_format: str | None = None
    text_ids: bool = False
    event: str | None = None

    @classmethod
    def create(
        cls, user: Any, item: Any, time: Any, event: Any, time_format: str | None, ids: str
    ) -> Columns:
        """Arguments of ``load``; of a frame, names may be numbers."""
        if ids not in ("auto", "text"):
            raise DataError(f"ids={ids!r} must be 'auto' or 'text'")
        times: str | tuple[str, ...] | None = _name(time)
        if isinstance(time, Sequence) and not isinstance(time, str):
            times = tuple(str(name).strip() for name in time)
        return cls(_name(user), _name(item), times, time_format, ids == "text", _name(event))

    def given(self) -> dict[str, Any]:
        """What the caller said of columns. The order of the file is none."""
        said = {
            "user": self.user, "item": self.item, "event": self.event,
            "time": None if self.time == FILE_ORDER else self.time,
            "time_format": self.time_format,
        }  # fmt: skip
        return {argument: value for argument, value in said.items() if value is not None}

    def choose(self, table: Table) -> Choice:
        """The columns to read.

        Raises:
            DataError: a named column is absent, one can not be guessed or occurs twice, or a column
                that nobody named looks like times; says what there is.
        """
        where, names = table.where, table.names
        times = self._times(names)
        named = {self.user, self.item, self.event, *(times or ())}
        taken = {name for name in named if name is not None}
        why = {role: "named" for role in ("user", "item", "time")
               if getattr(self, role) is not None}  # fmt: skip
        found: dict[str, str] = {}
        for role in _COMMON_NAMES:
            name = getattr(self, role)
            if name is None:
                name, why[role] = guess(role, table, taken, f"{role}=… (--{role}-column)")
            found[role] = name
            taken.add(name)
        for name in (*found.values(), *(times or ()), self.event):
            if name is not None and name not in names:
                there = ", ".join(map(repr, names)) or "none"
                raise DataError(f"{where}: there is no column {name!r}; columns: {there}")
        if found["user"] == found["item"]:
            raise DataError(f"{where}: {found['user']!r} is named for both users and items")
        if times is None:
            times, why["time"] = guess_times(where, names, taken, table.sample)
        elif not times:
            why["time"] = f"{FILE_ORDER} was asked for"
        choice = Choice(found["user"], found["item"], times, self.event, why)
        for name in choice.names():
            if list(names).count(name) > 1:
                raise DataError(f"{where}: the column {name!r} occurs twice; rename one of the two")
        return choice

    def fit(self, names: Sequence[str]) -> bool:
        """Whether user and item columns are among ``names``."""
        plain = set(map(plain_name, names))
        return all(
            name in names if name is not None else not plain.isdisjoint(common)
            for name, common in ((getattr(self, r), c) for r, c in _COMMON_NAMES.items())
        ) and all(name in names for name in (*(self._times(names) or ()), self.event)
              if name is not None)  # fmt: skip

    def _times(self, names: Sequence[str]) -> tuple[str, ...] | None:
        """Columns named for the time; None where they are to be guessed."""
        if self.time is None:
            return None
        if not isinstance(self.time, str):
            return tuple(self.time)
        if self.time in names:
            return (self.time,)
        if self.time == FILE_ORDER:
            return ()
        parts = tuple(part.strip() for part in self.time.split(","))
        return parts if all(part in names for part in parts) else (self.time,)


def plain_name(name: str) -> str:
    """A column's name without case, blanks and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def spread(rows: int) -> NDArray[np.int64]:
    """Some of so many rows, from the first to the last."""
    return np.unique(np.linspace(0, rows - 1, min(rows, SAMPLE)).astype(np.int64))


def _name(value: Any) -> str | None:
    return None if value is None else str(value).strip()


def guess(role: str, table: Table, taken: set[str], option: str) -> tuple[str, str]:
    """The column of the users or items, and why; ``option`` is what names it.

    Raises:
        DataError: none can be told, or several.
    """
    free = [name for name in table.names if name not in taken]
    found = []
    for common in _COMMON_NAMES[role]:
        alike = dict.fromkeys(name for name in free if plain_name(name) == common)
        if len(alike) > 1:
            raise DataError(
                f"{table.where}: the columns {' and '.join(map(repr, alike))} may both hold the "
                f"{role} ids; name one with {option}"
            )
        found += list(alike)
    if not found:
        there = ", ".join(map(repr, table.names)) or "none"
        raise DataError(
            f"{table.where}: cannot tell which column holds the {role} ids; "
            f"name it with {option}; columns: {there}"
        )
    best = found[0]
    if len(found) > 1:
        missing = _share_missing(table.sample(best))
        others = [n for n in found[1:] if role == "item" or plain_name(n) in _SESSIONS]
        for other in others:
            if missing > 0.5 and _share_missing(table.sample(other)) < missing / 2:
                return other, f"by its name; {best!r} is missing in {missing:.0%} of the rows"
    return best, "by its name"


def _share_missing(values: Sequence[Any]) -> float:
    return sum(known(value) is None for value in values) / max(len(values), 1)
