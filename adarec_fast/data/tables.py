"""Tables with named columns: CSV, TSV, JSON lines and data frames."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import SAMPLE, Choice, Columns, Table
from .errors import DataError
from .text import Ids, Locate, ids_from_strings, split_tabs
from .times import UNITS, cell_times, field_times, nanoseconds, one_scale, text_times
from .vocabulary import normalise_ids

_INTER_FIELD = re.compile(r"[^\t:]+:(token|token_seq|float|float_seq)")


@dataclass(frozen=True)
class Events:
    """Interactions as read, in file order.

    Attributes:
        users, items: an id an interaction.
        times: what to sort by, the first before the second; none where file order counts.
        choice: the columns that these are from.
    """

    users: Ids
    items: Ids
    times: tuple[NDArray[Any], ...]
    choice: Choice


def is_inter_header(line: str) -> bool:
    """Whether a line is a typed header such as ``user_id:token<TAB>item_id:token``."""
    return all(_INTER_FIELD.fullmatch(field) for field in line.rstrip("\r\n").split("\t"))


def read_inter(path: Path, data: bytes, columns: Columns) -> Events:
    """RecBole's atomic ``.inter`` file: tab-separated under a typed header."""
    header = data.lstrip(b"\r\n").split(b"\n", 1)[0].decode("utf-8")
    if not is_inter_header(header):
        raise DataError(
            f"{path}:1: {header!r} is no header of an .inter file; every column is written "
            "name:type, with the type token, token_seq, float or float_seq"
        )
    names = [field.rsplit(":", 1)[0] for field in header.rstrip("\r").split("\t")]
    columns_of_file = split_tabs(path, data)
    fields = dict(zip(names, columns_of_file, strict=True))
    if not len(columns_of_file[0]):
        raise DataError(f"{path}: there is a header but no interaction")

    def sample(name: str) -> list[Any]:
        some = fields[name][spread(len(fields[name]))]
        return [text or None for text in some.strings()]

    choice = columns.choose(Table(str(path), names, sample))
    for name in choice.names():
        empty = fields[name].ends == fields[name].starts
        if empty.any():
            raise DataError(f"{fields[name].locate(int(empty.argmax()))}: {name!r} is empty")
    times = tuple(
        field_times(fields[name], columns.time_format, clock=place > 0)
        for place, name in enumerate(choice.times)
    )
    return Events(
        fields[choice.user].ids("user id", columns.text_ids),
        fields[choice.item].ids("item id", columns.text_ids),
        times,
        choice,
    )


def spread(rows: int) -> NDArray[np.int64]:
    """Some of so many rows, from the first to the last."""
    return np.unique(np.linspace(0, rows - 1, min(rows, SAMPLE)).astype(np.int64))


def import_polars(why: str) -> ModuleType:
    """polars, or a DataError that says how to install it."""
    try:
        import polars
    except ImportError as error:
        raise DataError(f"{why} needs polars: pip install adarec_fast[data]") from error
    return polars


