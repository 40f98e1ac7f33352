"""Histories as lists, and what every reader hands on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cells import LeftOut, Read, cleaned_values
from .columns import Choice
from .errors import DataError, EmptyFile
from .vocabulary import normalise_ids
from .words import Distinct, Ids, Words


@dataclass(frozen=True)
class Found:
    """Interactions as read, in the order of the source.

    Attributes:
        users: ids, each once, in the order in which they first occur.
        codes: int64, the place in ``users`` of each interaction's user.
        items: the item id of each interaction.
        times: what to sort by, the first before the second, of each interaction; none where the
            order of the source counts.
        format: the format that was read.
        left_out: what was no interaction.
        choice: the columns of a table that they are from.
    """

    users: Distinct
    codes: NDArray[np.int64]
    items: Ids
    times: tuple[NDArray[Any], ...]
    format: str
    left_out: LeftOut
    choice: Choice | None = None


def from_events(read: Read, format: str) -> Found:
    """What a table holds."""
    events = read.events
    users, codes = factorise(events.users)
    return Found(users, codes, events.items, events.times, format, read.left_out, events.choice)


def read_lists(source: Any, where: str, format: str, text_ids: bool) -> Found:
    """Lists of item ids, or a mapping from user ids to such.

    Ids that are missing are left out, as everywhere.

    Args:
        source: the lists, oldest first.
        where: what messages call it, such as ``source``.
        format: what the report calls it.
        text_ids: make text of all ids.

    Raises:
        DataError: no history, one that is no list, or an id that is neither int nor str.
    """
    named = isinstance(source, Mapping)
    histories = list(source.values()) if named else list(source)
    if not histories:
        raise EmptyFile(f"{where} is empty: it holds no history")
    for number, history in enumerate(histories):
        if not is_list(history):
            key = f"{list(source)[number]!r}" if named else str(number)
            raise DataError(
                f"{where}[{key}] is a {kind(history)}; each history must be a list of item ids"
            )
    counts = np.array([len(history) for history in histories])
    owner = np.repeat(np.arange(len(histories)), counts)
    keys, no_user = cleaned_values(list(source) if named else np.arange(len(histories)))
    items, no_item = cleaned_values(list(itertools.chain.from_iterable(histories)))
    left_out = LeftOut(
        len(owner), int(no_user[owner].sum()), int((no_item & ~no_user[owner]).sum())
    )
    keep = ~(no_user[owner] | no_item)
    if not keep.all():
        items = [items[row] for row in np.flatnonzero(keep).tolist()]
    users: Distinct = np.arange(len(histories))
    if named:
        users = normalise_ids([key for key, no in zip(keys, no_user, strict=True) if not no],
                              "user ids")  # fmt: skip
    codes = (np.cumsum(~no_user) - 1)[owner] if named else owner
    items = normalise_ids(items, "item ids")
    if text_ids:
        users, items = ([str(value) for value in ids] for ids in (users, items))
    return Found(users, codes[keep], items, (), format, left_out)


def factorise(ids: Ids, sort: bool = False) -> tuple[Distinct, NDArray[np.int64]]:
    """Distinct ids, sorted or by first occurrence, and each id's place among them."""
    if isinstance(ids, Words):
        return ids.factorised(sort)
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


def is_list(source: object) -> bool:
    return isinstance(source, (Sequence, np.ndarray)) and not isinstance(source, (str, bytes))


def kind(source: object) -> str:
    """The type of an object as its users call it."""
    return f"{type(source).__module__.partition('.')[0]}.{type(source).__name__}".removeprefix(
        "builtins."
    )


def refuse(given: Mapping[str, Any], where: str, format: str) -> None:
    """Refuse arguments that are for other formats.

    Raises:
        DataError: there is one.
    """
    for argument, value in given.items():
        raise DataError(
            f"{where}{argument}={value!r}: is for text tables, not for format {format!r}"
            if argument in ("separator", "columns")
            else f"{where}{argument}={value!r}: format {format!r} has no named columns"
        )
