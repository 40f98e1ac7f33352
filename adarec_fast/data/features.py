"""What is known of items beside their ids: categories, numbers and vectors, a row an item.

:class:`FeatureRows` is a table of them as it was read, :class:`ItemFeatures` the same in the order
of a catalogue, whose first items are those that training has (:mod:`.catalogue`). Nothing here is
scaled: what a model makes of it, it keeps itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .flat import gather_ranges, lengths_to_offsets
from .words import Distinct

Kind = Literal["category", "number", "vector"]
KINDS: tuple[Kind, ...] = ("category", "number", "vector")
_TENSORS = ("numbers", "missing", "codes", "rows")


class FeatureColumn(NamedTuple):
    """A column: its name, its kind, and its size, which is 1 but for a vector's."""

    name: str
    kind: Kind
    size: int = 1


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """Features of R things.

    Attributes:
        columns: in the order of the source.
        labels: the C values that categories have, as (place in ``columns``, text); new ones come
            behind.
        numbers: float32 ``[R, F]``, numbers and vectors side by side; 0 where missing.
        missing: bool ``[R, G]``, of each column of numbers or a vector.
        codes: int64 ``[N]``, places in ``labels``, a thing's beside each other.
        rows: int64 ``[R+1]``, where each thing's codes begin.
    """

    columns: tuple[FeatureColumn, ...]
    labels: tuple[tuple[int, str], ...]
    numbers: Tensor
    missing: Tensor
    codes: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return self.rows.shape[0] - 1

    @property
    def dense(self) -> list[FeatureColumn]:
        """The columns of ``missing``."""
        return [column for column in self.columns if column.kind != "category"]

    def take(self, places: Tensor) -> FeatureRows:
        """Rows by their places, int64; -1 gives one of which nothing is known."""
        there = places >= 0
        chosen = places.clamp(min=0)
        if not len(self):
            sizes = torch.zeros_like(places)
            numbers = self.numbers.new_zeros(len(places), self.numbers.shape[1])
            missing = self.missing.new_ones(len(places), self.missing.shape[1])
        else:
            sizes = torch.where(there, self.rows.diff()[chosen], 0)
            numbers = torch.where(there[:, None], self.numbers[chosen], 0.0)
            missing = self.missing[chosen] | ~there[:, None]
        codes, rows = gather_ranges(self.codes, self.rows[chosen], sizes)
        return replace(self, numbers=numbers, missing=missing, codes=codes, rows=rows)

    def above(self, other: FeatureRows) -> FeatureRows:
        """These rows, and below them another table's, in these columns: of a column that it does
        not have nothing is known, further ones are left out, and values new to a column of
        categories join ``labels`` at the end.

        Raises:
            DataError: a column is of another kind or size there.
        """
        theirs = {column.name: (place, column) for place, column in enumerate(other.columns)}
        for column in self.columns:
            found = theirs.get(column.name)
            if found is not None and found[1] != column:
                raise DataError(
                    f"feature {column.name!r} is a {_kind(found[1])} in the new table and was a "
                    f"{_kind(column)} before"
                )
        numbers = other.numbers.new_zeros(len(other), self.numbers.shape[1])
        missing = other.missing.new_ones(len(other), self.missing.shape[1])
        theirs_at, begin = {}, 0
        for row, column in enumerate(other.dense):
            theirs_at[column.name] = begin, row
            begin += column.size
        begin = 0
        for row, column in enumerate(self.dense):
            if column.name in theirs_at:
                source, their_row = theirs_at[column.name]
                values = other.numbers[:, source : source + column.size]
                numbers[:, begin : begin + column.size] = values
                missing[:, row] = other.missing[:, their_row]
            begin += column.size
        own = {column.name: place for place, column in enumerate(self.columns)}
        place_of = {label: place for place, label in enumerate(self.labels)}
        code_of = torch.full((len(other.labels) + 1,), -1)
        for code, (column_place, text) in enumerate(other.labels):
            name = other.columns[column_place].name
            if name in own:
                code_of[code] = place_of.setdefault((own[name], text), len(place_of))
        codes = code_of[other.codes]
        owner = torch.repeat_interleave(torch.arange(len(other)), other.rows.diff())
        sizes = torch.bincount(owner[codes >= 0], minlength=len(other))
        return FeatureRows(
            self.columns, tuple(place_of), torch.cat([self.numbers, numbers]),
            torch.cat([self.missing, missing]), torch.cat([self.codes, codes[codes >= 0]]),
            lengths_to_offsets(torch.cat([self.rows.diff(), sizes])),
        )  # fmt: skip


