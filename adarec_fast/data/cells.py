"""From the cells of a table to ids and times: joined, filtered, unfolded, and cleaned.

Whatever the format, an id is missing where its cell is null, NaN, or one of ``text.MISSING``; rows
without a user or an item are left out and counted. Blanks around an id are no part of it.
"""

from __future__ import annotations

import ast
import bisect
import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import Columns
from .errors import DataError
from .tables import Cells, Column, Events, cell_ids
from .text import MISSING, JoinedText, TextColumn, known
from .times import cell_times, one_scale, text_times
from .words import Ids, Words, ids_from_words

_SHOWN = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeftOut:
    """How many rows a table has and how many of them are no interactions, by the reason."""

    rows: int = 0
    no_user: int = 0
    no_item: int = 0
    other_event: int = 0

    def __add__(self, other: LeftOut) -> LeftOut:
        return LeftOut(*(a + b for a, b in zip(vars(self).values(), vars(other).values(),
                                               strict=True)))  # fmt: skip


@dataclass(frozen=True)
class Read:
    """Interactions, and what was left out."""

    events: Events
    left_out: LeftOut = field(default_factory=LeftOut)


def events_from(parts: Sequence[Cells], keep: Sequence[str] | None, columns: Columns) -> Read:
    """Interactions of one table, or of several as one.

    Args:
        parts: at least one.
        keep: values of the event column whose rows count; None: all rows.
        columns: how times are written, and what ids are.

    Raises:
        DataError: tables that do not go together, no row that is kept, none with ids, or cells
            that are no ids or times.
    """
    cells = _joined(parts)
    rows = len(cells)
    if keep is not None:
        cells = _kept(cells, keep)
    other_event = rows - len(cells)
    cells = _unfolded(_resolved(cells, columns.text_ids))
    kept = len(cells)
    users, no_user = cleaned(cells.columns[cells.user])
    items, no_item = cleaned(cells.columns[cells.item])
    cells = cells.having({**cells.columns, cells.user: users, cells.item: items})
    missing = no_user | no_item
    left_out = LeftOut(
        kept + other_event, int(no_user.sum()), int((no_item & ~no_user).sum()), other_event
    )
    if missing.all():
        raise DataError(
            f"{cells.where}: none of {kept} rows has both a user id and an item id; "
            f"{left_out.no_user} have no user ({cells.user!r})"
        )
    if missing.any():
        first = cells.locate(int(missing.argmax()))
        logger.warning(
            "%s: %d of %d rows have no user id and %d no item id; they were left out (the first: "
            "%s)", cells.where, left_out.no_user, kept, left_out.no_item, first,
        )  # fmt: skip
        cells = cells.take(np.flatnonzero(~missing))
    events = Events(
        ids_of(cells, cells.user, "user id", columns.text_ids),
        ids_of(cells, cells.item, "item id", columns.text_ids),
        tuple(_times(cells, name, columns.time_format, clock=place > 0)
              for place, name in enumerate(cells.times)),
        cells.choice,
    )  # fmt: skip
    return Read(events, left_out)


def _resolved(cells: Cells, text_ids: bool) -> Cells:
    """Ids as numbers where the whole column is numbers, else as they are written."""
    columns = dict(cells.columns)
    for name in (cells.user, cells.item):
        columns[name] = id_column(columns[name], text_ids)
    return cells.having(columns)


def id_column(column: Column, text_ids: bool) -> Column:
    """A column of ids, of text as numbers where all are, else as words."""
    if not isinstance(column, TextColumn):
        return column
    whole = None if text_ids else column.numbers()
    return Words.of(column.strings()) if whole is None else whole


def cleaned(
    column: Column,
) -> tuple[Words | list[Any] | NDArray[Any], NDArray[np.bool_]]:
    """Ids without blanks around them, and which are missing."""
    if not isinstance(column, TextColumn):
        return cleaned_values(column)
    words = column if isinstance(column, Words) else Words.of(column.strings())
    return words.cleaned()


