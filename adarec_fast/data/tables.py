"""Tables with named columns: CSV, TSV, JSON lines and data frames."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .text import Ids, Locate, TextColumn, split_tabs, times_from_strings
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


Column = TextColumn | list[Any] | NDArray[Any]


@dataclass(frozen=True)
class Cells:
    """The columns of a table that are wanted, as they stand there.

    Attributes:
        where: the file, for messages.
        user, item, time, event: names in ``columns``; None where there is none.
        columns: cells by name, all of one length.
        locate: where a row is, for messages.
        text: whether cells are text that stands for numbers too, as in CSV.
        empty: what is wrong with the file if it has no row.
    """

    where: str
    user: str
    item: str
    time: str | None
    event: str | None
    columns: dict[str, Column]
    locate: Locate
    text: bool
    empty: str = "no row"

    @classmethod
    def chosen(
        cls, columns: Columns, where: str, names: Sequence[str], column: Callable[[str], Column],
        locate: Locate, *, text: bool, empty: str = "no row",
    ) -> Cells:  # fmt: skip
        """Those columns of a table with ``names`` that hold users, items, times and events.

        Raises:
            DataError: a named column is absent, or one can not be guessed.
        """
        user, item, time = columns.choose(where, names)
        wanted = [name for name in (user, item, time, columns.event) if name is not None]
        return cls(where, user, item, time, columns.event, {name: column(name) for name in wanted},
                   locate, text, empty)  # fmt: skip

    def __len__(self) -> int:
        return len(self.columns[self.user])

    def take(self, rows: NDArray[np.int64]) -> Cells:
        """Some rows, or some of them several times."""
        columns: dict[str, Column] = {
            name: [x[row] for row in rows.tolist()] if isinstance(x, list) else x[rows]
            for name, x in self.columns.items()
        }
        return self.having(columns, lambda row: self.locate(int(rows[row])))

    def having(self, columns: dict[str, Column], locate: Locate | None = None) -> Cells:
        """The same with other columns."""
        return dataclasses.replace(self, columns=columns, locate=locate or self.locate)


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read, as the caller gave them; None is guessed.

    The event column alone is not guessed: without a name there is none.
    """

    user: str | None = None
    item: str | None = None
    time: str | None = None
    event: str | None = None

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
        if self.event is not None and self.event not in names:
            raise DataError(f"{where}: there is no column {self.event!r}; columns: {there}")
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


def read_inter(path: Path, data: bytes, columns: Columns) -> Cells:
    """RecBole's atomic ``.inter`` file: tab-separated under a typed header.

    A column of the type ``token_seq`` or ``float_seq`` holds lists, separated by blanks.
    """
    header = data.lstrip(b"\r\n").split(b"\n", 1)[0].decode("utf-8")
    if not is_inter_header(header):
        raise DataError(
            f"{path}:1: {header!r} is no header of an .inter file; every column is written "
            "name:type, with the type token, token_seq, float or float_seq"
        )
    typed = [field.rsplit(":", 1) for field in header.rstrip("\r").split("\t")]
    names = [name.strip() for name, _ in typed]
    lists = {name.strip() for name, kind in typed if kind.endswith("_seq")}
    fields = dict(zip(names, split_tabs(path, data), strict=True))

    def column(name: str) -> Column:
        return [x.split() for x in fields[name].strings()] if name in lists else fields[name]

    return Cells.chosen(columns, str(path), names, column, fields[names[0]].locate, text=True,
                        empty="there is a header but no interaction")  # fmt: skip


def import_polars(why: str) -> ModuleType:
    """polars, or a DataError that says how to install it."""
    try:
        import polars
    except ImportError as error:
        raise DataError(f"{why} needs polars: pip install adarec_fast[data]") from error
    return polars


def read_jsonl(path: Path, data: bytes, columns: Columns) -> Cells:
    """One JSON object a line; blank lines are skipped."""
    cells: Cells | None = None
    table: dict[str, list[Any]] = {}  # filled as lines are read
    lines: list[int] = []

    def locate(row: int) -> str:
        return f"{path}:{lines[row]}"

    for number, text in enumerate(data.split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"{path}:{number}: {type(value).__name__}, not a JSON object")
        if cells is None:
            where = f"{path}:{number}"
            cells = Cells.chosen(columns, where, list(value), lambda name: [], locate, text=False)
            table = {name: [] for name in cells.columns}
        for name, column in table.items():
            column.append(value.get(name))
        lines.append(number)
    assert cells is not None  # the file is not empty
    return dataclasses.replace(cells, where=str(path), columns={**table})


def cells_of_objects(
    where: str, objects: Sequence[dict[str, Any]], locate: Locate, columns: Columns
) -> Cells:
    """The wanted members of JSON objects, None where one is absent."""
    names = list(dict.fromkeys(name for value in objects for name in value))
    return Cells.chosen(columns, where, names, lambda name: [x.get(name) for x in objects], locate,
                        text=False)  # fmt: skip


def read_frame(frame: Any, columns: Columns, where: str) -> Cells:
    """A pandas or polars data frame; a column may have a number for its name."""
    names = [str(name).strip() for name in frame.columns]
    own = dict(zip(names, frame.columns, strict=True))
    return Cells.chosen(
        columns, where, names, lambda name: _frame_column(frame, own[name], where),
        lambda row: f"{where}, row {row}", text=False,
    )  # fmt: skip


def _frame_column(frame: Any, name: Any, where: str) -> list[Any] | NDArray[Any]:
    """Values of a column, a list with None where there are nulls."""
    column = frame[name]
    if hasattr(column, "null_count"):  # polars
        if column.dtype.is_temporal():
            column = column.to_physical()
        elif str(column.dtype).startswith(("Categorical", "Enum")):
            column = column.cast(str)
        if column.dtype.is_float() or (column.dtype.is_numeric() and not column.null_count()):
            return np.asarray(column.to_numpy())  # a null float is NaN
        return list(column.to_list())
    if column.ndim != 1:
        raise DataError(f"{where}: the column {name!r} occurs twice")
    if getattr(column.dtype, "tz", None) is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    null = column.isna().to_numpy()
    if null.any() and str(column.dtype).startswith("datetime64"):
        return np.asarray(column.to_numpy())  # NaT where there is none
    if null.any():
        known = column[~null].to_numpy()
        if known.dtype.kind == "f":
            numbers = np.full(len(null), np.nan)
            numbers[~null] = known
            return numbers
        values: list[Any] = [None] * len(null)
        for row, value in zip(np.flatnonzero(~null).tolist(), known.tolist(), strict=True):
            values[row] = value
        return values
    array = column.to_numpy()
    return array.tolist() if array.dtype.kind in "OUT" else np.asarray(array)


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
