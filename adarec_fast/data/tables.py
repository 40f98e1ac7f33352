"""Tables with named columns: CSV, TSV, JSON lines and data frames."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .text import Ids, Locate, ids_from_strings, split_tabs, times_from_strings
from .vocabulary import normalise_ids

# Compared in lower case and without punctuation, the first that is there wins.
_COMMON_NAMES = {
    "user": ("userid", "user", "uid", "reviewerid", "customerid", "visitorid", "sessionid"),
    "item": ("itemid", "item", "iid", "movieid", "productid", "asin", "parentasin", "articleid",
             "businessid", "bookid", "trackid", "songid"),
    "time": ("timestamp", "time", "ts", "datetime", "date", "unixreviewtime", "eventtime"),
}  # fmt: skip
_INTER_FIELD = re.compile(r"[^\t:]+:(token|token_seq|float|float_seq)")


@dataclass(frozen=True)
class Events:
    """Interactions as read: one user, item and (where known) time an entry, in file order."""

    users: Ids
    items: Ids
    times: NDArray[Any] | None


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read, as the caller gave them; None is guessed."""

    user: str | None = None
    item: str | None = None
    time: str | None = None

    def given(self) -> dict[str, str]:
        return {k: v for k, v in vars(self).items() if v is not None}

    def choose(self, where: str, names: Sequence[str]) -> tuple[str, str, str | None]:
        """User, item and time column among ``names``; the time may be absent.

        Raises:
            DataError: a named column is absent, or one can not be guessed; lists what there is.
        """
        there = ", ".join(map(repr, names)) or "none"
        found: dict[str, str | None] = {}
        for role, common in _COMMON_NAMES.items():
            name = getattr(self, role)
            if name is not None:
                if name not in names:
                    raise DataError(f"{where}: there is no column {name!r}; columns: {there}")
                found[role] = name
                continue
            plain = {re.sub(r"[^a-z0-9]", "", n.lower()): n for n in reversed(names)}
            found[role] = next((plain[c] for c in common if c in plain), None)
            if found[role] is None and role != "time":
                raise DataError(
                    f"{where}: cannot tell which column holds the {role} ids; "
                    f"name it with {role}=… (--{role}-column); columns: {there}"
                )
        user, item = found["user"], found["item"]
        assert user is not None
        assert item is not None
        return user, item, found["time"]

    def fit(self, names: Sequence[str]) -> bool:
        """Whether user and item columns are among ``names``."""
        try:
            self.choose("", names)
        except DataError:
            return False
        return True


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
    user, item, time = columns.choose(str(path), names)
    fields = dict(zip(names, split_tabs(path, data), strict=True))
    if not len(fields[user]):
        raise DataError(f"{path}: there is a header but no interaction")
    for name in filter(None, (user, item, time)):
        empty = fields[name].ends == fields[name].starts
        if empty.any():
            raise DataError(f"{fields[name].locate(int(empty.argmax()))}: {name!r} is empty")
    times = None if time is None else fields[time].times()
    return Events(fields[user].ids("user id"), fields[item].ids("item id"), times)


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
    user, item, time = columns.choose(str(path), frame.columns)
    blank = frame.select(polars.all_horizontal(polars.all().is_null())).to_series().to_numpy()
    rows = np.flatnonzero(~blank)
    if not len(rows):
        raise DataError(f"{path}: there is a header but no row")
    if blank.any():
        frame = frame.filter(~blank)

    def locate(row: int) -> str:
        line = _csv_line(data, separator, int(rows[row]))
        return f"{path}, row {rows[row]}" if line is None else f"{path}:{line}"

    def strings(name: str) -> list[str]:
        series = frame[name]
        if series.null_count():
            raise DataError(f"{locate(series.is_null().arg_max())}: {name!r} is empty")
        return list(series.to_list())

    def ids(name: str, what: str) -> Ids:
        if frame[name].str.contains(r"^(0|-?[1-9][0-9]{0,17})$").all():
            strings(name)  # no nulls
            return np.asarray(frame[name].cast(polars.Int64).to_numpy())
        return ids_from_strings(strings(name), what, locate)

    times = None if time is None else times_from_strings(strings(time), locate)
    return Events(ids(user, "user id"), ids(item, "item id"), times)


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
    """One JSON object a line; blank lines are skipped."""
    names: tuple[str, str, str | None] | None = None
    cells: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    lines: list[int] = []
    for number, text in enumerate(data.split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"{path}:{number}: {type(value).__name__}, not a JSON object")
        if names is None:
            names = columns.choose(f"{path}:{number}", list(value))
        for name, column in zip(names, cells, strict=True):
            if name is not None:
                if value.get(name) is None:
                    raise DataError(f"{path}:{number}: {name!r} is missing or null")
                column.append(value[name])
        lines.append(number)
    assert names is not None  # the file is not empty

    def locate(row: int) -> str:
        return f"{path}:{lines[row]}"

    times = None if names[2] is None else cell_times(cells[2], locate)
    return Events(cell_ids(cells[0], locate, names[0]), cell_ids(cells[1], locate, names[1]), times)


