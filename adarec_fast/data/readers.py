"""``load``: interaction data from files, lists and data frames."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from ..defaults import on_cpu
from .catalogue import with_features
from .cells import events_from
from .columns import Columns
from .cuts import Cuts
from .dataset import InteractionData, ReadReport
from .errors import DataError
from .features import ItemTable
from .files import name_of, read_files
from .flat import lengths_to_offsets
from .item_tables import read_items
from .lists import Found, factorise, from_events, is_list, kind, read_lists, refuse
from .preprocess import Deduplicate, dropped_between, filtered, truncate_histories
from .separated import Layout
from .sources import expand
from .tables import read_frame
from .text import split_ids
from .time_split import Moment, SplitBy, TimeSplit
from .time_split import preprocess as preprocess_by_time
from .times import sort_key
from .vocabulary import Vocabulary

Format = Literal["auto", "sequences", "pairs", "inter", "csv", "tsv", "json", "jsonl", "parquet"]
FORMATS: tuple[str, ...] = (
    "auto", "sequences", "pairs", "inter", "csv", "tsv", "json", "jsonl", "parquet",
)  # fmt: skip

logger = logging.getLogger(__name__)


@on_cpu()
def load(
    source: Any,
    *,
    format: Format = "auto",
    user: str | None = None,
    item: str | None = None,
    time: str | Sequence[str] | None = None,
    time_format: str | None = None,
    ids: Literal["auto", "text"] = "auto",
    event: str | None = None,
    keep: str | Sequence[str] | None = None,
    separator: str | None = None,
    columns: str | Sequence[str] | None = None,
    k_core: int = 0,
    deduplicate: Deduplicate | None = None,
    min_length: int | None = None,
    truncate: int | None = None,
    split: SplitBy = "leave-one-out",
    at: Moment | None = None,
    valid_at: Moment | None = None,
    items: Any = None,
    items_id: str | None = None,
    features: str | Sequence[str] | None = None,
) -> InteractionData:
    """Read interactions, sort each history by time, filter, and map ids to indices.

    Where times tie or are absent, the order of the source is kept. Items get the indices
    1..num_items in the sorted order of their ids, users 0..num_users-1 in the order in which
    they first occur. Ids of text files are int when all of a column are, else str.

    Ids are read without blanks around them. Rows whose user or item is missing (empty, null, NaN,
    ``NA`` and the like, see ``data.text.MISSING``) are left out, counted and told.

    Args:
        source: a path, which may be compressed (gzip, bzip2, xz, zip, zstd) and may hold ``*``,
            or a list of paths, read as one data set; a list of lists of item ids, or a dict from
            user id to such a list, oldest first; or a pandas or polars data frame.
        format: how to read a path. ``"auto"`` looks at the content, then at the extension.
            ``"sequences"``: a user and all its items a line; ``"pairs"``: a user and an item a
            line (chosen by ``"auto"`` if every line has two fields and users recur);
            ``"inter"``: RecBole's typed TSV; ``"csv"``, ``"tsv"``, ``"jsonl"``, ``"parquet"``;
            ``"json"``: an array of objects or of lists, or an object of lists by user.
        user: name of the column of user ids; guessed from common names when None.
        item: name of the column of item ids; guessed likewise. A cell may hold a list of items.
        time: name of the column of times (numbers, datetimes, dates), or names of several to
            sort by, the first before the second, such as a date and a time of day; as one text
            they have a comma between them. When None, it is guessed likewise, where it is sure.
            ``"file-order"``, or no column that looks like times: the order of the source counts.
        time_format: how times are written, as for ``strptime``; ISO 8601 and most other ways are
            read without it.
        ids: ``"auto"`` makes integers of ids that all are, and refuses a stray one among them;
            ``"text"`` keeps all as they are written.
        event: name of the column that says what happened, of a log of several kinds of events.
        keep: the values of ``event`` whose rows are interactions, as a list or ``"a,b"``.
        separator: what stands between the fields of a text table; None: found out from commas,
            tabs, semicolons, ``|``, ``::`` and blanks.
        columns: names of the columns of a text table without a header, such as
            ``"user,item,_,time"``; ``_`` for one that does not matter.
        k_core: keep the part where every user and item has at least this many interactions.
        deduplicate: ``"consecutive"`` drops repetitions in a row, ``"all"`` all but the first
            occurrence of an item in a history.
        min_length: drop users with fewer items (after the filters above); by default 3, which
            leave-one-out needs, and 1 where another split is asked for.
        truncate: cut histories to this many training items, both targets kept (see
            ``truncate_histories``).
        split: how ``Split`` will hold out: ``"leave-one-out"``, the last item of each history;
            ``"time"``, what comes at ``at`` or later, of all histories alike; ``"none"``, nothing.
        at: where test begins: a moment, as a date (``"2026-01-01"``, UTC without a zone) or as a
            number like those of the time column, or a share of all interactions, such as 0.8. Of
            a split by time the catalogue is that of the training part, and filters count what
            lies before ``at``; see :mod:`adarec_fast.data.time_split`.
        valid_at: where validation begins, likewise; None: so that as many interactions (or, where
            times tie, some more) validate as test.
        items: what is known of items beside their ids: the path of a table, or a data frame, an
            item a row. Items that are in no interaction join the catalogue, behind those that the
            training part has; of a split by time, so do items that come up later. See
            :mod:`adarec_fast.data.item_tables`.
        items_id: name of its column of item ids; guessed from common names when None.
        features: its columns to use, ``"name"`` or ``"name:kind"``, where a kind is ``category``,
            ``number`` or ``vector``; when None, all that are of use.

    Returns:
        The data; ``report`` says which columns were read and why, and counts what was left out,
        which is also logged as a warning, as is a table without times.

    Raises:
        DataError: anything wrong with the source (the message names file and line) or an
            argument out of range, a column looks like times that was not named and cannot be
            told for sure, or no user is left; of a split by time, there are no times, a moment
            lies outside of them, or a part would be empty.

    Example:
        >>> af.load({"ann": ["sku-2", "sku-1", "sku-2"], "bob": ["sku-1", "sku-3", "sku-2"]})
        InteractionData 'lists': 2 users, 3 items, 6 interactions
          histories of 3 to 3 items, 3.0 in the mean
          user 'ann': 'sku-2', 'sku-1', 'sku-2'
    """
    rule = TimeSplit.create(split, at, valid_at, time_format)
    if min_length is None:
        min_length = 3 if split == "leave-one-out" else 1
    names = Columns.create(user, item, time, event, time_format, ids)
    layout = Layout.create(separator, columns)
    kept = _keep(event, keep)
    if format not in FORMATS:
        raise DataError(f"format={format!r} must be one of {', '.join(map(repr, FORMATS))}")
    table: ItemTable | None = None
    if items is not None:
        table = read_items(
            items, id_column=items_id, features=features, item=item, text_ids=ids == "text"
        )
    for argument, value in (("items_id", items_id), ("features", features)):
        if value is not None and table is None:
            raise DataError(f"{argument}={value!r} names columns of items=…, which is not given")
    if isinstance(source, (str, os.PathLike)) or _are_paths(source):
        paths = expand(source)
        data = _assemble(read_files(paths, format, names, layout, kept), name_of(paths), rule)
        return _preprocess(data, k_core, deduplicate, min_length, truncate, split, table)
    if format != "auto":
        raise DataError(f"format={format!r} is for files; the source is a {kind(source)}")
    for argument, value in layout.given().items():
        raise DataError(f"{argument}={value!r} is for files; the source is a {kind(source)}")
    if is_frame(source):
        read = events_from([read_frame(source, names, "data frame")], kept, names)
        data = _assemble(from_events(read, "frame"), "frame", rule)
    elif isinstance(source, Mapping) or is_list(source):
        refuse(names.given(), "", "lists")
        found = read_lists(source, "source", "lists", names.text_ids)
        data = _assemble(found, "lists", rule)
    else:
        raise DataError(
            f"source is a {kind(source)}; give a path, a list of lists of item ids, a dict of "
            "them by user id, or a pandas or polars DataFrame"
        )
    return _preprocess(data, k_core, deduplicate, min_length, truncate, split, table)


def _preprocess(
    data: InteractionData, k: int, how: Deduplicate | None, min_length: int, cut: int | None,
    split: SplitBy, table: ItemTable | None,
) -> InteractionData:  # fmt: skip
    report = data.report
    assert report is not None
    users = data.num_users
    if data.cuts is not None:
        known = () if table is None else table.ids
        data, removed, dropped = preprocess_by_time(data, how, k, min_length, known)
    else:
        whole = data
        data, removed = filtered(data, how, k, min_length)
        dropped = dropped_between(whole, data, k, min_length)
    report = dataclasses.replace(
        report,
        num_duplicates=removed.duplicates,
        num_k_core_users=removed.core_users,
        num_k_core_items=removed.core_items,
        num_dropped_short=removed.short_users,
        num_lost_items=removed.lost_items,
    )
    if removed.short_users:
        logger.warning(
            "%s: %d of %d users have fewer than %d items and were dropped, and with them %d items",
            data.name, removed.short_users, users, min_length, removed.lost_items,
        )  # fmt: skip
    if cut is not None:
        before, data = data.num_interactions, truncate_histories(data, cut)
        report = dataclasses.replace(report, num_cut=before - data.num_interactions)
    data = dataclasses.replace(data, report=report, dropped=dropped)
    if split == "none":
        data = train_on_all(data)
    return data if table is None else with_features(data, table)


def train_on_all(data: InteractionData) -> InteractionData:
    """The same with nothing held out, for a model that is to be used."""
    return data.replace(cuts=Cuts.at("none", data.lengths, data.lengths, {}))


def _assemble(found: Found, name: str, rule: TimeSplit | None) -> InteractionData:
    """Group events by user and sort each history by time, stably."""
    if found.choice is not None and not found.times:
        logger.warning("%s: %s; histories keep the order of the rows", name,
                       found.choice.why["time"])  # fmt: skip
    items, values = factorise(found.items, sort=True)
    codes, ties, times = found.codes, 0, found.times
    if found.times:
        keys = [sort_key(key) for key in times]
        order = np.lexsort((*reversed(keys), codes))
        codes, values = codes[order], values[order]
        equal = codes[1:] == codes[:-1]
        for key in keys:
            ordered = key[order]
            equal &= ordered[1:] == ordered[:-1]
        ties = int(equal.sum())
        if rule is not None:
            times = tuple(key[order] for key in times)
    elif (codes[1:] < codes[:-1]).any():
        order = np.argsort(codes, kind="stable")
        codes, values = codes[order], values[order]
    lengths = torch.from_numpy(np.bincount(codes, minlength=len(found.users)))
    offsets, cuts = lengths_to_offsets(lengths), None
    if rule is not None:
        why = f"{found.format} have none" if found.choice is None else found.choice.why["time"]
        cuts = rule.cuts(times, offsets, name, why)
    return InteractionData.from_flat(
        torch.from_numpy(values + 1),
        offsets,
        Vocabulary(items, 1),
        Vocabulary(found.users, 0),
        name,
        report=_read_report(found, ties),
        cuts=cuts,
    )


def _read_report(found: Found, ties: int) -> ReadReport:
    choice, left_out = found.choice, found.left_out
    report = ReadReport(
        found.format,
        left_out.rows,
        num_missing_users=left_out.no_user,
        num_missing_items=left_out.no_item,
        num_other_events=left_out.other_event,
        num_ties=ties,
    )
    if choice is None:
        return report
    columns = {"user": choice.user, "item": choice.item, "time": ", ".join(choice.times)}
    return dataclasses.replace(report, columns=columns, why=dict(choice.why))


def _keep(event: str | None, keep: str | Sequence[str] | None) -> list[str] | None:
    """The events to keep, None for all rows."""
    if keep is None and event is None:
        return None
    if keep is None:
        raise DataError(f"event={event!r}: say which of its values count with keep=… (--keep)")
    values = split_ids(keep) if isinstance(keep, str) else [str(value) for value in keep]
    if event is None or not values:
        raise DataError(
            f"keep={keep!r}: names values of the event column, with event=… (--event-column)"
        )
    return values


def _are_paths(source: object) -> bool:
    """Whether a source is a list of paths; ids and lists of them are none."""
    return (
        isinstance(source, (list, tuple))
        and len(source) > 0
        and all(isinstance(x, os.PathLike) or (isinstance(x, str) and os.path.exists(x))
                or (isinstance(x, str) and any(c in x for c in "*?/")) for x in source)
    )  # fmt: skip


def is_frame(source: object) -> bool:
    module = type(source).__module__.partition(".")[0]
    return module in ("pandas", "polars") and type(source).__name__ == "DataFrame"
