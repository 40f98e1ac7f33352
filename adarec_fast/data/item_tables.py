"""Tables of items: which columns are features, and of what kind.

A file is read as those of interactions are; a column says by its cells what it is:

* text, booleans, lists of text or of whole numbers, and text with ``|`` between values: categories,
  one or several an item;
* numbers: a number;
* lists of numbers with a fraction, all of one length: a vector.

``name:category``, ``name:number`` and ``name:vector`` overrule it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from .cells import cleaned, id_column, ids_of
from .columns import Choice, Columns, Table, guess, plain_name
from .errors import DataError
from .features import KINDS, FeatureColumn, FeatureRows, ItemTable, Kind
from .files import read_table
from .flat import lengths_to_offsets
from .item_cells import Parsed, UselessColumn, parsed
from .lists import kind as kind_of
from .separated import Layout
from .tables import Cells, read_frame
from .text import TextColumn
from .words import Distinct, Words

_OPTION = "items_id=… (--items-id-column)"


@dataclass(frozen=True)
class _ItemChoice(Choice):
    """The columns of a table of items; there are no users in it."""

    features: tuple[str, ...] = ()

    def names(self) -> list[str]:
        return [self.item, *self.features]

    def of_any_type(self, name: str) -> bool:
        return name != self.item


@dataclass(frozen=True)
class _ItemColumns(Columns):
    """Chooses an id column and the features: those ``wanted``, of which some may lack where they
    are ``optional``, or all. ``alike`` is the id column's name where nobody named it and there is
    such a column."""

    wanted: tuple[str, ...] | None = None
    optional: bool = False
    alike: str | None = None

    def choose(self, table: Table) -> Choice:
        names, there = table.names, ", ".join(map(repr, table.names)) or "none"
        for name in (self.item, *(() if self.optional else self.wanted or ())):
            if name is not None and name not in names:
                raise DataError(f"{table.where}: there is no column {name!r}; columns: {there}")
        item, why = self.item, "named"
        if item is None and self.alike in names:
            item, why = self.alike, "as in the interactions"
        if item is None:
            ids = [name for name in names if plain_name(name) == "id"]
            try:
                item, why = guess("item", table, set(), _OPTION)
            except DataError:
                if len(ids) != 1:
                    raise
                item, why = ids[0], "by its name"
        features = self.wanted or tuple(dict.fromkeys(n for n in names if n not in (item, "")))
        if self.optional:
            features = tuple(name for name in features if name in names)
            if not features:
                raise DataError(
                    f"{table.where}: none of the features {', '.join(self.wanted or ())} is one of "
                    f"the columns: {there}"
                )
        for name in (item, *features):
            if list(names).count(name) > 1:
                raise DataError(
                    f"{table.where}: the column {name!r} occurs twice; rename one of the two"
                )
        if item in features:
            raise DataError(f"{table.where}: {item!r} holds the item ids and is no feature")
        if not features:
            raise DataError(f"{table.where}: beside the item ids, {item!r}, there is no column")
        return _ItemChoice(item, item, (), None, {"item": why}, features)

    def fit(self, names: Sequence[str]) -> bool:
        if self.item is not None or self.alike in names:
            return (self.item or self.alike) in names
        return Columns(user="", item=None).fit(["", *names]) or "id" in map(plain_name, names)


def read_items(
    source: Any, *, id_column: str | None = None, features: str | Sequence[str] | None = None,
    like: Sequence[FeatureColumn] | None = None, item: str | None = None, text_ids: bool = False,
) -> ItemTable:  # fmt: skip
    """What is known of items, from a file in any format of a table, or a frame.

    Args:
        source: a path, or a pandas or polars data frame, an item a row.
        id_column: name of the column of item ids; None: told by its name.
        features: columns to take, ``"name"`` or ``"name:kind"``, as a list or with commas; None:
            all that are of use, and what was left out is told.
        like: where ``features`` are not named, columns that a run has: those of them that are
            there are taken, as what they are in the run.
        item: how the interactions call their item ids.
        text_ids: keep ids as they are written.

    Raises:
        DataError: the source cannot be read, there is no such column, an id occurs twice, or a
            cell is none of its column's kind; the message names the row.

    Example:
        >>> import polars
        >>> frame = {"item": ["a", "b"], "brand": ["x", "y"], "price": [1.5, None]}
        >>> found = read_items(polars.DataFrame(frame))
        >>> [(column.name, column.kind) for column in found.rows.columns]
        [('brand', 'category'), ('price', 'number')]
    """
    wanted, optional = _wanted(features), False
    if wanted is None and like is not None:
        wanted, optional = {column.name: column.kind for column in like}, True
    named = None if wanted is None else tuple(wanted)
    columns = _ItemColumns(
        item=id_column, text_ids=text_ids, wanted=named, optional=optional, alike=item
    )
    if isinstance(source, (str, os.PathLike)):
        cells = read_table(Path(source), columns, Layout.create(None, None))
    elif hasattr(source, "columns") and kind_of(source).endswith("DataFrame"):
        cells = read_frame(source, columns, "items")
    else:
        raise DataError(
            f"items is a {kind_of(source)}; give a path, or a pandas or polars DataFrame"
        )
    ids, rows, told = _ids(cells, text_ids)
    taken: list[Parsed] = []
    for name in cells.choice.names()[1:]:
        locate = _locate(cells, rows)
        column = cells.columns[name]
        values = column.strings() if isinstance(column, TextColumn) else column
        kept = [values[row] for row in rows.tolist()] if isinstance(values, list) else values[rows]
        try:
            kind = None if wanted is None else wanted[name]
            taken.append(parsed(name, kind, kept, locate, cells.text, wanted is not None))
        except UselessColumn as why:
            if wanted is not None and not optional:
                raise DataError(f"{cells.where}: {why}") from None
            told.append(str(why))
    if not taken:
        raise DataError(f"{cells.where}: none of the columns is a feature: {'; '.join(told)}")
    return ItemTable(cells.where, ids, _rows(taken, len(rows)), tuple(told))


def _wanted(features: str | Sequence[str] | None) -> dict[str, Kind | None] | None:
    """Kinds by column as given; None where none is."""
    if features is None:
        return None
    given = features.split(",") if isinstance(features, str) else list(features)
    found: dict[str, Kind | None] = {}
    for text in given:
        name, colon, kind = str(text).strip().rpartition(":")
        if not colon:
            name, kind = kind, ""
        if not name or (colon and kind not in KINDS) or name in found:
            raise DataError(
                f"features={text!r}: name each column once, as 'price' or 'price:KIND', where KIND "
                f"is {', '.join(KINDS)} (--features)"
            )
        found[name] = cast("Kind", kind) if colon else None
    if not found:
        raise DataError(f"features={features!r}: names no column (--features)")
    return found


def _locate(cells: Cells, rows: NDArray[np.int64]) -> Callable[[int], str]:
    return lambda row: cells.locate(int(rows[row]))


def _ids(cells: Cells, text_ids: bool) -> tuple[Distinct, NDArray[np.int64], list[str]]:
    """Ids, the rows that have one, and what was left out."""
    values, missing = cleaned(id_column(cells.columns[cells.item], text_ids))
    rows = np.flatnonzero(~missing)
    if not len(rows):
        raise DataError(f"{cells.where}: no row has an item id ({cells.item!r})")
    kept = cells.having({cells.item: values}).take(rows)
    found = ids_of(kept, cells.item, "item id", text_ids)
    ids: Distinct = found.strings() if isinstance(found, Words) else found
    first: dict[str, int] = {}
    for row, value in enumerate(ids):
        earlier = first.setdefault(str(value), row)
        if earlier != row:
            raise DataError(
                f"{kept.locate(row)}: the item {value!r} again, already in {kept.locate(earlier)}; "
                "an item is one row (several values of a category stand in a list, or with | "
                "between them)"
            )
    told = [f"{int(missing.sum()):,} rows without an item id, left out"] if missing.any() else []
    return ids, rows, told


def _rows(taken: Sequence[Parsed], number: int) -> FeatureRows:
    """The columns as one."""
    codes_of: dict[tuple[int, str], int] = {}
    for place, one in enumerate(taken):
        for text in sorted({text for own in one.labels for text in own}):
            codes_of[place, text] = len(codes_of)
    codes: list[int] = []
    sizes: list[int] = []
    for row in range(number):
        own = [codes_of[place, text] for place, one in enumerate(taken) if one.labels
               for text in one.labels[row]]  # fmt: skip
        codes += own
        sizes.append(len(own))
    dense = [one for one in taken if one.column.kind != "category"]
    numbers = np.concatenate([np.zeros((number, 0), np.float32), *(p.numbers for p in dense)], 1)
    missing = np.stack([p.missing for p in dense], 1) if dense else np.zeros((number, 0), bool)
    numbers[np.repeat(missing, [p.column.size for p in dense], 1)] = 0.0
    return FeatureRows(
        tuple(one.column for one in taken), tuple(codes_of), torch.from_numpy(numbers),
        torch.from_numpy(missing), torch.tensor(codes, dtype=torch.int64),
        lengths_to_offsets(torch.tensor(sizes, dtype=torch.int64)),
    )  # fmt: skip
