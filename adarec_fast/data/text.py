"""Text files as bytes: checks, fields, and ids parsed a whole column at a time."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, EmptyFile

Locate = Callable[[int], str]

_SPACE = np.zeros(256, dtype=bool)
_SPACE[list(b" \t\n\v\f\r")] = True
# What programs write where there is no value; compared without blanks and in lower case.
MISSING = frozenset(
    ["", "-", "na", "n/a", "#n/a", "nan", "-nan", "nil", "null", "(null)", "none", "<na>", "nat",
     "\\n", "undefined"]
)  # fmt: skip
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def known(value: Any) -> Any:
    """A cell without blanks around it; None where it says that there is no value."""
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in MISSING:
            return None
        return value if len(text) == len(value) else text
    if isinstance(value, (float, np.floating, Decimal)) and value != value:
        return None
    return None if type(value).__name__ in ("NAType", "NaTType") else value


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: it is missing, a folder, unreadable, or empty.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder; give the path of a file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not data.removeprefix(BYTE_ORDER_MARK).strip():
        raise EmptyFile(f"{path}: the file is empty")
    return data


def checked_text(path: Path, data: bytes) -> bytes:
    """UTF-8 text without byte order mark and with ``\\n`` among its line ends.

    UTF-16 and UTF-32 are known by their byte order mark, UTF-16 without one by its NUL bytes.

    Raises:
        DataError: a NUL byte, or bytes that are not UTF-8, with file and line.
    """
    encoding = _wide_encoding(data)
    if encoding is not None:
        try:
            data = data.decode(encoding).encode()
        except UnicodeError as error:  # surrogates that stand alone are refused when encoded
            raise DataError(f"{path}: not {encoding}: {error}") from error
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise DataError(f"{path}:{line}: a NUL byte; the file must be UTF-8 text (or Parquet)")
    if not data.isascii():
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise DataError(
                f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}: {error.reason}); "
                "convert the file to UTF-8"
            ) from error
    data = data.removeprefix(BYTE_ORDER_MARK)
    if b"\r" in data and b"\n" not in data:
        data = data.replace(b"\r", b"\n")
    if encoding is not None and not data.strip():
        raise EmptyFile(f"{path}: the file is empty")
    return data


def _wide_encoding(data: bytes) -> str | None:
    """``utf-16…`` or ``utf-32`` where the text is written so, else None."""
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    # The ids, separators and line ends of a first line are mostly Latin: every second byte is NUL.
    start = data[:64]
    if len(start) >= 8 and len(data) % 2 == 0:
        for encoding, first in (("utf-16-le", 1), ("utf-16-be", 0)):
            if not any(start[first::2]) and all(start[1 - first :: 2]):
                return encoding
    return None


class TextColumn:
    """A column of a text file, of which Python strings are made only where they must be."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: Any) -> TextColumn:
        raise NotImplementedError

    def numbers(self) -> NDArray[np.int64] | None:
        """int64 [len(self)] if every cell is an integer in canonical form, else None."""
        raise NotImplementedError

    def strings(self) -> list[str]:
        """The cells, ``""`` where one is empty."""
        raise NotImplementedError


@dataclass(frozen=True)
class Fields(TextColumn):
    """Fields of a text file: ``data[starts[i]:ends[i]]`` on line ``lines[i]`` (from 1)."""

    path: Path
    data: bytes
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    lines: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> Fields:
        return Fields(self.path, self.data, self.starts[index], self.ends[index], self.lines[index])

    def locate(self, index: int) -> str:
        """``file:line`` of one field."""
        return f"{self.path}:{int(self.lines[index])}"

    def strings(self) -> list[str]:
        data = self.data
        ranges = zip(self.starts.tolist(), self.ends.tolist(), strict=True)
        return [data[start:end].decode("utf-8") for start, end in ranges]

    def numbers(self) -> NDArray[np.int64] | None:
        numbers, good = _parse_integers(self.data, self.starts, self.ends)
        return numbers if good.all() else None