def read_frame(frame: Any, columns: Columns, where: str) -> Events:
    """A pandas or polars data frame."""
    names = [str(name) for name in frame.columns]
    user, item, time = columns.choose(where, names)
    if not len(frame):
        raise DataError(f"{where}: no row")

    def locate(row: int) -> str:
        return f"{where}, row {row}"

    def cells(name: str) -> list[Any] | NDArray[Any]:
        values, null = _frame_column(frame, name, where)
        if null.any():
            raise DataError(f"{locate(int(null.argmax()))}: {name!r} is null")
        return values

    times = None if time is None else cell_times(cells(time), locate)
    return Events(cell_ids(cells(user), locate, user), cell_ids(cells(item), locate, item), times)


def _frame_column(
    frame: Any, name: str, where: str
) -> tuple[list[Any] | NDArray[Any], NDArray[np.bool_]]:
    """Values of a column, and which are null (rows counted from 0)."""
    column = frame[name]
    if hasattr(column, "null_count"):  # polars
        null = column.is_null().to_numpy()
        if column.dtype.is_temporal():
            column = column.to_physical()
        elif str(column.dtype).startswith(("Categorical", "Enum")):
            column = column.cast(str)
        return (column.to_numpy() if column.dtype.is_numeric() else column.to_list()), null
    if column.ndim != 1:
        raise DataError(f"{where}: the column {name!r} occurs twice")
    null = column.isna().to_numpy()
    if null.any():
        return [], null
    if getattr(column.dtype, "tz", None) is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    values = column.to_numpy()
    return (values.tolist() if values.dtype.kind in "OUT" else values), null


def cell_ids(values: list[Any] | NDArray[Any], locate: Locate, name: str) -> Ids:
    """Typed cells as ids; whole numbers held as floats (a habit of pandas) become int64."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        whole = np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) < 2**53)
        if not whole.all():
            row = int((~whole).argmax())
            raise DataError(f"{locate(row)}: {name!r} is {values[row]}; ids must be int or str")
        return values.astype(np.int64)
    if isinstance(values, np.ndarray) and values.dtype.kind not in "iu":
        raise DataError(f"{locate(0)}: {name!r} has dtype {values.dtype}; ids must be int or str")
    if isinstance(values, list):
        for row, value in enumerate(values):
            if not _is_id(value):
                raise DataError(
                    f"{locate(row)}: {name!r} is {value!r}; ids must be int or str "
                    "(of at most 64 bits, of valid Unicode)"
                )
    return normalise_ids(values, name)


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


def cell_times(values: list[Any] | NDArray[Any], locate: Locate) -> NDArray[Any]:
    """Typed cells as times: numbers, datetimes or ISO 8601 strings."""
    if isinstance(values, np.ndarray):
        if values.dtype.kind == "M":
            return values.astype(np.int64)
        if values.dtype.kind in "iuf":
            finite = np.isfinite(values)
            if not finite.all():
                row = int((~finite).argmax())
                raise DataError(f"{locate(row)}: time {values[row]} is not a finite number")
            return values
        raise DataError(f"{locate(0)}: times of dtype {values.dtype} cannot be ordered")
    number = isinstance(values[0], float) or _is_int64(values[0])
    for row, value in enumerate(values):
        if not (isinstance(value, float) or _is_int64(value) if number else isinstance(value, str)):
            expected = "a number, as the first is" if number else "a number or an ISO 8601 text"
            raise DataError(f"{locate(row)}: time {value!r} is not {expected}")
    if number:
        return cell_times(np.array(values), locate)
    return times_from_strings(values, locate)