def read_csv(path: Path, data: bytes, columns: Columns, separator: str) -> Events:
    """Comma- or tab-separated text under a header; blank lines are skipped.

    Commas may be quoted as in RFC 4180; in tab-separated files quotes mean nothing.
    """
    polars = import_polars(f"{path}: reading {'CSV' if separator == ',' else 'TSV'}")
    quote = '"' if separator == "," else None
    header = data.lstrip(b"\r\n").split(b"\n", 1)[0].decode("utf-8").rstrip("\r")
    other = next((mark for mark in ";|\t" if mark in header), None)
    if separator == "," and "," not in header and other is not None:
        raise DataError(
            f"{path}: the header {header[:80]!r} has {other!r} where a comma should be; separate "
            "fields by commas, or by tabs and read it with format='tsv' (--format tsv)"
        )
    try:
        frame = polars.read_csv(
            io.BytesIO(data), separator=separator, quote_char=quote, infer_schema_length=0
        )
    except polars.exceptions.PolarsError as error:
        raise _csv_problem(path, data, separator, error) from error
    names = _header_names(header, separator)
    if len(names) != frame.width:  # a line break inside of quotes
        names = frame.columns
    blank = frame.select(polars.all_horizontal(polars.all().is_null())).to_series().to_numpy()
    rows = np.flatnonzero(~blank)
    if not len(rows):
        raise DataError(f"{path}: there is a header but no row")
    if blank.any():
        frame = frame.filter(~blank)

    def locate(row: int) -> str:
        line = _csv_line(data, separator, int(rows[row]))
        return f"{path}, row {rows[row]}" if line is None else f"{path}:{line}"

    def sample(name: str) -> list[Any]:
        return list(frame[:, names.index(name)].gather(spread(len(frame))).to_list())

    choice = columns.choose(Table(str(path), names, sample))

    def column(name: str) -> Any:
        series = frame[:, names.index(name)]
        if series.null_count():
            raise DataError(f"{locate(series.is_null().arg_max())}: {name!r} is empty")
        return series

    def integers(series: Any) -> NDArray[np.int64] | None:
        if not series.str.contains(r"^(0|-?[1-9][0-9]{0,17})$").all():
            return None
        return np.asarray(series.cast(polars.Int64).to_numpy())

    def ids(name: str, what: str) -> Ids:
        series = column(name)
        numbers = None if columns.text_ids else integers(series)
        if numbers is not None:
            return numbers
        return ids_from_strings(list(series.to_list()), what, locate, columns.text_ids)

    def times(name: str, clock: bool) -> NDArray[Any]:
        series = column(name)
        numbers = integers(series) if columns.time_format is None else None
        if numbers is not None:
            return one_scale(numbers, locate)
        return text_times(list(series.to_list()), locate, columns.time_format, clock=clock)

    return Events(
        ids(choice.user, "user id"), ids(choice.item, "item id"),
        tuple(times(name, place > 0) for place, name in enumerate(choice.times)), choice,
    )  # fmt: skip


def _header_names(header: str, separator: str) -> list[str]:
    """Names of the columns as they stand in a header of one line."""
    if separator != ",":
        return header.split(separator)
    return next(csv.reader([header]), [])


def _csv_rows(data: bytes, separator: str, strict: bool) -> Iterable[tuple[int, list[str]]]:
    """Line number and fields of each row, the header first; slow, for messages only."""
    text = io.StringIO(data.decode("utf-8"), newline="")
    if separator == ",":
        reader = csv.reader(text, strict=strict)
    else:
        reader = csv.reader(text, delimiter=separator, quoting=csv.QUOTE_NONE)
    line, header = 1, False
    for row in reader:
        header = header or bool(row)
        if header:  # blank lines above it do not count as rows
            yield line, row
        line = reader.line_num + 1


def _csv_line(data: bytes, separator: str, row: int) -> int | None:
    """Line of a row (from 0, the header not counted), None where the two readers disagree."""
    for number, (line, _) in enumerate(_csv_rows(data, separator, strict=False)):
        if number == row + 1:
            return line
    return None


def _csv_problem(path: Path, data: bytes, separator: str, error: Exception) -> DataError:
    """The line that a CSV reader stumbled over, found on a second pass."""
    line, width = 0, None
    try:
        for line, row in _csv_rows(data, separator, strict=True):
            width = len(row) if width is None else width
            if len(row) > width:
                return DataError(f"{path}:{line}: {len(row)} fields, the header has {width}")
    except csv.Error as problem:
        return DataError(f"{path}:{line + 1}: {problem}")
    return DataError(f"{path}: {str(error).splitlines()[0]}")


