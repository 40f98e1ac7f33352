"""Files of interactions: which format they have, and several of them as one data set."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cells import LeftOut, events_from
from .columns import Columns
from .errors import DataError, EmptyFile
from .json_tables import is_one_object, read_json, read_jsonl
from .lists import Found, factorise, from_events, refuse
from .parquet import read_parquet
from .separated import SEPARATORS, Layout, likely_separator, read_separated
from .sources import Source, open_source, unpacked_name
from .tables import Cells, is_inter_header, read_inter
from .text import Fields, checked_text, split_whitespace
from .words import Ids, Words, ids_from_words

_EXTENSIONS = {
    ".inter": "inter",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


def read_files(
    paths: Sequence[Path], format: str, columns: Columns, layout: Layout,
    keep: Sequence[str] | None,
) -> Found:  # fmt: skip
    """Interactions of one file, or of several as one data set, in the order given.

    Raises:
        DataError: anything wrong with a file, or files that do not go together.
    """
    read: list[tuple[str, Cells | Found]] = []
    for path in paths:
        try:
            read.append(_read(open_source(path), format, columns, layout))
        except EmptyFile:
            if len(paths) == 1:
                raise
    if not read:
        raise DataError(f"{paths[0]}: the file is empty, as are all of the {len(paths)} files")
    tables = [part for _, part in read if isinstance(part, Cells)]
    histories = [part for _, part in read if isinstance(part, Found)]
    if tables and histories:
        raise DataError(f"{paths[0]}: some of the files are tables and some are histories")
    if histories:
        if keep is not None:
            raise DataError(f"{paths[0]}: keep (--keep) is for tables with a column of events")
        return _merged(histories, paths)
    return from_events(events_from(tables, keep, columns), read[0][0])


def read_table(path: Path, columns: Columns, layout: Layout) -> Cells:
    """The cells of one file that is a table, of whatever ``columns`` choose.

    Raises:
        DataError: anything wrong with the file, or it is no table.
    """
    found = _read(open_source(path), "auto", columns, layout)[1]
    if isinstance(found, Found):
        raise DataError(f"{path}: no table: its first line must name columns")
    return found


def name_of(paths: Sequence[Path]) -> str:
    """A short name: the file's, or what several names begin with, or else their folder's."""
    stems = [Path(unpacked_name(path.name)).stem for path in paths]
    if len(stems) == 1:
        return stems[0]
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*stems, strict=False))
    common = "".join(letters[0] for letters in alike)
    return common.rstrip("-_. 0123456789") or paths[0].parent.name or "files"


def _read(
    source: Source, format: str, columns: Columns, layout: Layout
) -> tuple[str, Cells | Found]:
    path = source.path
    if format == "parquet" or (format == "auto" and source.content.startswith(b"PAR1")):
        refuse(layout.given(), f"{path}: ", "parquet")
        return "parquet", read_parquet(source, columns)
    content = checked_text(path, source.content)
    separator = layout.separator
    if format == "auto":
        format, separator = _detect(source, content, columns, layout)
    if format in ("csv", "tsv"):
        if separator is None:
            line = _first_line(content)
            found = "\t" if format == "tsv" else layout.find(line, columns)
            separator = found or likely_separator(line)
        return format, read_separated(source, content, columns, layout, separator)
    refuse(layout.given(), f"{path}: ", format)
    if format == "inter":
        return format, read_inter(path, content, columns)
    if format == "jsonl":
        return format, read_jsonl(path, content, columns)
    if format == "json":
        return format, read_json(path, content, columns)
    refuse(columns.given(), f"{path}: ", format)
    return format, _read_text(source, content, format, columns.text_ids)


def _first_line(content: bytes) -> str:
    return content.lstrip().split(b"\n", 1)[0].decode("utf-8").rstrip("\r")


def _detect(
    source: Source, content: bytes, columns: Columns, layout: Layout
) -> tuple[str, str | None]:
    """Format of a text file: by its first line, then by the extension, else ``"text"``.

    The second value is the separator of a table's fields, where it is known.
    """
    line = _first_line(content)
    if layout.given():
        separator = layout.find(line, columns)
        if separator is None:
            raise DataError(
                f"{source.path}:1: columns={','.join(layout.names or ())!r} names "
                f"{len(layout.names or ())}, but with no separator known has the first line, "
                f"{line[:80]!r}, so many fields; name it with separator=… (--separator)"
            )
        return "csv", separator
    if line.startswith("sep=") and len(line) == 5:  # a line that Excel writes
        return "csv", line[4]
    if line.startswith("{"):
        return ("json" if is_one_object(content, line) else "jsonl"), None
    if line.startswith("["):
        return "json", None
    if is_inter_header(line):
        return "inter", None
    separator = layout.find(line, columns)
    if separator is not None:
        return ("tsv" if separator == "\t" else "csv"), separator
    by_extension = _EXTENSIONS.get(source.suffix)
    if by_extension is not None:
        return by_extension, None
    if columns.given():
        named = ", ".join(f"{k}={v!r}" for k, v in columns.given().items())
        raise DataError(f"{source.path}:1: {named} given, but the first line {line[:80]!r} names "
                        "no such columns; name the format with format=…")  # fmt: skip
    return "text", None


def _read_text(source: Source, content: bytes, format: str, text_ids: bool) -> Found:
    """Whitespace-separated text: ``"sequences"``, ``"pairs"``, or whichever of them it is."""
    fields = split_whitespace(source.path, content)
    first = np.flatnonzero(np.diff(fields.lines, prepend=0))  # the first field of each line
    counts = np.diff(first, append=len(fields))
    if (counts == 1).any():
        raise _lonely_user(fields, int(first[int((counts == 1).argmax())]))
    all_two = bool((counts == 2).all())
    if format == "pairs" and not all_two:
        row = int((counts != 2).argmax())
        raise DataError(
            f"{fields.locate(int(first[row]))}: {counts[row]} fields; "
            "in format 'pairs' a line is one user and one item"
        )
    is_item = np.ones(len(fields), dtype=bool)
    is_item[first] = False
    users, no_user = _text_ids(fields[first], "user id", text_ids)
    items, no_item = _text_ids(fields[is_item], "item id", text_ids)
    owner = np.repeat(np.arange(len(first)), counts - 1)
    known = ~no_user
    place = np.cumsum(known) - 1  # of a line's user among those that have one
    user_ids, codes = factorise(users)
    if format == "text":
        format = "pairs" if all_two and len(user_ids) < len(users) else "sequences"
    if format == "sequences" and len(user_ids) < len(users):
        raise _recurring_user(fields[first][known], codes)
    keep = known[owner] & ~no_item
    left_out = LeftOut(len(owner), int(no_user[owner].sum()), int((no_item & known[owner]).sum()))
    if not keep.any():
        raise DataError(f"{source.path}: no line has both a user id and an item id")
    return Found(user_ids, codes[place[owner[keep]]], items[keep[~no_item]], (), format, left_out)


def _text_ids(
    fields: Fields, what: str, text: bool
) -> tuple[NDArray[np.int64] | Words, NDArray[np.bool_]]:
    """Ids of the fields that have one, and which have none."""
    numbers = None if text else fields.numbers()
    if numbers is not None:
        return numbers, np.zeros(len(fields), dtype=bool)
    words, missing = Words.of(fields.strings()).cleaned()
    known = np.flatnonzero(~missing)
    words = words[known] if missing.any() else words
    return ids_from_words(words, what, lambda row: fields.locate(int(known[row])), text), missing


def _merged(parts: Sequence[Found], paths: Sequence[Path]) -> Found:
    """Histories of several files; in a table of pairs users may recur, else they may not."""
    if len(parts) == 1:
        return parts[0]
    users, codes = factorise(_all_ids([part.users for part in parts]))
    formats = {part.format for part in parts}
    if len(users) < len(codes) and formats != {"pairs"}:
        _, earliest = np.unique(codes, return_index=True)
        again = int((earliest[codes] != np.arange(len(codes))).argmax())
        raise DataError(
            f"{paths[0]} and the other files: user {users[int(codes[again])]!r} occurs twice; a "
            "line is the whole history of a user"
        )
    begins = np.cumsum([0, *(len(part.users) for part in parts)])
    places = [codes[begin + part.codes] for begin, part in zip(begins, parts, strict=False)]
    left_out = sum((part.left_out for part in parts), LeftOut())
    items = _all_ids([part.items for part in parts])
    return Found(users, np.concatenate(places), items, (), parts[0].format, left_out)


def _all_ids(parts: Sequence[Ids]) -> Ids:
    """Ids of all parts, as text if those of one are."""
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) == len(parts):
        return np.concatenate(arrays)
    return [str(x) for part in parts for x in _listed(part)]


def _listed(ids: Ids) -> list[Any]:
    if isinstance(ids, np.ndarray):
        return ids.tolist()
    return ids.strings() if isinstance(ids, Words) else ids


def _lonely_user(fields: Fields, place: int) -> DataError:
    """Tells a line with one field, by what may be meant by it."""
    name = fields[np.array([place])].strings()[0]
    mark = next((mark for mark in SEPARATORS[:-1] if mark in name), None)
    hint = ""
    if mark is not None:
        hint = (
            f"; fields between {mark!r} need a first line that names them, such as "
            f"{mark.join(('user_id', 'item_id'))}, or columns=… (--columns user,item,time)"
        )
    return DataError(
        f"{fields.locate(place)}: user {name[:80]!r} but no item; "
        f"a line is a user and its items, separated by blanks{hint}"
    )


def _recurring_user(fields: Fields, codes: NDArray[np.int64]) -> DataError:
    """Names the first line whose user an earlier line had already."""
    _, earliest = np.unique(codes, return_index=True)
    again = int((earliest[codes] != np.arange(len(codes))).argmax())
    earlier = int(earliest[codes[again]])
    return DataError(
        f"{fields.locate(again)}: user {fields[[again]].strings()[0]!r} again, already on line "
        f"{int(fields.lines[earlier])}; in format 'sequences' a line is the whole history of a "
        "user (a table needs a first line that names its columns, or columns=…, --columns "
        "user,item,time)"
    )