def _kind(column: FeatureColumn) -> str:
    return f"vector of {column.size}" if column.kind == "vector" else column.kind


@dataclass(frozen=True, eq=False)
class ItemTable:
    """A table of items as it was read.

    Attributes:
        where: the source, for messages.
        ids: of the items, each once.
        rows: a row an item.
        told: what was left out and why, in words.
    """

    where: str
    ids: Distinct
    rows: FeatureRows
    told: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ItemFeatures:
    """Features of a catalogue.

    Attributes:
        rows: of the V items, item i in row i - 1.
        trained: K, the items that training has are 1..K; the others are cold, a model knows them
            by their features alone.
        facts: JSON-able: what was counted, and ``told``, what was left out.

    Example:
        >>> shop = {"ann": ["tea", "jam", "milk"], "bob": ["jam", "tea", "milk"]}
        >>> import polars
        >>> items = polars.DataFrame({"item": ["tea", "jam", "cocoa"], "price": [3.0, 2.0, 4.0]})
        >>> af.load(shop, split="none", items=items).features
        ItemFeatures of 4 items, 1 of them cold: price (number)
    """

    rows: FeatureRows
    trained: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        named = ", ".join(f"{c.name} ({_kind(c)})" for c in self.rows.columns)
        cold = len(self.rows) - self.trained
        return f"ItemFeatures of {len(self.rows):,} items, {cold:,} of them cold: {named}"

    def in_words(self) -> str:
        """A line about them, for the reader of a log."""
        values: dict[int, int] = {}
        for place, _ in self.rows.labels:
            values[place] = values.get(place, 0) + 1
        named = [
            f"{column.name} ({values.get(place, 0):,} values)" if column.kind == "category"
            else f"{column.name} ({_kind(column)})"
            for place, column in enumerate(self.rows.columns)
        ]  # fmt: skip
        cold = len(self.rows) - self.trained
        told = [
            f"features {', '.join(named)}", f"{cold:,} of {len(self.rows):,} items are cold, in "
            "no training history",
        ]  # fmt: skip
        for fact, text in (
            ("not_listed", "items of interactions without features"),
            ("unknown", "cold items without features, of which nothing is known"),
            ("untrained_values", "values that no trained item has, and that say nothing"),
        ):
            if self.facts.get(fact):
                told.append(f"{text}: {self.facts[fact]:,}")
        return "; ".join([*told, *self.facts.get("told", ())])

    # ------------------------------------------------------------------ on disk

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of them, beside :meth:`described`."""
        return {name: getattr(self.rows, name).contiguous() for name in _TENSORS}

    def described(self) -> dict[str, Any]:
        """The rest, JSON-able."""
        return {
            "trained": self.trained, "columns": [list(column) for column in self.rows.columns],
            "labels": [list(label) for label in self.rows.labels], "facts": dict(self.facts),
        }  # fmt: skip

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> ItemFeatures:
        """Inverse of :meth:`tensors` and :meth:`described`.

        Raises:
            DataError: something is missing, or does not fit the rest.
        """
        try:
            columns = tuple(FeatureColumn(*column) for column in about["columns"])
            labels = tuple((int(place), str(text)) for place, text in about["labels"])
            rows = FeatureRows(columns, labels, *(tensors[name] for name in _TENSORS))
            made = cls(rows, int(about["trained"]), dict(about["facts"]))
            made.check()
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"item features are damaged: {error}") from None
        return made

    def check(self) -> None:
        """Compare the parts with each other.

        Raises:
            DataError: they do not belong together.
        """
        found = self.rows
        wrong = [column for column in found.columns if column.kind not in KINDS]
        items, sizes = len(found), [column.size for column in found.dense]
        fits = (
            not wrong and 1 <= self.trained <= items
            and found.numbers.dtype == torch.float32
            and list(found.numbers.shape) == [items, sum(sizes)]
            and found.missing.dtype == torch.bool
            and list(found.missing.shape) == [items, len(sizes)]
            and found.codes.dtype == found.rows.dtype == torch.int64
            and int(found.rows[0]) == 0 and int(found.rows[-1]) == found.codes.shape[0]
            and bool((found.rows.diff() >= 0).all())
            and all(0 <= place < len(found.columns) for place, _ in found.labels)
        )  # fmt: skip
        if fits and found.codes.numel():
            fits = 0 <= int(found.codes.min()) <= int(found.codes.max()) < len(found.labels)
        if not fits:
            raise DataError("item features are damaged: their parts do not fit each other")

    def fingerprint(self) -> str:
        """SHA-256 (hex): equal for equal features."""
        about = {**self.described(), "facts": {}}
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for tensor in self.tensors().values():
            digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
        return digest.hexdigest()
