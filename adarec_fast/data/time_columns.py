"""Which columns of a table say when. Never wrong in silence: what is doubtful is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from .errors import DataError
from .moments import is_clock, is_moment, match_moment
from .text import known

FILE_ORDER = "file-order"

# Taken whatever numbers or dates they hold; the first that is there wins.
_USUAL = ("timestamp", "time", "ts", "datetime", "date", "unixreviewtime", "eventtime")
# Taken where they hold dates or times since 1970.
_COMMON = (
    "eventtimestamp", "eventdate", "eventdatetime", "eventts", "utctimestamp", "unixtimestamp",
    "unixtime", "tdat", "invoicedate", "invoicetime", "orderdate", "orderdatetime", "ordertime",
    "orderedat", "orderpurchasetimestamp", "purchasedate", "purchasetime", "purchasedat",
    "transactiondate", "transactiontime", "transactiondt", "transactiontimestamp", "reviewtime",
    "reviewdate", "ratingtime", "ratingdate", "ratingtimestamp", "visittime", "visitdate",
    "clicktime", "clickdate", "clicktimestamp", "checkintime", "checkindate", "viewtime",
    "playedat", "listenedat", "watchedat", "actiontime", "interactiontime", "interactiondate",
    "logtime", "tstamp", "createdat", "creationdate", "creationtime", "when", "datum", "fecha",
)  # fmt: skip
# Of the time of day, or since a session's begin; they follow a column of days.
_CLOCKS = ("time", "timeofday", "clock", "hhmmss", "hhmm", "hourmin", "timeframe", "eventtime",
           "transtime", "transactiontime", "ordertime", "invoicetime", "clicktime")  # fmt: skip
_PARTS = ("year", "month", "day", "hour", "minute", "second")
_WORDS = {
    "time", "timestamp", "ts", "tstamp", "date", "datetime", "dat", "dt", "day", "days",
    "hour", "minute", "second", "when", "unix", "epoch", "moment", "month", "week", "dow",
    "weekday", "clock", "datum", "fecha", "created", "updated",
}  # fmt: skip
# What a day tells already.
_COARSE = {"day", "week", "weekday", "dow", "month", "quarter", "year"}
# How long something took, or an attribute: such a column is never refused for its name alone.
_NOT_WHEN = {
    "duration", "spent", "dwell", "watch", "play", "playtime", "stay", "elapsed", "zone",
    "timezone", "offset", "length", "delta", "gap", "diff", "lifetime", "runtime", "candidate",
    "mandate", "validate", "count", "num", "number", "per", "age", "times", "format",
}  # fmt: skip
_IDS = {"id", "ids", "no", "nr", "number", "code", "key", "phone", "zip", "sku", "isbn", "ean"}


class _Column(NamedTuple):
    name: str
    plain: str
    holds: str  # see _content
    by_name: bool
    coarse: bool
    examples: tuple[str, ...]


def guess_times(
    where: str,
    names: Sequence[str],
    taken: Collection[str],
    sample: Callable[[str], list[Any]],
) -> tuple[tuple[str, ...], str]:
    """Columns to sort by, and why; none of them means the order of the rows.

    Args:
        where: the file, for messages.
        names: all columns.
        taken: columns of the users and items.
        sample: values of a column.

    Raises:
        DataError: a column looks like times and it is not sure enough that it is the right one.
    """  # fmt: skip
    columns = [_look(name, sample(name)) for name in dict.fromkeys(names) if name not in taken]
    absolute = [c for c in columns if c.holds in ("moment", "day")]
    usual = [c for plain in _USUAL for c in columns if c.plain == plain and c.holds != "clock"]
    best = next((c for c in usual if c.holds != "other"), None)
    known = [c for c in absolute if c.plain in (*_USUAL, *_COMMON)]
    if best is None or (best.holds == "number" and known):
        # Numbers of their own kind beside dates: the dates come first.
        best = known[0] if len(known) == 1 else None
    if best is not None and best.holds == "day":
        finer = [c for c in absolute if c.holds == "moment"]
        if finer:
            raise _doubt(where, [best, *finer])
        return _with_clock(where, best, columns)
    if best is not None:
        return (best.name,), "by its name" + _such_as(best)
    if usual and usual[0].holds == "other" and not absolute:
        return (usual[0].name,), "by its name"  # cannot be read: the reader names the line
    parts = [c for part in _PARTS for c in columns if c.plain == part]
    whole = [c.plain for c in parts] == list(_PARTS[: len(parts)]) and not absolute
    if len(parts) > 1 and whole and all(c.holds == "number" for c in parts):
        return tuple(c.name for c in parts), "year, month and so on by their names"
    doubtful = [c for c in columns if c.by_name or c in absolute or c.holds == "clock"]
    if doubtful:
        raise _doubt(where, doubtful)
    return (), "no column looks like times"


def _with_clock(
    where: str, day: _Column, columns: Sequence[_Column]
) -> tuple[tuple[str, ...], str]:
    """A column of days with those that say when on a day."""
    others = [c for c in columns if c != day]
    clocks = [c for c in others if c.holds == "clock" or (
        c.plain in _CLOCKS and c.holds == "number")]  # fmt: skip
    parts = [c for part in _PARTS[3:] for c in others if c.plain == part and c.holds == "number"]
    if len(clocks) > 1 or (clocks and parts):
        raise _doubt(where, [day, *clocks, *parts])
    finer = tuple(c.name for c in clocks or parts)
    unsure = [c for c in others if c.by_name and c.holds == "number" and not c.coarse]
    if not finer and unsure:
        raise _doubt(where, [day, *unsure])
    if finer:
        return (day.name, *finer), f"days{_such_as(day)}, then the time of day, by their names"
    return (day.name,), "by its name" + _such_as(day)


def _such_as(column: _Column) -> str:
    return f", such as {column.examples[0]}" if column.examples else ""


def _doubt(where: str, columns: Sequence[_Column]) -> DataError:
    shown = ", ".join(
        f"{c.name!r}" + (f" ({', '.join(c.examples)})" if c.examples else "") for c in columns
    )
    first = columns[0].name
    looks = "looks like times" if len(columns) == 1 else "look like times"
    return DataError(
        f"{where}: no column of times was named, and {shown} {looks}: name the one to sort by "
        f"with time={first!r} (--time-column {first}), a date and a time of day as "
        f"'date,time', or keep the order of the rows with time={FILE_ORDER!r} "
        f"(--time-column {FILE_ORDER})"
    )


def _look(name: str, values: Sequence[Any]) -> _Column:
    values = [v for v in values if known(v) is not None]
    words = [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", name)]
    plain = "".join(words)
    holds = _content(values)
    if holds in ("moment", "day") and _IDS & set(words) and _are_numbers(values):
        holds = "number"  # an id of the size of a time
    by_name = not _NOT_WHEN & set(words) and (
        plain in _PARTS
        or not _WORDS.isdisjoint(words)
        or any(w.endswith(("date", "time", "timestamp")) and len(w) > 5 for w in words)
        or (len(words) > 1 and words[-1] == "at")
    )
    examples = tuple(list(dict.fromkeys(map(str, values)))[:2])
    return _Column(name, plain, holds, by_name, not _COARSE.isdisjoint(words), examples)


def _content(values: Sequence[Any]) -> str:
    """``"moment"`` (dates with a time of day, or a time since 1970), ``"day"``, ``"clock"``,
    ``"number"`` or ``"other"``: what nearly all values are, of which none is missing."""
    if not values:
        return "other"
    if _are_numbers(values):
        return _number_content(np.array([_float(v) for v in values]))
    kinds = [_kind(v) for v in values]
    for kind in ("moment", "day", "clock"):
        if kinds.count(kind) >= 0.9 * len(kinds):
            return kind
    dated = kinds.count("moment") + kinds.count("day")
    return "moment" if dated >= 0.9 * len(kinds) else "other"


def _are_numbers(values: Sequence[Any]) -> bool:
    for value in values:
        if isinstance(value, bool):
            return False
        if isinstance(value, str):
            try:
                float(value)
            except ValueError:
                return False
        elif not isinstance(value, (int, float, Decimal, np.number)):
            return False
    return True


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an int of more than 308 digits
        return float("inf") if value > 0 else float("-inf")


def _number_content(numbers: np.ndarray[Any, Any]) -> str:
    """Whether numbers are days written YYYYMMDD, or moments of this epoch."""
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        return "number"
    low, high = float(finite.min()), float(finite.max())
    if low >= 19_000_101 and high <= 21_001_231:
        month, day = finite // 100 % 100, finite % 100
        if ((month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all():
            return "day"
    if low >= 19_000_101_000_000 and high <= 21_001_231_235_959:
        month, hour = finite // 100_000_000 % 100, finite // 10_000 % 100
        return "moment" if ((month >= 1) & (month <= 12) & (hour < 24)).all() else "number"
    for unit in (1.0, 1e3, 1e6, 1e9):  # 1990 to 2100, and more than one value
        if 6.3e8 * unit <= low < high <= 4.2e9 * unit:
            return "moment"
    return "number"


def _kind(value: Any) -> str:
    if isinstance(value, datetime):
        return "day" if value.time() == time() else "moment"
    if isinstance(value, date):
        return "day"
    if isinstance(value, time):
        return "clock"
    if not isinstance(value, str):
        return "other"
    if is_clock(value):
        return "clock"
    if not is_moment(value):
        return "other"
    match = match_moment(value)
    return "moment" if match is None or match["hour"] is not None else "day"
