"""Columns of times as numbers that can be ordered, as finely as they are given."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .moments import SECOND, Exact, Unreadable, clocks, exact_number, moments, since_epoch
from .text import Locate

Reader = Callable[[Sequence[str]], list[Exact]]

_ISO = re.compile(r"(?:[12]\d{3}-\d\d-\d\d(?:[ T]\d\d:\d\d:\d\d)?\n)+", re.ASCII)
_INT64 = np.iinfo(np.int64)
# Whole numbers from here on are not all held by a float of so many bytes.
_FLOAT_LIMITS = {2: 2**11, 4: 2**24}
# What numbers of a plausible size stand for; no column holds two of them.
_SCALES = {
    "days as YYYYMMDD": (19_000_101, 21_001_231),
    "seconds since 1970": (300_000_000, 5_000_000_000),
    "minutes as YYYYMMDDhhmm": (190_001_010_000, 210_012_312_359),
    "milliseconds since 1970": (300_000_000_000, 5_000_000_000_000),
    "seconds as YYYYMMDDhhmmss": (19_000_101_000_000, 21_001_231_235_959),
    "microseconds since 1970": (300_000_000_000_000, 5_000_000_000_000_000),
    "nanoseconds since 1970": (300_000_000_000_000_000, 5_000_000_000_000_000_000),
}
# Nanoseconds of the units of NumPy, Arrow and polars.
UNITS = {
    "D": 86_400 * SECOND, "h": 3600 * SECOND, "m": 60 * SECOND, "s": SECOND, "ms": 1_000_000,
    "us": 1000, "μs": 1000, "ns": 1,
}  # fmt: skip


def text_times(
    values: Sequence[str], locate: Locate, form: str | None = None, *, clock: bool = False
) -> NDArray[Any]:
    """Times written as numbers or dates.

    Args:
        values: the texts, none empty.
        locate: where a row is, for messages.
        form: how they are written, as for ``strptime``; None reads numbers, ISO 8601 and what
            :mod:`.moments` knows.
        clock: read times of day, too.

    Returns:
        [len(values)]: numbers as int64, as float64 where that tells all of them apart, else as
        objects (``int``, ``Decimal``); dates likewise, in nanoseconds since 1970.

    Raises:
        DataError: a value is none of these, or not like the first one.
    """
    unique = list(dict.fromkeys(values))
    found = _numbers(unique) if form is None else None
    if found is not None:
        found = one_scale(found, lambda row: locate(values.index(unique[row])))
    else:
        try:
            found = _whole_seconds(unique) if form is None else None
            if found is None:
                found = exact_array(_reader(unique, form, clock)(unique))
        except Unreadable as problem:
            raise _unreadable(values, locate, problem, form) from problem
    if len(unique) == len(values):
        return found
    place = {text: row for row, text in enumerate(unique)}
    return found[np.fromiter(map(place.__getitem__, values), dtype=np.int64, count=len(values))]


def cell_times(
    values: list[Any] | NDArray[Any],
    locate: Locate,
    form: str | None = None,
    *,
    clock: bool = False,
) -> NDArray[Any]:
    """Typed cells as times: numbers, datetimes, dates, or texts as in :func:`text_times`.

    Raises:
        DataError: a cell is none of these, not of the kind of the first, not finite, or of a type
            too narrow for its value.
    """  # fmt: skip
    if form is not None and not isinstance(values[0], str):
        raise DataError(
            f"{locate(0)}: time {values[0]!r} is no text; time_format is for times written as text"
        )
    if isinstance(values, np.ndarray):
        return _array_times(values, locate)
    first = values[0]
    if isinstance(first, np.datetime64):
        return _array_times(np.array(values), locate)
    if isinstance(first, str):
        wrong = next((row for row, x in enumerate(values) if not isinstance(x, str)), None)
        if wrong is None:
            return text_times(values, locate, form, clock=clock)
        raise _mixed(values, wrong, "a number or an ISO 8601 text", locate)
    for kind, convert, name in _CELLS:
        if kind(first):
            wrong = next((row for row, x in enumerate(values) if not kind(x)), None)
            if wrong is None:
                return convert(values, locate)
            raise _mixed(values, wrong, f"a {name}, as the first is", locate)
    raise _mixed(values, 0, "a number or an ISO 8601 text", locate)


def nanoseconds(values: NDArray[Any], unit: int) -> NDArray[Any]:
    """Whole numbers of ``unit`` nanoseconds as nanoseconds: int64, or objects out of its range."""
    values = values.astype(np.int64)
    if unit == 1 or not len(values):
        return values
    limit = _INT64.max // unit
    if -limit <= int(values.min()) and int(values.max()) <= limit:
        return values * unit
    return exact_array([value * unit for value in values.tolist()])


def one_scale(times: NDArray[Any], locate: Locate) -> NDArray[Any]:
    """``times`` as they are, unless some are seconds and others milliseconds, or the like."""
    if times.dtype == object or not len(times):
        return times
    low, high = scale_of(times.min()), scale_of(times.max())
    if low is None or high is None or low == high:
        return times
    inside = np.zeros(len(times), dtype=bool)
    for least, most in _SCALES.values():
        inside |= (times >= least) & (times <= most)
    if not inside.all():
        return times  # numbers of their own kind, such as a counter
    first = scale_of(times[0])
    row = next(row for row, value in enumerate(times.tolist()) if scale_of(value) != first)
    raise DataError(
        f"{locate(row)}: time {times[row]} looks like {scale_of(times[row])}, the first, "
        f"{times[0]}, like {first}; write all of them alike"
    )


def sort_key(times: NDArray[Any]) -> NDArray[Any]:
    """Times as something that NumPy sorts by: objects become their ranks."""
    if times.dtype != object:
        return times
    return np.unique(times, return_inverse=True)[1].ravel()


def exact_array(values: Sequence[Any]) -> NDArray[Any]:
    """int64 where all are whole and in range, else objects."""
    if all(type(value) is int for value in values) and (
        not values or (_INT64.min <= min(values) and max(values) <= _INT64.max)
    ):
        return np.array(values, dtype=np.int64)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _numbers(texts: Sequence[str]) -> NDArray[Any] | None:
    """Texts as numbers, None where one is no finite number."""
    try:
        return exact_array([int(text) for text in texts])
    except ValueError:  # also of thousands of digits
        pass
    try:
        floats = np.array([float(text) for text in texts])
    except ValueError:
        return None
    if not np.isfinite(floats).all():
        return None
    if max(map(len, texts)) > 15 and len(np.unique(floats)) < len(texts):
        return exact_array([exact_number(text) for text in texts])
    return floats


def _whole_seconds(texts: Sequence[str]) -> NDArray[Any] | None:
    """ISO 8601 to the second, which NumPy reads at once; None for anything else."""
    if _ISO.fullmatch("\n".join(texts) + "\n") is None:
        return None
    try:
        return nanoseconds(np.array(texts, dtype="datetime64[s]").view(np.int64), SECOND)
    except ValueError:  # a day that no month has
        return None


def _reader(texts: Sequence[str], form: str | None, clock: bool) -> Reader:
    if form is not None:
        return lambda texts: [_by_form(text, form) for text in texts]
    if clock:
        try:
            clocks(texts[:1])
        except Unreadable:
            return moments
        return clocks
    return moments


def _by_form(text: str, form: str) -> Exact:
    try:
        return since_epoch(datetime.strptime(text.strip(), form))
    except (ValueError, OverflowError) as error:
        raise Unreadable(text) from error


def _unreadable(
    values: Sequence[str], locate: Locate, problem: Unreadable, form: str | None
) -> DataError:
    """Says which row is wrong and what would be right."""
    row = values.index(problem.text)
    if form is not None:
        return DataError(
            f"{locate(row)}: time {values[row]!r} is not written as time_format={form!r} says"
        )
    if problem.why:
        return DataError(
            f"{locate(row)}: time {values[row]!r} may be {problem.why}, and no row tells which; "
            "say it, as with time_format='%d/%m/%Y' or '%m/%d/%Y %H:%M' (--time-format)"
        )
    number = _is_number(values[0])
    if number:
        row = next(row for row, text in enumerate(values) if not _is_number(text))
    expected = "a finite number" if number else "an ISO 8601 date and time"
    if row:
        expected += f", as the first is ({values[0]})"
    elif not number:
        expected = f"a number or {expected}"
        try:
            clocks([values[0]])
            expected += "; it is a time of day alone: name the column of dates, too, as in "
            expected += "time='date,time' (--time-column date,time)"
        except Unreadable:
            expected += "; how else times are written is for time_format=… (--time-format)"
    return DataError(f"{locate(row)}: time {values[row]!r} is not {expected}")


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _array_times(values: NDArray[Any], locate: Locate) -> NDArray[Any]:
    kind = values.dtype.kind
    if kind in "Mm":
        if np.isnat(values).any():
            raise DataError(f"{locate(int(np.isnat(values).argmax()))}: the time is missing")
        unit, count = np.datetime_data(values.dtype)
        if unit not in UNITS:  # years, months, or finer than nanoseconds
            values, unit, count = values.astype(f"{kind}8[ns]"), "ns", 1
        return nanoseconds(values.view(np.int64), UNITS[unit] * count)
    if kind not in "iuf":
        raise DataError(f"{locate(0)}: times of dtype {values.dtype} cannot be ordered")
    finite = np.isfinite(values)
    if not finite.all():
        row = int((~finite).argmax())
        raise DataError(f"{locate(row)}: time {values[row]} is not a finite number")
    limit = _FLOAT_LIMITS.get(values.dtype.itemsize) if kind == "f" else None
    if limit is not None and (np.abs(values) >= limit).any():
        row = int((np.abs(values) >= limit).argmax())
        raise DataError(
            f"{locate(row)}: time {values[row]} has dtype {values.dtype}, which holds whole "
            f"numbers only up to {limit:,}; later times have been rounded; keep them as int64 or "
            "float64 where they come from"
        )
    return one_scale(values, locate)


def scale_of(value: Any) -> str | None:
    """What a number of its size stands for as a time; None for one of another kind."""
    return next((n for n, (least, most) in _SCALES.items() if least <= value <= most), None)


def _cell_numbers(values: list[Any], locate: Locate) -> NDArray[Any]:
    for row, value in enumerate(values):
        if not isinstance(value, int) and not math.isfinite(value):
            raise DataError(f"{locate(row)}: time {value} is not a finite number")
    if all(isinstance(value, (int, np.integer)) for value in values):
        return one_scale(exact_array([int(value) for value in values]), locate)
    if any(isinstance(value, Decimal) for value in values):
        # As they were written: the float 0.1 is a little more than that.
        exact = [
            Decimal(repr(float(x))) if isinstance(x, (float, np.floating)) else x for x in values
        ]
        return exact_array(exact)
    # A whole number that float64 does not hold would tie with its neighbours.
    large = any(not -(2**53) <= value <= 2**53 for value in values)
    return exact_array(values) if large else _array_times(np.array(values, dtype=float), locate)


def _cell_moments(values: list[Any], locate: Locate) -> NDArray[Any]:
    midnight = time()
    return exact_array([
        since_epoch(x if isinstance(x, datetime) else datetime.combine(x, midnight))
        for x in values
    ])  # fmt: skip


def _cell_clocks(values: list[Any], locate: Locate) -> NDArray[Any]:
    return exact_array([
        ((x.hour * 60 + x.minute) * 60 + x.second) * SECOND + x.microsecond * 1000 for x in values
    ])  # fmt: skip


def _mixed(values: list[Any], row: int, expected: str, locate: Locate) -> DataError:
    return DataError(f"{locate(row)}: time {values[row]!r} is not {expected}")


def _holds_number(value: object) -> bool:
    numbers = (int, float, Decimal, np.integer, np.floating)
    return isinstance(value, numbers) and not isinstance(value, bool)


_CELLS: tuple[
    tuple[Callable[[object], bool], Callable[[list[Any], Locate], NDArray[Any]], str], ...
] = (
    (_holds_number, _cell_numbers, "number"),
    (lambda value: isinstance(value, date), _cell_moments, "date or datetime"),
    (lambda value: isinstance(value, time), _cell_clocks, "time of day"),
)