def cleaned_values(
    values: list[Any] | NDArray[Any],
) -> tuple[list[Any] | NDArray[Any], NDArray[np.bool_]]:
    """The same of cells that are no text of a file."""
    none = np.zeros(len(values), dtype=bool)
    if isinstance(values, np.ndarray):
        if values.dtype.kind in "fc":
            return values, np.isnan(values)
        if values.dtype.kind in "mM":
            return values, np.isnat(values)
        if values.dtype.kind not in "OU":
            return values, none
        values = values.tolist()
    try:
        unique = set(values)
    except TypeError:  # a list or an object; what else is wrong with it is found later
        values = [known(value) for value in values]
    else:
        if set(map(type, unique)) == {str}:  # most are as they should be, without a call each
            unique = {x for x in unique if x.strip() != x or x.lower() in MISSING}
        # Only values that change stand here: 1 and True are one key of a dict.
        changed = {value: known(value) for value in unique if known(value) is not value}
        if not changed and None not in unique:
            return values, none
        values = [changed.get(value, value) for value in values]
    return values, np.fromiter((value is None for value in values), dtype=bool, count=len(values))


def _values(column: Column) -> list[Any] | NDArray[Any]:
    return column.strings() if isinstance(column, TextColumn) else column


def _joined(parts: Sequence[Cells]) -> Cells:
    """Several tables as one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts[1:]:
        if (part.user, part.item, part.times) != (first.user, first.item, first.times):
            raise DataError(
                f"{part.where}: its columns {', '.join(map(repr, part.columns))} are not those of "
                f"{first.where}, {', '.join(map(repr, first.columns))}; name the columns"
            )
        if part.text != first.text:
            raise DataError(
                f"{part.where}: not of the same kind as {first.where}; the files of one data set "
                "must have one format"
            )
    begins = list(itertools.accumulate((len(part) for part in parts), initial=0))

    def locate(row: int) -> str:
        number = bisect.bisect_right(begins, row) - 1
        return parts[number].locate(row - begins[number])

    columns = {
        name: _concatenated([part.columns[name] for part in parts]) for name in first.columns
    }
    return first.having(columns, locate)


def _concatenated(columns: Sequence[Column]) -> Column:
    texts = tuple(column for column in columns if isinstance(column, TextColumn))
    if len(texts) == len(columns):
        return JoinedText(texts)
    if all(isinstance(column, np.ndarray) for column in columns):
        arrays: list[NDArray[Any]] = [np.asarray(column) for column in columns]
        # Never by way of floats, which would round large integers.
        if len({array.dtype for array in arrays}) == 1:
            return np.concatenate(arrays)
    return list(itertools.chain.from_iterable(map(_values, columns)))


def _kept(cells: Cells, keep: Sequence[str]) -> Cells:
    """The rows whose event is one of ``keep``."""
    assert cells.event is not None
    words = [_word(value) for value in _values(cells.columns[cells.event])]
    wanted = {str(value).strip() for value in keep}
    rows = np.flatnonzero(np.fromiter(map(wanted.__contains__, words), dtype=bool))
    absent = sorted(wanted - set(words))
    if absent:
        there = list(dict.fromkeys(words))
        shown = ", ".join(map(repr, there[:_SHOWN])) + (", …" if len(there) > _SHOWN else "")
        raise DataError(
            f"{cells.where}: {cells.event!r} is nowhere {absent[0]!r}, which keep names "
            f"(--keep); it is {shown}"
        )
    return cells.take(rows)


def _word(value: Any) -> str:
    """An event's value as it would be typed: 1 for the float 1.0."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def _unfolded(cells: Cells) -> Cells:
    """One row an item where a cell holds a list of them, as one of a user's whole history."""
    column = cells.columns[cells.item]
    if isinstance(column, Words) and not any("[" in word for word in column.distinct):
        return cells
    items = _values(column)
    if isinstance(items, np.ndarray) and items.dtype.kind != "O":
        return cells
    items = list(items)
    if cells.text and set(map(type, items)) == {str}:
        items = _written_lists(items, cells)
    if not _has_lists(items):
        return cells
    counts = np.array([len(value) if _is_list(value) else 1 for value in items], dtype=np.int64)
    rows = np.repeat(np.arange(len(items)), counts)
    unfolded = cells.take(rows)
    flat: list[Any] = []
    for value in items:
        flat.extend(value) if _is_list(value) else flat.append(value)
    columns = {**unfolded.columns, cells.item: flat}
    for name in cells.times:
        columns[name] = _unfolded_times(cells, name, counts, unfolded.columns[name])
    return unfolded.having(columns)


