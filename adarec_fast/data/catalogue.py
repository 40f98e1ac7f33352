"""Catalogues of items that have features: trained items first, cold ones behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dataset import InteractionData, PlantedLabels
from .errors import DataError
from .features import FeatureRows, ItemFeatures, ItemTable
from .splits import Split
from .vocabulary import Vocabulary
from .words import Distinct


def with_features(data: InteractionData, table: ItemTable) -> InteractionData:
    """Data whose items have features.

    The catalogue becomes that of the data and of the table: first the items that the training part
    has, in the order that they had, then the others, then those that only the table has, sorted.

    Args:
        data: split as it will be trained on.
        table: of items; not all of the data's need be in it.

    Raises:
        DataError: ids are of another kind, or none of the table's is one of the data's.
    """
    items = _grown(data.items, table)
    if len(items) - data.num_items == len(table.ids):
        raise DataError(
            f"{table.where}: none of its {len(table.ids):,} items, such as {table.ids[0]!r}, is "
            f"one of the data's, such as {data.items.ids[0]!r}"
        )
    return _arranged(data, items, table.rows, table.ids, {"told": list(table.told)})


def refeatured(
    data: InteractionData, features: ItemFeatures, items: Vocabulary, table: ItemTable | None = None
) -> InteractionData:
    """Data whose items get the features of earlier data, for another training part or a grown
    catalogue. Items that were trained before stay the first ones, in their order.

    Args:
        data: of which every item that was trained before still trains.
        features: of the earlier data, whose columns stay.
        items: the catalogue of the earlier data.
        table: of further items, or newer rows of known ones; None: there is none.

    Raises:
        DataError: ids are of another kind, or a column is in ``table``.
    """
    if table is None:
        return _arranged(data, data.items, features.rows, items.ids, {})
    own = {column.name for column in features.rows.columns}
    unlike = [c.name for c in table.rows.columns if c.name not in own]
    told = [*table.told, *(f"{name!r} is no feature of the run, left out" for name in unlike)]
    return _arranged(
        data, _grown(data.items, table), features.rows.above(table.rows), [*items.ids, *table.ids],
        {"told": told},
    )  # fmt: skip


def with_more(
    data: InteractionData, features: ItemFeatures, items: Vocabulary, table: ItemTable | None = None
) -> InteractionData:
    """Data whose catalogue begins with that of a trained model, with the features of it: items
    that the model was not trained on are cold, and no index changes.

    Args:
        data: of which ``items`` are the first ones.
        features: of the model.
        items: its catalogue.
        table: of further items, or newer rows of known ones; None: nothing is known of new ones.

    Raises:
        DataError: as :func:`refeatured`.
    """
    rows, ids = features.rows, list(items.ids)
    if table is not None:
        rows, ids = rows.above(table.rows), [*ids, *table.ids]
        data = _with_catalogue(data, _grown(data.items, table))
    own = rows.take(_rows_of(data.items, ids))
    found = ItemFeatures(own, features.trained, features.facts)
    return data.replace(features=found)


def _rows_of(items: Vocabulary, ids: Distinct | list[Any]) -> Tensor:
    """The last row of each item among those of ids, int64 ``[V]``; -1 where there is none."""
    place = np.full(len(items), -1)
    place[items.find(ids) - 1] = np.arange(len(ids))
    return torch.from_numpy(place)


def _grown(items: Vocabulary, table: ItemTable) -> Vocabulary:
    """The items, and behind them those that only a table has, sorted."""
    new = [table.ids[row] for row in np.flatnonzero(items.find(table.ids) < 0).tolist()]
    try:
        further: list[Any] = [str(x) if items.kind == "str" else int(x) for x in new]
    except ValueError:
        text = next(x for x in new if not str(x).strip().lstrip("+-").isdecimal())
        raise DataError(
            f"{table.where}: item ids are text, such as {text!r}, and whole numbers in the data, "
            f"such as {items.ids[0]!r}"
        ) from None
    return Vocabulary([*items.ids, *sorted(further)], 1)


def _with_catalogue(data: InteractionData, items: Vocabulary) -> InteractionData:
    """The same with more items behind its own, and no features."""
    return data.replace(
        items=items, labels=_labels(data.labels, len(items), None), features=None
    )


def _labels(
    labels: PlantedLabels | None, items: int, order: Tensor | None
) -> PlantedLabels | None:
    """Planted labels for a longer catalogue, in another order; -1 of items that have none."""
    if labels is None:
        return None
    more = items + 1 - labels.item_theme.shape[0]
    theme, subtheme = (
        torch.cat([own, torch.full((more,), -1)])
        for own in (labels.item_theme, labels.item_subtheme)
    )
    longer = replace(labels, item_theme=theme, item_subtheme=subtheme)
    return longer if order is None else longer.take(order, torch.arange(len(labels.user_theme)))


def _arranged(
    data: InteractionData, items: Vocabulary, rows: FeatureRows, ids: Distinct | list[Any],
    facts: dict[str, Any],
) -> InteractionData:
    """The data with a catalogue of trained items first, and the features of it.

    Args:
        data: whose items are the first of ``items``.
        items: all of them.
        rows: features, a row an id; the last row of an id counts.
        ids: of the rows, all of them in ``items``.
        facts: to go with the counts.
    """
    data = _with_catalogue(data, items)
    counts = torch.bincount(Split(data).inputs("train")[0], minlength=len(items) + 1)[1:]
    order = torch.argsort((counts == 0).long(), stable=True) + 1
    trained = int((counts > 0).sum())
    place_of = torch.zeros(len(items) + 1, dtype=torch.int64)
    place_of[order] = torch.arange(1, len(items) + 1)
    arranged = items.take(order.numpy())
    row_of = _rows_of(arranged, ids)
    own = rows.take(row_of)
    used = torch.zeros(len(own.labels), dtype=torch.bool)
    used[own.codes[: int(own.rows[trained])]] = True
    listed = row_of >= 0
    touched = torch.bincount(place_of[data.values], minlength=len(items) + 1)[1:] > 0
    found = ItemFeatures(own, trained, {
        **facts,
        "not_listed": int((touched & ~listed).sum()),
        "unknown": int((~listed[trained:]).sum()),
        "untrained_values": int((~used).sum()),
    })  # fmt: skip
    return data.replace(
        values=place_of[data.values], items=arranged,
        labels=_labels(data.labels, len(items), order), features=found,
    )  # fmt: skip
