"""Text tables: fields between separators, under a header or without one."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import Columns
from .errors import DataError
from .sources import Source
from .tables import Cells, import_polars
from .text import TextColumn, split_whitespace

BLANKS = " "  # any number of blanks and tabs
SEPARATORS = (",", "\t", ";", "|", "::", "\x01", BLANKS)
_NAMED = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "blank": BLANKS,
          "blanks": BLANKS, "space": BLANKS}  # fmt: skip
# Stands for a separator of several characters while the text is split.
_UNIT = "\x1f"
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_BLANK_INTEGER = re.compile(r"\s*(0|-?[1-9][0-9]{0,17})\s*")
_EXCEL = re.compile(rb"sep=(.)\r?\n")  # a first line that Excel writes and reads
_HEAD = 1 << 16
_LONGEST = 1 << 30


@dataclass(frozen=True)
class Layout:
    """How a text table is written, as far as the caller says it.

    Attributes:
        separator: what stands between two fields; None is found out.
        names: the columns' names where no first line holds them.
    """

    separator: str | None = None
    names: tuple[str, ...] | None = None

    @classmethod
    def create(cls, separator: str | None, names: str | Sequence[str] | None) -> Layout:
        """Checked values of ``load``.

        Raises:
            DataError: an empty separator or one with a quote or a line break; a name twice.
        """
        if separator is not None:
            separator = _NAMED.get(separator, separator)
            if not separator or set(separator) & set('"\r\n') or not separator.isascii():
                raise DataError(
                    f"separator={separator!r}: must be text between two fields, such as ',', ';', "
                    "'::' or 'tab'"
                )
        if names is not None:
            names = names.split(",") if isinstance(names, str) else list(names)
            names = [str(name).strip() for name in names]
            twice = next((x for x in names if names.count(x) > 1 and x not in ("", "_")), None)
            if twice is not None or len(names) < 2:
                raise DataError(
                    f"columns={','.join(names)!r}: must name each column of a file without a "
                    "header once, such as user,item,time; _ stands for one that does not matter"
                )
        return cls(separator, None if names is None else tuple(names))

    def given(self) -> dict[str, str]:
        names = None if self.names is None else ",".join(self.names)
        values = {"separator": self.separator, "columns": names}
        return {name: value for name, value in values.items() if value is not None}

    def find(self, line: str, columns: Columns) -> str | None:
        """The separator of a first line that is a header, or has as many fields as ``names``."""
        for separator in SEPARATORS if self.separator is None else (self.separator,):
            fields = fields_of(line, separator)
            if len(fields) == len(self.names) if self.names else columns.fit(fields):
                return separator
        return self.separator


def fields_of(line: str, separator: str) -> list[str]:
    """The fields of one line, without blanks and quotes around them."""
    if separator == BLANKS:
        return line.split()
    mark = separator if len(separator) == 1 else _UNIT
    if len(separator) > 1:
        line = line.replace(separator, _UNIT)
    try:
        rows = list(csv.reader([line], delimiter=mark, skipinitialspace=True))
    except csv.Error:
        return line.split(mark)
    return [field.strip() for field in rows[0]] if rows else []


def likely_separator(line: str) -> str:
    """The first separator that a line holds; a comma where it holds none."""
    return next((mark for mark in SEPARATORS[:-1] if mark in line), ",")


class PolarsText(TextColumn):
    """A column of text held by polars."""

    def __init__(self, series: Any) -> None:
        self.series = series

    def __len__(self) -> int:
        return len(self.series)

    def __getitem__(self, index: NDArray[np.int64]) -> TextColumn:
        return PolarsText(self.series.gather(index))

    def numbers(self) -> NDArray[np.int64] | None:
        text = self.series
        # One value tells most columns of text, without a look at all of them.
        if text.null_count() or (len(text) and not _BLANK_INTEGER.fullmatch(text[0])):
            return None
        if not text.str.contains(_INTEGER).all():
            text = text.str.strip_chars()
            if not text.str.contains(_INTEGER).all():
                return None
        return np.asarray(text.cast(import_polars("text").Int64).to_numpy())

    def strings(self) -> list[str]:
        strings: list[str] = self.series.fill_null("").to_list()
        return strings


def read_separated(
    source: Source, data: bytes, columns: Columns, layout: Layout, mark: str
) -> Cells:
    """A text table whose fields stand between ``mark``; blank lines are skipped.

    Fields may be quoted as in RFC 4180, but not between tabs, unless the header is. A quote
    inside of a field that does not begin with one is a character like others.

    Raises:
        DataError: a line with too many fields, a quote without its second, no such columns.
    """
    path = source.path
    if mark == BLANKS:
        return _read_blanks(source, data, columns, layout)
    polars = import_polars(f"{path}: reading {'TSV' if mark == chr(9) else 'CSV'}")
    excel = _EXCEL.match(data)
    if excel:
        data = b"\n" + data[excel.end() :]  # lines keep their numbers
    above = data.count(b"\n", 0, len(data) - len(data.lstrip(b"\r\n")))
    data = data.lstrip(b"\r\n")
    if len(mark) > 1:
        if _UNIT.encode() in data:
            raise DataError(f"{path}: fields between {mark!r} must not hold the character 0x1f")
        data, mark = data.replace(mark.encode(), _UNIT.encode()), _UNIT
    head = data[:_HEAD].decode("utf-8", "ignore")
    quoted = b'"' in data and (mark != "\t" or head.startswith('"'))
    first = next((row for _, row in _rows(head, mark, quoted, False)), [])
    names = _names(source, [name.strip() for name in first], columns, layout)
    empty = "no row" if layout.names else "there is a header but no row"
    if quoted and not _regular(data, mark):
        lines, fields = _split_slowly(source, data, mark, len(names), above)
        begin, text = 0 if layout.names else 1, polars.String
        return Cells.of_text(
            columns, str(path), names,
            lambda name: PolarsText(polars.Series(fields[names.index(name)][begin:], dtype=text)),
            lambda row: f"{path}:{lines[row + begin]}", len(lines) - begin, empty,
        )  # fmt: skip
    try:
        frame = polars.read_csv(
            io.BytesIO(data), separator=mark, quote_char='"' if quoted else None,
            infer_schema_length=0, has_header=layout.names is None,
        )  # fmt: skip
    except polars.exceptions.PolarsError as error:
        raise _problem(source, data, mark, quoted, above, error) from error
    blank = frame.select(polars.all_horizontal(polars.all().is_null())).to_series().to_numpy()
    rows = np.flatnonzero(~blank)
    if blank.any():
        frame = frame.filter(~blank)

    def locate(row: int) -> str:
        line = _line(data, quoted, int(rows[row]) + (layout.names is None))
        return f"{path}:{above + line}"

    return Cells.of_text(
        columns, str(path), names, lambda name: PolarsText(frame[:, names.index(name)]), locate,
        len(frame), empty,
    )  # fmt: skip


def _names(source: Source, first: list[str], columns: Columns, layout: Layout) -> list[str]:
    """Names of the columns: the first line's fields, or those that the caller gave."""
    if layout.names is None:
        data = any(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in first)
        if data and not columns.given() and not columns.fit(first):
            raise DataError(
                f"{source.path}:1: the first line, {', '.join(map(repr, first[:6]))}, names no "
                "columns; if it is data already, name them with columns=… (--columns "
                f"{','.join(['user', 'item', 'time', *['_'] * len(first)][: len(first)])}, in the "
                "order of the file)"
            )
        return first
    names = list(layout.names)
    if len(names) != len(first):
        raise DataError(
            f"{source.path}:1: {len(first)} fields, but columns={','.join(names)!r} names "
            f"{len(names)}; _ stands for one that does not matter"
        )
    if Columns().fit(first) or set(names) == set(first):
        raise DataError(
            f"{source.path}:1: the first line, {', '.join(map(repr, first[:6]))}, names the "
            "columns already; leave out columns=… (--columns)"
        )
    return names