def read_jsonl(path: Path, data: bytes, columns: Columns) -> Events:
    """One JSON object a line; blank lines are skipped, and a member may be absent from a line."""
    texts = data.split(b"\n")
    filled = [number for number, text in enumerate(texts) if text and not text.isspace()]
    seen = [_json_object(path, texts, filled[row]) for row in spread(len(filled)).tolist()]
    begin = f"{path}:{filled[0] + 1}"
    while True:
        names = list(dict.fromkeys(itertools.chain.from_iterable(seen)))
        choice = columns.choose(Table(begin, names, lambda name: [x.get(name) for x in seen]))
        wanted, known = choice.names(), set(names)
        cells: dict[str, list[Any]] = {name: [] for name in wanted}
        marks = [json.dumps(name, ensure_ascii=False).encode() for name in wanted]
        news = 0
        for number in filled:
            value = _json_object(path, texts, number)
            if not known.issuperset(value):
                # Names that no line of the sample had: they may be a better choice.
                known.update(value)
                seen.append(value)
                news += 1
            if any(texts[number].count(mark) > 1 for mark in marks):
                _refuse_twice(texts[number], wanted, f"{path}:{number + 1}")
            for name in wanted:
                cells[name].append(value.get(name))
        if not news:
            break

    def locate(row: int) -> str:
        return f"{path}:{filled[row] + 1}"

    for name in wanted:
        if None in cells[name]:
            row = cells[name].index(None)
            raise DataError(f"{locate(row)}: {name!r} is missing or null")
    times = tuple(
        cell_times(cells[name], locate, columns.time_format, clock=place > 0)
        for place, name in enumerate(choice.times)
    )
    ids = {
        name: cell_ids(cells[name], locate, name, columns.text_ids)
        for name in (choice.user, choice.item)
    }
    return Events(ids[choice.user], ids[choice.item], times, choice)


def _exact_float(text: str) -> float | Decimal:
    """A number of a JSON text; one with more digits than float64 tells apart stays exact."""
    return float(text) if len(text) <= 16 else Decimal(text)


_DECODER = json.JSONDecoder(parse_float=_exact_float)


def _json_object(path: Path, texts: list[bytes], number: int) -> dict[str, Any]:
    """The object of a line."""
    try:
        value = _DECODER.decode(texts[number].decode())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{number + 1}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}:{number + 1}: {type(value).__name__}, not a JSON object")
    return value


