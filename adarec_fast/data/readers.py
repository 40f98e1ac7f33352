"""``load``: interaction data from files, lists and data frames."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from .columns import Choice, Columns
from .dataset import InteractionData, ReadReport
from .errors import DataError
from .flat import lengths_to_offsets
from .parquet import read_parquet
from .preprocess import Deduplicate, deduplicate, drop_short, k_core, truncate_histories
from .tables import Events, is_inter_header, read_csv, read_frame, read_inter, read_jsonl
from .text import Fields, Ids, checked_text, read_file, split_whitespace
from .times import sort_key
from .vocabulary import Vocabulary, normalise_ids

Format = Literal["auto", "sequences", "pairs", "inter", "csv", "tsv", "jsonl", "parquet"]
FORMATS: tuple[str, ...] = (
    "auto", "sequences", "pairs", "inter", "csv", "tsv", "jsonl", "parquet",
)  # fmt: skip
_EXTENSIONS = {
    ".inter": "inter",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}

logger = logging.getLogger(__name__)


def load(
    source: Any,
    *,
    format: Format = "auto",
    user: str | None = None,
    item: str | None = None,
    time: str | Sequence[str] | None = None,
    time_format: str | None = None,
    ids: Literal["auto", "text"] = "auto",
    k_core: int = 0,
    deduplicate: Deduplicate | None = None,
    min_length: int = 3,
    truncate: int | None = None,
) -> InteractionData:
    """Read interactions, sort each history by time, filter, and map ids to indices.

    Where times tie or are absent, the order of the source is kept. Items get the indices
    1..num_items in the sorted order of their ids, users 0..num_users-1 in the order in which
    they first occur. Ids of text files are int when all of a column are, else str.

    Args:
        source: a path; a list of lists of item ids, or a dict from user id to such a list,
            oldest first; or a pandas or polars data frame.
        format: how to read a path. ``"auto"`` looks at the content, then at the extension.
            ``"sequences"``: a user and all its items a line; ``"pairs"``: a user and an item a
            line (chosen by ``"auto"`` if every line has two fields and users recur);
            ``"inter"``: RecBole's typed TSV; ``"csv"``, ``"tsv"``, ``"jsonl"``, ``"parquet"``.
        user: name of the column of user ids; guessed from common names when None.
        item: name of the column of item ids; guessed likewise.
        time: name of the column of times (numbers, datetimes, dates), or names of several to
            sort by, the first before the second, such as a date and a time of day; as one text
            they have a comma between them. When None, it is guessed likewise, where it is sure.
            ``"file-order"``, or no column that looks like times: the order of the source counts.
        time_format: how times are written, as for ``strptime``; ISO 8601 and most other ways are
            read without it.
        ids: ``"auto"`` makes integers of ids that all are, and refuses a stray one among them;
            ``"text"`` keeps all as they are written.
        k_core: keep the part where every user and item has at least this many interactions.
        deduplicate: ``"consecutive"`` drops repetitions in a row, ``"all"`` all but the first
            occurrence of an item in a history.
        min_length: drop users with fewer items (after the filters above); leave-one-out needs 3.
        truncate: cut histories to this many training items, both targets kept (see
            ``truncate_histories``).

    Returns:
        The data; ``report`` says which columns were read and why, and counts what was dropped,
        which is also logged as a warning, as is a table without times.

    Raises:
        DataError: anything wrong with the source (the message names file and line) or an
            argument out of range, a column looks like times that was not named and cannot be
            told for sure, or no user is left.
    """
    if ids not in ("auto", "text"):
        raise DataError(f"ids={ids!r} must be 'auto' or 'text'")
    columns = Columns(user, item, time, time_format, ids == "text")
    if format not in FORMATS:
        raise DataError(f"format={format!r} must be one of {', '.join(map(repr, FORMATS))}")
    if isinstance(source, (str, os.PathLike)):
        data = _load_path(Path(source), format, columns)
    elif format != "auto":
        raise DataError(f"format={format!r} is for files; the source is a {_kind(source)}")
    elif _is_frame(source):
        data = _from_events(read_frame(source, columns, "data frame"), "frame", "frame")
    elif isinstance(source, Mapping) or _is_list(source):
        _refuse_columns(columns, "lists")
        data = _from_lists(source, columns.text_ids)
    else:
        raise DataError(
            f"source is a {_kind(source)}; give a path, a list of lists of item ids, a dict of "
            "them by user id, or a pandas or polars DataFrame"
        )
    return _preprocess(data, k_core, deduplicate, min_length, truncate)


def _preprocess(
    data: InteractionData, k: int, how: Deduplicate | None, min_length: int, cut: int | None
) -> InteractionData:
    report = data.report
    assert report is not None
    if how is not None:
        before, data = data.num_interactions, deduplicate(data, how)
        report = dataclasses.replace(report, num_duplicates=before - data.num_interactions)
    users, items = data.num_users, data.num_items
    data = k_core(data, k)
    report = dataclasses.replace(
        report, num_k_core_users=users - data.num_users, num_k_core_items=items - data.num_items
    )
    users = data.num_users
    data, dropped = drop_short(data, min_length)
    report = dataclasses.replace(report, num_dropped_short=dropped)
    if dropped:
        logger.warning(
            "%s: %d of %d users have fewer than %d items and were dropped",
            data.name, dropped, users, min_length,
        )  # fmt: skip
    if cut is not None:
        data = truncate_histories(data, cut)
    return dataclasses.replace(data, report=report)


def _load_path(path: Path, format: str, columns: Columns) -> InteractionData:
    content = read_file(path)
    if format == "auto" and content.startswith(b"PAR1"):
        format = "parquet"
    if format == "parquet":
        return _from_events(read_parquet(path, columns), path.stem, format)
    content = checked_text(path, content)
    if format == "auto":
        format = _detect(path, content, columns)
    if format == "inter":
        events = read_inter(path, content, columns)
    elif format in ("csv", "tsv"):
        events = read_csv(path, content, columns, "," if format == "csv" else "\t")
    elif format == "jsonl":
        events = read_jsonl(path, content, columns)
    else:
        _refuse_columns(columns, format)
        return _from_text(path, content, format, columns.text_ids)
    return _from_events(events, path.stem, format)


def _detect(path: Path, content: bytes, columns: Columns) -> str:
    """Format of a text file: by its first line, then by the extension, else ``"text"``."""
    line = content.lstrip().split(b"\n", 1)[0].decode("utf-8").rstrip("\r")
    if line.startswith("{"):
        return "jsonl"
    if is_inter_header(line):
        return "inter"
    for format, separator in (("tsv", "\t"), ("csv", ",")):
        if columns.fit([name.strip('"') for name in line.split(separator)]):
            return format
    by_extension = _EXTENSIONS.get(path.suffix.lower())
    if by_extension is not None:
        return by_extension
    if columns.given():
        named = ", ".join(f"{k}={v!r}" for k, v in columns.given().items())
        raise DataError(f"{path}:1: {named} given, but the first line {line[:80]!r} names no such "
                        "columns; name the format with format=…")  # fmt: skip
    return "text"


def _from_text(path: Path, content: bytes, format: str, text_ids: bool) -> InteractionData:
    """Whitespace-separated text: ``"sequences"``, ``"pairs"``, or whichever of them it is."""
    fields = split_whitespace(path, content)
    first = np.flatnonzero(np.diff(fields.lines, prepend=0))  # the first field of each line
    counts = np.diff(first, append=len(fields))
    if (counts == 1).any():
        row = int((counts == 1).argmax())
        name = fields[first[row : row + 1]].strings()[0]
        hint = (
            "; for comma-separated text name the columns in a first line, such as user_id,item_id"
            if "," in name
            else ""
        )
        raise DataError(
            f"{fields.locate(int(first[row]))}: user {name[:80]!r} but no item; "
            f"a line is a user and its items, separated by blanks{hint}"
        )
    all_two = bool((counts == 2).all())
    if format == "pairs" and not all_two:
        row = int((counts != 2).argmax())
        raise DataError(
            f"{fields.locate(int(first[row]))}: {counts[row]} fields; "
            "in format 'pairs' a line is one user and one item"
        )
    users = fields[first].ids("user id", text_ids)
    is_item = np.ones(len(fields), dtype=bool)
    is_item[first] = False
    items = fields[is_item].ids("item id", text_ids)
    user_ids, codes = _factorise(users)
    if format == "text":
        format = "pairs" if all_two and len(user_ids) < len(users) else "sequences"
    if format == "sequences":
        if len(user_ids) < len(users):
            raise _recurring_user(fields[first], codes)
        codes = np.repeat(codes, counts - 1)
    return _assemble(user_ids, codes, items, (), path.stem, format)


def _recurring_user(fields: Fields, codes: NDArray[np.int64]) -> DataError:
    """Names the first line whose user an earlier line had already."""
    _, earliest = np.unique(codes, return_index=True)
    again = int((earliest[codes] != np.arange(len(codes))).argmax())
    earlier = int(earliest[codes[again]])
    return DataError(
        f"{fields.locate(again)}: user {fields[[again]].strings()[0]!r} again, already on line "
        f"{int(fields.lines[earlier])}; in format 'sequences' a line is the whole history of a "
        "user (a table needs a first line that names its columns)"
    )


def _from_lists(source: Any, text_ids: bool) -> InteractionData:
    if isinstance(source, Mapping):
        users: Ids = normalise_ids(list(source), "user ids")
        histories = list(source.values())
    else:
        users = np.arange(len(source))
        histories = list(source)
    if not histories:
        raise DataError("source is empty: it holds no history")
    for number, history in enumerate(histories):
        if not _is_list(history):
            key = f"{users[number]!r}" if isinstance(source, Mapping) else str(number)
            raise DataError(
                f"source[{key}] is a {_kind(history)}; each history must be a list of item ids"
            )
    counts = np.array([len(history) for history in histories])
    flat = list(itertools.chain.from_iterable(histories))
    items = normalise_ids(flat, "item ids")
    if text_ids:
        users, items = ([str(value) for value in ids] for ids in (users, items))
    codes = np.repeat(np.arange(len(histories)), counts)
    return _assemble(users, codes, items, (), "lists", "lists")


def _from_events(events: Events, name: str, format: str) -> InteractionData:
    users, codes = _factorise(events.users)
    if not events.times:
        logger.warning("%s: %s; histories keep the order of the rows", name,
                       events.choice.why["time"])  # fmt: skip
    return _assemble(users, codes, events.items, events.times, name, format, events.choice)


def _assemble(
    users: Ids,
    codes: NDArray[np.int64],
    item_ids: Ids,
    times: tuple[NDArray[Any], ...],
    name: str,
    format: str,
    choice: Choice | None = None,
) -> InteractionData:
    """Group events by user (``codes`` index ``users``) and sort each history by time, stably."""
    items, values = _factorise(item_ids, sort=True)
    ties = 0
    if times:
        keys = (*map(sort_key, reversed(times)), codes)
        order = np.lexsort(keys)
        equal = np.ones(max(len(order) - 1, 0), dtype=bool)
        for key in keys:
            equal &= key[order[1:]] == key[order[:-1]]
        ties = int(equal.sum())
        codes, values = codes[order], values[order]
    elif (codes[1:] < codes[:-1]).any():
        order = np.argsort(codes, kind="stable")
        codes, values = codes[order], values[order]
    lengths = torch.from_numpy(np.bincount(codes, minlength=len(users)))
    return InteractionData.from_flat(
        torch.from_numpy(values + 1),
        lengths_to_offsets(lengths),
        Vocabulary(items, 1),
        Vocabulary(users, 0),
        name,
        report=_read_report(format, len(values), choice, ties),
    )


def _read_report(format: str, rows: int, choice: Choice | None, ties: int) -> ReadReport:
    if choice is None:
        return ReadReport(format, rows)
    columns = {"user": choice.user, "item": choice.item, "time": ", ".join(choice.times)}
    return ReadReport(format, rows, num_ties=ties, columns=columns, why=dict(choice.why))


def _factorise(ids: Ids, sort: bool = False) -> tuple[Ids, NDArray[np.int64]]:
    """Distinct ids, sorted or by first occurrence, and each id's place among them."""
    if isinstance(ids, list):
        distinct = sorted(set(ids)) if sort else list(dict.fromkeys(ids))
        place = {value: number for number, value in enumerate(distinct)}
        return distinct, np.fromiter(map(place.__getitem__, ids), dtype=np.int64, count=len(ids))
    unique, first, codes = np.unique(ids, return_index=True, return_inverse=True)
    codes = codes.astype(np.int64, copy=False).ravel()
    if sort:
        return unique, codes
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return unique[order], rank[codes]


def _refuse_columns(columns: Columns, format: str) -> None:
    given = columns.given()
    if columns.time_format is not None:
        given["time_format"] = columns.time_format
    for argument, value in given.items():
        raise DataError(f"{argument}={value!r}: format {format!r} has no named columns")


def _is_frame(source: object) -> bool:
    module = type(source).__module__.partition(".")[0]
    return module in ("pandas", "polars") and type(source).__name__ == "DataFrame"


def _is_list(source: object) -> bool:
    return isinstance(source, (Sequence, np.ndarray)) and not isinstance(source, (str, bytes))


def _kind(source: object) -> str:
    return f"{type(source).__module__.partition('.')[0]}.{type(source).__name__}".removeprefix(
        "builtins."
    )