def _regular(data: bytes, mark: str) -> bool:
    """Whether every quote opens or closes a field, or is one of two that stand for one."""
    buffer = np.frombuffer(data, dtype=np.uint8)
    quotes = np.flatnonzero(buffer == ord('"'))
    if len(quotes) % 2:
        return False
    ends = np.zeros(256, dtype=bool)
    ends[[ord(mark), ord("\n"), ord("\r")]] = True
    opens, closes = quotes[0::2], quotes[1::2]
    before = ends[buffer[np.maximum(opens - 1, 0)]] | (opens == 0)
    after = ends[buffer[np.minimum(closes + 1, len(buffer) - 1)]] | (closes == len(buffer) - 1)
    doubled = closes[:-1] + 1 == opens[1:]
    before[1:] |= doubled
    after[:-1] |= doubled
    return bool(before.all() and after.all())


def _split_slowly(
    source: Source, data: bytes, mark: str, width: int, above: int
) -> tuple[list[int], list[list[str | None]]]:
    """Lines and columns of a text with quotes that only a reader in order understands."""
    lines: list[int] = []
    columns: list[list[str | None]] = [[] for _ in range(width)]
    line = above
    try:
        for line, row in _rows(data.decode("utf-8"), mark, True, True, above):
            if not row:
                continue
            if len(row) > width:
                raise DataError(f"{source.path}:{line}: {len(row)} fields, the header has {width}")
            lines.append(line)
            for column, field in itertools.zip_longest(columns, row):
                column.append(field)
    except csv.Error as error:
        raise DataError(f"{source.path}:{line + 1}: {error}") from error
    return lines, columns