def _refuse_twice(text: bytes, wanted: Sequence[str], where: str) -> None:
    """Of a name that an object has twice, Python's reader keeps the last."""

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = next((name for name in wanted if names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{where}: the object has {twice!r} twice")
        return dict(pairs)

    json.loads(text, object_pairs_hook=check)


def read_frame(frame: Any, columns: Columns, where: str) -> Events:
    """A pandas or polars data frame."""
    names = [str(name) for name in frame.columns]
    if not len(frame):
        columns.choose(Table(where, names, lambda name: []))
        raise DataError(f"{where}: no row")

    def locate(row: int) -> str:
        return f"{where}, row {row}"

    def sample(name: str) -> list[Any]:
        rows = spread(len(frame))
        column = frame[name]
        if hasattr(column, "null_count"):  # polars
            return list(column.gather(rows).to_list())
        if column.ndim != 1:  # the name occurs twice
            return []
        column = column.iloc[rows]
        null = column.isna().to_numpy()
        return [None if gone else x for x, gone in zip(column.tolist(), null, strict=True)]

    choice = columns.choose(Table(where, names, sample))

    def cells(name: str) -> list[Any] | NDArray[Any]:
        values, null = _frame_column(frame, name)
        if null.any():
            raise DataError(f"{locate(int(null.argmax()))}: {name!r} is null")
        return values

    times = tuple(
        cell_times(cells(name), locate, columns.time_format, clock=place > 0)
        for place, name in enumerate(choice.times)
    )
    ids = {
        name: cell_ids(cells(name), locate, name, columns.text_ids)
        for name in (choice.user, choice.item)
    }
    return Events(ids[choice.user], ids[choice.item], times, choice)


def _frame_column(frame: Any, name: str) -> tuple[list[Any] | NDArray[Any], NDArray[np.bool_]]:
    """Values of a column, and which are null (rows counted from 0)."""
    column = frame[name]
    if hasattr(column, "null_count"):  # polars
        null = column.is_null().to_numpy()
        if null.any():
            return [], null
        if column.dtype.is_temporal():
            unit = getattr(column.dtype, "time_unit", None)
            unit = unit or ("D" if str(column.dtype) == "Date" else "ns")
            return nanoseconds(column.to_physical().to_numpy(), UNITS[unit]), null
        if str(column.dtype).startswith(("Categorical", "Enum")):
            column = column.cast(str)
        narrow = column.dtype.is_float() or (
            column.dtype.is_integer() and not str(column.dtype).endswith("128")
        )
        return (column.to_numpy() if narrow else column.to_list()), null
    null = column.isna().to_numpy()
    if null.any():
        return [], null
    if str(column.dtype).startswith("period"):
        column = column.dt.to_timestamp()
    if getattr(column.dtype, "tz", None) is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    values = column.to_numpy()
    return (values.tolist() if values.dtype.kind in "OUT" else values), null


def cell_ids(
    values: list[Any] | NDArray[Any], locate: Locate, name: str, text: bool = False
) -> Ids:
    """Typed cells as ids; whole numbers held as floats (a habit of pandas) become int64."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        values = _whole_floats(values, locate, name)
    if isinstance(values, np.ndarray) and values.dtype.kind not in "iu":
        raise DataError(f"{locate(0)}: {name!r} has dtype {values.dtype}; ids must be int or str")
    if isinstance(values, list):
        values = _whole_numbers(values)
        for row, value in enumerate(values):
            if not _is_id(value):
                raise DataError(
                    f"{locate(row)}: {name!r} is {value!r}; ids must be int or str "
                    "(of at most 64 bits, of valid Unicode)"
                )
    if text:
        return list(map(str, values.tolist() if isinstance(values, np.ndarray) else values))
    if isinstance(values, np.ndarray) and values.dtype.kind == "u":
        large = values > np.uint64(2**63 - 1)
        if large.any():
            row = int(large.argmax())
            raise DataError(
                f"{locate(row)}: {name!r} is {values[row]}, which int64 does not hold; "
                "say ids='text' (--ids text)"
            )
    return normalise_ids(values, name)


def _whole_floats(values: NDArray[Any], locate: Locate, name: str) -> NDArray[np.int64]:
    """Floats that are whole and that their type holds exactly."""
    limit = 2 ** (np.finfo(values.dtype).nmant + 1)
    whole = np.isfinite(values) & (values == np.floor(values))
    if not whole.all():
        row = int((~whole).argmax())
        raise DataError(f"{locate(row)}: {name!r} is {values[row]}; ids must be int or str")
    large = np.abs(values) >= limit
    if large.any():
        row = int(large.argmax())
        raise DataError(
            f"{locate(row)}: {name!r} is {values[row]:.0f}, and {values.dtype} holds whole numbers "
            f"only up to {limit:,}: ids have been rounded; keep them as integers or text where they"
            " come from"
        )
    return values.astype(np.int64)


def _whole_numbers(values: list[Any]) -> list[Any]:
    """A list with int for floats and decimals that are whole."""
    if not any(issubclass(kind, (float, np.floating, Decimal)) for kind in set(map(type, values))):
        return values
    return [
        int(x)
        if (isinstance(x, (float, np.floating)) and abs(x) < 2**53 and float(x).is_integer())
        or (isinstance(x, Decimal) and abs(x) < 2**63 and x == int(x))
        else x
        for x in values
    ]


def _is_id(value: object) -> bool:
    """Whether a value is an int of 64 bits, or a str that UTF-8 can express."""
    if isinstance(value, str):
        try:
            return value.isascii() or bool(value.encode("utf-8"))
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
            return False
    return _is_int64(value)


def _is_int64(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        return False
    return bool(-(2**63) <= value < 2**63)
