"""Tables with named columns: their cells, .inter files and data frames."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import Choice, Columns, Table, spread
from .errors import DataError, EmptyFile
from .text import Locate, TextColumn, split_tabs
from .vocabulary import normalise_ids
from .words import Distinct, Ids

_INTER_FIELD = re.compile(r"[^\t:]+:(token|token_seq|float|float_seq)")
_LISTS = (list, tuple, np.ndarray)

Column = TextColumn | list[Any] | NDArray[Any]


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


@dataclass(frozen=True)
class Cells:
    """The columns of a table that are wanted, as they stand there.

    Attributes:
        where: the file, for messages.
        choice: which columns they are.
        columns: cells by name, all of one length.
        locate: where a row is, for messages.
        text: whether cells are text that stands for numbers too, as in CSV.
        null: how messages call a cell of no text that holds nothing.
    """

    where: str
    choice: Choice
    columns: dict[str, Column]
    locate: Locate
    text: bool
    null: str = "null"

    @classmethod
    def chosen(
        cls, columns: Columns, table: Table, column: Callable[[str], Column], locate: Locate, *,
        text: bool,
    ) -> Cells:  # fmt: skip
        """Those columns of a table that hold users, items, times and events.

        Raises:
            DataError: as :meth:`.Columns.choose`.
        """
        choice = columns.choose(table)
        cells = {name: compact(column(name)) for name in choice.names()}
        return cls(table.where, choice, cells, locate, text)

    @classmethod
    def of_text(
        cls, columns: Columns, where: str, names: Sequence[str],
        column: Callable[[str], TextColumn], locate: Locate, rows: int, empty: str,
    ) -> Cells:  # fmt: skip
        """The same of a text table with so many rows.

        Raises:
            EmptyFile: it has no row, which ``empty`` says.
            DataError: as :meth:`.Columns.choose`.
        """
        if not rows:
            raise EmptyFile(f"{where}: {empty}")
        table = Table(where, names, lambda name: [*column(name)[spread(rows)].strings()])
        return cls.chosen(columns, table, column, locate, text=True)

    def __len__(self) -> int:
        return len(self.columns[self.user])

    @property
    def user(self) -> str:
        return self.choice.user

    @property
    def item(self) -> str:
        return self.choice.item

    @property
    def times(self) -> tuple[str, ...]:
        return self.choice.times

    @property
    def event(self) -> str | None:
        return self.choice.event

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
    columns_of_file = split_tabs(path, data)
    fields = dict(zip(names, columns_of_file, strict=True))
    first = columns_of_file[0]
    cells = Cells.of_text(
        columns, str(path), names, fields.__getitem__, first.locate, len(first),
        "there is a header but no interaction",
    )  # fmt: skip
    split: dict[str, Column] = {
        name: [text.split() for text in fields[name].strings()]
        for name in lists.intersection(cells.columns)
    }
    return cells.having({**cells.columns, **split})


def import_polars(why: str) -> ModuleType:
    """polars, or a DataError that says how to install it."""
    try:
        import polars
    except ImportError as error:
        raise DataError(f"{why} needs polars: pip install adarec_fast[data]") from error
    return polars


def read_frame(frame: Any, columns: Columns, where: str) -> Cells:
    """A pandas or polars data frame; a column may have a number for its name."""
    names = [str(name).strip() for name in frame.columns]
    own = dict(zip(names, frame.columns, strict=True))
    if not len(frame):
        columns.choose(Table(where, names, lambda name: []))
        raise DataError(f"{where}: no row")

    def sample(name: str) -> list[Any]:
        rows = spread(len(frame))
        column = frame[own[name]]
        if hasattr(column, "null_count"):  # polars
            values = column.gather(rows).to_list()
        elif column.ndim != 1:  # the name occurs twice
            return []
        else:
            values = column.iloc[rows].tolist()
        return ["[...]" if isinstance(value, _LISTS) else value for value in values]

    return Cells.chosen(
        columns, Table(where, names, sample), lambda name: _frame_column(frame[own[name]]),
        lambda row: f"{where}, row {row}", text=False,
    )  # fmt: skip


def _frame_column(column: Any) -> list[Any] | NDArray[Any]:
    """Values of a column: an array, with NaN or NaT for nulls, or a list, with None for them."""
    if hasattr(column, "null_count"):
        return _polars_column(column)
    if str(column.dtype).startswith("period"):
        column = column.dt.to_timestamp()
    if getattr(column.dtype, "tz", None) is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    null = column.isna().to_numpy()
    known = (column[~null] if null.any() else column).to_numpy()
    if known.dtype.kind in "OUT":
        known = known.tolist()
    if not null.any():
        return known if isinstance(known, list) else np.asarray(known)
    if isinstance(known, np.ndarray) and known.dtype.kind in "fmM":
        array = np.full(len(null), np.nan if known.dtype.kind == "f" else "NaT", dtype=known.dtype)
        array[~null] = known
        return array
    values: list[Any] = [None] * len(null)
    found = known.tolist() if isinstance(known, np.ndarray) else known
    for row, value in zip(np.flatnonzero(~null).tolist(), found, strict=True):
        values[row] = value
    return values


def _polars_column(column: Any) -> list[Any] | NDArray[Any]:
    """As :func:`_frame_column`."""
    kind = column.dtype
    if kind.is_temporal():
        if str(kind) == "Time":
            column = column.cast(import_polars("a frame of polars").Duration("ns"))
        return np.asarray(column.to_numpy())  # a null is NaT
    if str(kind).startswith(("Categorical", "Enum")):
        column = column.cast(str)
    if kind.is_nested() and getattr(kind, "inner", None) is not None and kind.inner.is_float():
        return [None if value is None else value.to_numpy() for value in column]
    whole = kind.is_integer() and not str(kind).endswith("128") and not column.null_count()
    if whole or kind.is_float():
        return np.asarray(column.to_numpy())  # a null float is NaN
    return list(column.to_list())


def compact(column: Column) -> Column:
    """A list of ints as an array, which later steps read whole; others as they are."""
    if isinstance(column, list) and set(map(type, column)) == {int}:
        try:
            return np.array(column, dtype=np.int64)
        except OverflowError:  # told of later, with its row
            pass
    return column


def cell_ids(
    values: list[Any] | NDArray[Any], locate: Locate, name: str, text: bool = False
) -> Distinct:
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
        or (isinstance(x, Decimal) and -(2**63) < x < 2**63 and x == int(x))
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