@dataclass(frozen=True)
class JoinedText(TextColumn):
    """Columns of several files, one behind the other; ``rows`` of them, or all."""

    parts: tuple[TextColumn, ...]
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return sum(map(len, self.parts)) if self.rows is None else len(self.rows)

    def __getitem__(self, index: Any) -> JoinedText:
        rows = np.arange(len(self)) if self.rows is None else self.rows
        return JoinedText(self.parts, rows[index])

    def numbers(self) -> NDArray[np.int64] | None:
        numbers = np.empty(len(self), dtype=np.int64)
        for places, part in self._parts():
            found = part.numbers()
            if found is None:
                return None
            numbers[places] = found
        return numbers

    def strings(self) -> list[str]:
        if self.rows is None:
            return [text for part in self.parts for text in part.strings()]
        strings = np.empty(len(self), dtype=object)
        for places, part in self._parts():
            strings[places] = part.strings()
        found: list[str] = strings.tolist()
        return found

    def _parts(self) -> Iterator[tuple[slice | NDArray[np.int64], TextColumn]]:
        """What there is of each part, and at which places of this column."""
        end = 0
        for part in self.parts:
            begin, end = end, end + len(part)
            if self.rows is None:
                yield slice(begin, end), part
                continue
            places = np.flatnonzero((self.rows >= begin) & (self.rows < end))
            if len(places):
                yield places, part[self.rows[places] - begin]


def split_whitespace(path: Path, data: bytes) -> Fields:
    """All whitespace-separated fields of a text, in order."""
    buffer = np.frombuffer(data, dtype=np.uint8)
    text = np.zeros(len(buffer) + 2, dtype=bool)
    text[1:-1] = ~_SPACE[buffer]
    starts = np.flatnonzero(text[1:] & ~text[:-1])
    ends = np.flatnonzero(~text[1:] & text[:-1])
    newlines = np.flatnonzero(buffer == ord("\n"))
    return Fields(path, data, starts, ends, np.searchsorted(newlines, starts) + 1)


def split_tabs(path: Path, data: bytes) -> list[Fields]:
    """Columns of a tab-separated text with a header line; blank lines are skipped.

    Raises:
        DataError: a line has not as many fields as the header.
    """
    buffer = np.frombuffer(data, dtype=np.uint8)
    newlines = np.flatnonzero(buffer == ord("\n"))
    line_starts = np.concatenate([[0], newlines + 1])
    line_ends = np.concatenate([newlines, [len(buffer)]])
    has_return = (line_ends > line_starts) & (buffer[line_ends - 1] == ord("\r"))
    line_ends = line_ends - has_return
    lines = np.arange(1, len(line_starts) + 1)
    filled = line_ends > line_starts
    line_starts, line_ends, lines = line_starts[filled], line_ends[filled], lines[filled]
    tabs = np.flatnonzero(buffer == ord("\t"))
    counts = np.searchsorted(tabs, line_ends) - np.searchsorted(tabs, line_starts)
    wrong = counts != counts[0]
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{path}:{lines[row]}: {counts[row] + 1} tab-separated fields, "
            f"the header has {counts[0] + 1}"
        )
    table = tabs.reshape(len(lines), int(counts[0]))
    starts = np.column_stack([line_starts, table + 1])[1:]
    ends = np.column_stack([table, line_ends])[1:]
    return [Fields(path, data, starts[:, j], ends[:, j], lines[1:]) for j in range(starts.shape[1])]


def _parse_integers(
    data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Fields as int64, and which of them are integers in canonical form of at most 18 digits."""
    values = np.zeros(len(starts), dtype=np.int64)
    if not len(starts):
        return values, np.ones(0, dtype=bool)
    buffer = np.frombuffer(data, dtype=np.uint8)
    last = len(buffer) - 1
    lead = buffer[starts.clip(max=last)]
    negative = (lead == ord("-")) & (ends > starts)
    begins = starts + negative
    digits = ends - begins
    lead = buffer[begins.clip(max=last)]
    good = (digits >= 1) & (digits <= 18)
    good &= (lead != ord("0")) | ((digits == 1) & ~negative)
    for place in range(int(digits[good].max(initial=0))):
        active = place < digits
        digit = buffer[(begins + place).clip(max=last)] - np.uint8(ord("0"))  # wraps when < "0"
        good &= ~active | (digit <= 9)
        values = np.where(active, values * 10 + digit, values)
    return np.where(negative, -values, values), good


def split_ids(text: str) -> list[str]:
    """The ids of ``ID,ID,...``; one with a comma stands in double quotes, as in CSV.

    Raises:
        DataError: a quote without its second, or a line break outside quotes.
    """
    try:
        rows = list(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise DataError(f"{text!r} is not ID,ID,... with ids in double quotes: {error}") from None
    return [part.strip() for row in rows for part in row if part.strip()]