def _unfolded_times(
    cells: Cells, name: str, counts: NDArray[np.int64], repeated: Column
) -> Column:
    """Times of unfolded rows: each item's where a cell lists them, else the row's for all."""
    times = _values(cells.columns[name])
    if isinstance(times, np.ndarray):
        return repeated
    if cells.text:
        times = _written_lists(times, cells)
    if not _has_lists(times):
        return repeated
    flat: list[Any] = []
    for row, (value, count) in enumerate(zip(times, counts.tolist(), strict=True)):
        if not _is_list(value) or len(value) != count:
            raise DataError(
                f"{cells.locate(row)}: {name!r} must list as many times as {cells.item!r} "
                f"lists items, {count}"
            )
        flat.extend(value)
    return flat


def _written_lists(values: list[Any], cells: Cells) -> list[Any]:
    """Lists written as text, ``[1, 2]`` or ``['a', 'b']``, if all cells that hold anything are."""
    first = next((x for x in values if x.strip().lower() not in MISSING), "")
    if not first.lstrip().startswith("["):
        return values
    filled = [value.strip() for value in values if value.strip().lower() not in MISSING]
    if not all(x.startswith("[") and x.endswith("]") for x in filled):
        return values
    read = []
    for row, value in enumerate(values):
        text = value.strip()
        if text.lower() in MISSING:
            read.append(value)
            continue
        for parse in (json.loads, ast.literal_eval):
            try:
                parts = parse(text)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                parts = text[1:-1].split()  # as NumPy writes an array
        if not all(isinstance(part, (str, int, float)) for part in parts):
            raise DataError(f"{cells.locate(row)}: {text[:80]!r} is no list of ids")
        read.append([str(part) for part in parts])
    return read


def _has_lists(values: list[Any]) -> bool:
    return any(issubclass(kind, (list, tuple, np.ndarray)) for kind in set(map(type, values)))


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


def ids_of(cells: Cells, name: str, what: str, text_ids: bool) -> Ids:
    """A cleaned column of which no cell is missing, as ids."""
    column = cells.columns[name]
    if not cells.text:
        return cell_ids(_values(column), cells.locate, name, text_ids)
    if isinstance(column, np.ndarray):
        return column
    words = column if isinstance(column, Words) else Words.of(_values(column))
    return ids_from_words(words, what, cells.locate, text_ids)


def _times(cells: Cells, name: str, form: str | None, *, clock: bool) -> NDArray[Any]:
    """A column of times as numbers that can be ordered."""
    column = cells.columns[name]
    if isinstance(column, TextColumn):
        numbers = column.numbers() if form is None else None
        if numbers is not None:
            return one_scale(numbers, cells.locate)
        column = column.strings()
    if not cells.text:
        missing = cleaned(column)[1]
        if missing.any():
            raise _no_time(cells.locate(int(missing.argmax())), name, cells.null)
        return cell_times(column, cells.locate, form, clock=clock)
    values = list(column)
    if "" in values:
        raise _no_time(cells.locate(values.index("")), name, "empty")
    return text_times(values, cells.locate, form, clock=clock)


def _no_time(where: str, name: str, what: str) -> DataError:
    # First, last or left out: any of these would be a guess, and a history in another order.
    return DataError(
        f"{where}: {name!r} is {what}, so nothing says where in a history the row belongs; give it "
        "a time, leave it out, or keep the order of the file with time='file-order' (--time-column "
        "file-order)"
    )