def _rows(
    text: str, mark: str, quoted: bool, strict: bool, above: int = 0
) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row, the header first; slow."""
    make = functools.partial(csv.reader, io.StringIO(text, newline=""), delimiter=mark)
    reader = make(strict=strict, skipinitialspace=True) if quoted else make(quoting=csv.QUOTE_NONE)
    line = above + 1
    limit = csv.field_size_limit(_LONGEST)  # reviews are longer than Python's own limit
    try:
        for row in reader:
            yield line, row
            line = above + reader.line_num + 1
    finally:
        csv.field_size_limit(limit)


def _line(data: bytes, quoted: bool, row: int) -> int:
    """Line of a row (from 0, the header counted) of a text whose quotes are regular."""
    buffer = np.frombuffer(data, dtype=np.uint8)
    newlines = np.flatnonzero(buffer == ord("\n"))
    ends = newlines
    if quoted:  # a line break between quotes ends no row
        quotes = np.flatnonzero(buffer == ord('"'))
        ends = newlines[np.searchsorted(quotes, newlines) % 2 == 0]
    return 1 if row == 0 else int(np.searchsorted(newlines, ends[row - 1])) + 2


def _problem(
    source: Source, data: bytes, mark: str, quoted: bool, above: int, error: Exception
) -> DataError:
    """The line that polars stumbled over, found on a second pass."""
    line, width = above, None
    try:
        for line, row in _rows(data.decode("utf-8"), mark, quoted, True, above):
            width = len(row) if width is None else width
            if len(row) > width:
                return DataError(f"{source.path}:{line}: {len(row)} fields, the header has {width}")
    except csv.Error as problem:
        return DataError(f"{source.path}:{line + 1}: {problem}")
    return DataError(f"{source.path}: {str(error).splitlines()[0]}")


def _read_blanks(source: Source, data: bytes, columns: Columns, layout: Layout) -> Cells:
    """A table whose fields stand between blanks."""
    fields = split_whitespace(source.path, data)
    first = np.flatnonzero(np.diff(fields.lines, prepend=0))
    counts = np.diff(first, append=len(fields))
    names = _names(source, fields[: int(counts[0])].strings(), columns, layout)
    width = len(names)
    wrong = counts != width
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{fields.locate(int(first[row]))}: {counts[row]} fields between blanks, the "
            f"{'columns named are' if layout.names else 'header has'} {width}"
        )
    body = fields if layout.names else fields[width:]
    return Cells.of_text(
        columns, str(source.path), names, lambda name: body[names.index(name) :: width],
        body[::width].locate, len(body) // width,
        "no row" if layout.names else "there is a header but no row",
    )  # fmt: skip
