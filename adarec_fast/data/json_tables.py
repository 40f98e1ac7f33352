"""JSON: an object a line, or one text with records or histories."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .columns import Columns, Table, spread
from .errors import DataError
from .lists import Found, is_list, read_lists, refuse
from .moments import Exact, exact_number
from .tables import Cells, compact

_NULL = "missing or null"


def _exact_float(text: str) -> Exact | float:
    """A number of a JSON text; one with more digits than float64 tells apart stays exact."""
    return float(text) if len(text) <= 16 else exact_number(text)


class _Twice(dict[str, Any]):
    """An object with ``names`` that stand twice in it, of which Python's reader keeps the last."""

    names: tuple[str, ...]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    found = _Twice(pairs)
    found.names = tuple(name for name in found if names.count(name) > 1)
    return found


_DECODER = json.JSONDecoder(parse_float=_exact_float)
# Slower, since it calls back for each object.
_WATCHFUL = json.JSONDecoder(parse_float=_exact_float, object_pairs_hook=_object)


def read_jsonl(path: Path, data: bytes, columns: Columns) -> Cells:
    """One JSON object a line; blank lines are skipped, and a member may be absent from a line.

    Raises:
        DataError: a line is no object or has a wanted name twice, or columns cannot be told.
    """
    texts = data.decode().split("\n")
    filled = [number for number, text in enumerate(texts) if text and not text.isspace()]
    seen = [_line_object(path, texts, filled[row]) for row in spread(len(filled)).tolist()]
    begin = f"{path}:{filled[0] + 1}"
    while True:
        names = list(dict.fromkeys(itertools.chain.from_iterable(seen)))
        choice = columns.choose(Table(begin, names, lambda name: [x.get(name) for x in seen]))
        wanted, known = choice.names(), set(names)
        cells: dict[str, list[Any]] = {name: [] for name in wanted}
        news = 0
        for number in filled:
            value = _line_object(path, texts, number)
            if not known.issuperset(value):
                # Names that no line of the sample had: they may be a better choice.
                known.update(value)
                seen.append(value)
                news += 1
            for name in wanted:
                cells[name].append(value.get(name))
        if not news:
            break
    for name in wanted:
        mark = json.dumps(name, ensure_ascii=False)
        if data.count(mark.encode()) <= len(filled) - cells[name].count(None):
            continue  # once in each line that has it
        for number in filled:
            if texts[number].count(mark) > 1:
                value = _WATCHFUL.decode(texts[number])
                _refuse_twice(value, wanted, f"{path}:{number + 1}")
    found = {name: compact(values) for name, values in cells.items()}
    return Cells(
        str(path), choice, found, lambda row: f"{path}:{filled[row] + 1}", False, _NULL
    )


def is_one_object(content: bytes, line: str) -> bool:
    """Whether a text that begins with ``{`` is no JSON object a line, but one, or over lines."""
    if content.count(b"\n{") or not content.rstrip().endswith(b"}"):
        return False
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        return True
    return bool(first) and all(map(is_list, first.values()))


def read_json(path: Path, content: bytes, columns: Columns) -> Cells | Found:
    """A JSON array of records or of histories, or an object of histories by user.

    Raises:
        DataError: it is none of these, an object has a wanted name twice, or columns cannot be
            told.
    """
    try:
        value = _WATCHFUL.decode(content.decode())
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise DataError(f"{path}:{line}: not JSON: {error}") from error
    if isinstance(value, list) and value and all(isinstance(x, dict) for x in value):
        return _cells_of_objects(path, value, columns)
    histories = value.values() if isinstance(value, dict) else value
    if isinstance(value, _Twice):
        raise DataError(f"{path}: user {value.names[0]!r} occurs twice")
    if isinstance(value, (dict, list)) and all(map(is_list, histories)):
        refuse(columns.given(), f"{path}: ", "json")
        return read_lists(value, str(path), "json", columns.text_ids)
    raise DataError(
        f"{path}: neither a JSON array of objects (in pandas, orient='records'), nor of lists of "
        "item ids, nor an object of such lists by user; objects may also stand one a line"
    )


def _cells_of_objects(path: Path, objects: Sequence[dict[str, Any]], columns: Columns) -> Cells:
    """The wanted members of JSON objects, None where one is absent."""
    names = list(dict.fromkeys(itertools.chain.from_iterable(objects)))
    some = [objects[row] for row in spread(len(objects)).tolist()]

    def locate(row: int) -> str:
        return f"{path}, element {row}"

    cells = Cells.chosen(
        columns, Table(str(path), names, lambda name: [x.get(name) for x in some]),
        lambda name: [x.get(name) for x in objects], locate, text=False,
    )  # fmt: skip
    for row, value in enumerate(objects):
        _refuse_twice(value, cells.choice.names(), locate(row))
    return dataclasses.replace(cells, null=_NULL)


def _line_object(path: Path, texts: list[str], number: int) -> dict[str, Any]:
    """The object of a line."""
    text = texts[number]
    try:
        try:
            value, end = _DECODER.raw_decode(text)
        except ValueError:
            end = -1
        if end != len(text):  # blanks around it, or what is no JSON
            value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{number + 1}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}:{number + 1}: {type(value).__name__}, not a JSON object")
    return value


def _refuse_twice(value: dict[str, Any], wanted: Sequence[str], where: str) -> None:
    if isinstance(value, _Twice):
        twice = next((name for name in wanted if name in value.names), None)
        if twice is not None:
            raise DataError(f"{where}: the object has {twice!r} twice")
