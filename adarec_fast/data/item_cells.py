"""Columns of a table of items: cells by what they hold, as categories, numbers or vectors."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .features import FeatureColumn, Kind
from .text import MISSING, known

# A column of text that nobody named, of which most items have a value of their own, is a title.
_TOLD_APART, _FEW = 0.5, 100
_MOST_VALUES = 1_000_000
_LISTS = (list, tuple, np.ndarray)
_NUMBERS = (int, float, np.integer, np.floating, Decimal)


class UselessColumn(Exception):
    """A column that is no feature, and why."""


class Parsed(NamedTuple):
    """A column: categories as text of each row, or numbers ``[R, size]`` and which are missing."""

    column: FeatureColumn
    labels: list[list[str]]
    numbers: NDArray[np.float32]
    missing: NDArray[np.bool_]


def parsed(
    name: str, kind: Kind | None, column: list[Any] | NDArray[Any], locate: Callable[[int], str],
    text: bool, named: bool,
) -> Parsed:  # fmt: skip
    """A column's cells by its kind.

    Raises:
        UselessColumn: nothing of it can be a feature.
        DataError: a cell is none of the column's kind.
    """
    if isinstance(column, np.ndarray) and column.dtype.kind in "mM":
        raise UselessColumn(f"{name!r} holds times, which are no feature; give a number")
    cells = column.tolist() if isinstance(column, np.ndarray) else column
    values = [known(value) for value in cells]
    there = [value for value in values if value is not None]
    if not there:
        raise UselessColumn(f"{name!r} is empty")
    if any(isinstance(value, str) for value in there):
        values = _read_text(values, kind, text)
        there = [value for value in values if value is not None]
    kinds = set(map(type, there))
    if any(issubclass(x, _LISTS) for x in kinds):
        if not all(issubclass(x, _LISTS) for x in kinds):
            row = next(r for r, x in enumerate(values) if not isinstance(x, (*_LISTS, type(None))))
            raise DataError(f"{locate(row)}: {name!r} is {values[row]!r}, and a list elsewhere")
        if kind == "number":
            raise UselessColumn(f"{name!r} holds lists, which are no number")
        if kind == "vector" or (kind is None and _are_vectors(there)):
            return _vector(name, values, locate)
        lists = [[] if value is None else list(value) for value in values]
        return _categories(name, lists, locate, named)
    if kind == "vector":
        raise UselessColumn(f"{name!r} holds no lists, and a vector is a list of numbers")
    plain = all(issubclass(x, _NUMBERS) and not issubclass(x, (bool, np.bool_)) for x in kinds)
    if kind == "number" or (kind is None and plain):
        return _number(name, values, locate)
    return _categories(name, [[] if x is None else [x] for x in values], locate, named)


def _read_text(values: list[Any], kind: Kind | None, text: bool) -> list[Any]:
    """Cells of text as what they stand for: lists, numbers (where text may be such), or text."""
    there = [value for value in values if value is not None]
    if not all(isinstance(value, str) for value in there):
        return values
    if all(value.startswith("[") and value.endswith("]") for value in there):
        return [None if value is None else _written_list(value) for value in values]
    if kind != "category" and text:
        try:
            return [None if value is None else float(value) for value in values]
        except ValueError:
            pass
    if any("|" in value for value in there):
        return [None if value is None else [x.strip() for x in value.split("|") if x.strip()]
                for value in values]  # fmt: skip
    return values


def _written_list(value: str) -> list[Any]:
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list):
            return found
    parts = value[1:-1].split()  # as NumPy writes an array
    try:
        return [float(part) for part in parts]
    except ValueError:
        return parts


def _are_vectors(lists: Sequence[Any]) -> bool:
    """Whether lists hold numbers with a fraction somewhere."""
    fraction = False
    for value in lists:
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "fiu":
                return False
            fraction |= value.dtype.kind == "f"
            continue
        for part in value:
            if isinstance(part, str):  # of a typed header's float_seq
                try:
                    float(part)
                except ValueError:
                    return False
                fraction |= "." in part
            elif part is not None and (not isinstance(part, _NUMBERS) or isinstance(part, bool)):
                return False
            else:
                fraction |= isinstance(part, (float, np.floating, Decimal))
    return fraction


def _vector(name: str, values: list[Any], locate: Callable[[int], str]) -> Parsed:
    missing = np.array([value is None or len(value) == 0 for value in values])
    first = int((~missing).argmax())
    if missing.all():
        raise UselessColumn(f"{name!r} is empty")
    size = len(values[first])
    found = np.zeros((len(values), size), dtype=np.float32)
    for row in np.flatnonzero(~missing).tolist():
        value = values[row]
        if len(value) != size:
            raise DataError(
                f"{locate(row)}: {name!r} is a vector of {len(value)}, that of {locate(first)} has "
                f"{size} numbers; vectors of one column have one length"
            )
        try:
            found[row] = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            raise DataError(f"{locate(row)}: {name!r} holds something that is no number") from None
    _check_finite(name, found, locate)
    return Parsed(FeatureColumn(name, "vector", size), [], found, missing)


def _number(name: str, values: list[Any], locate: Callable[[int], str]) -> Parsed:
    missing = np.array([value is None for value in values])
    found = np.zeros((len(values), 1), dtype=np.float32)
    with np.errstate(over="ignore"):
        for row, value in enumerate(values):
            try:
                found[row, 0] = 0.0 if value is None else float(value)
            except (TypeError, ValueError, OverflowError):
                raise DataError(f"{locate(row)}: {name!r} is {value!r}, no number") from None
    _check_finite(name, found, locate)
    return Parsed(FeatureColumn(name, "number"), [], found, missing)


def _check_finite(name: str, found: NDArray[np.float32], locate: Callable[[int], str]) -> None:
    wrong = ~np.isfinite(found).all(1)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{locate(row)}: {name!r} holds a number that is not finite, or none that float32 "
            "holds; leave the cell empty where it is not known"
        )


def _categories(
    name: str, lists: list[list[Any]], locate: Callable[[int], str], named: bool
) -> Parsed:
    labels: list[list[str]] = []
    for row, value in enumerate(lists):
        own: dict[str, None] = {}
        for part in value:
            part = known(part)
            if isinstance(part, (float, np.floating, Decimal)) and part == int(part):
                part = int(part)
            if part is not None and not isinstance(part, (str, int, np.integer, np.bool_)):
                raise DataError(
                    f"{locate(row)}: {name!r} is {part!r}; values of a category are text or whole "
                    "numbers"
                )
            text = "" if part is None else str(part).strip()
            if text.lower() not in MISSING:
                own[text] = None
        labels.append(list(own))
    distinct = len({text for own in labels for text in own})
    filled = sum(map(bool, labels))
    if not distinct:
        raise UselessColumn(f"{name!r} is empty")
    if distinct > _MOST_VALUES:
        raise UselessColumn(f"{name!r} has {distinct:,} values, and may have {_MOST_VALUES:,}")
    if not named and distinct > max(_FEW, _TOLD_APART * filled):
        raise UselessColumn(
            f"{name!r} left out: {distinct:,} values for {filled:,} items say little of any "
            "(--features takes it all the same)"
        )
    none = np.zeros((len(lists), 0), dtype=np.float32)
    return Parsed(FeatureColumn(name, "category"), labels, none, np.zeros(0, dtype=bool))
