"""Item-to-item counts of a window: what systems that count, and a model's memory, are made of.

A pair (i, then j at distance d <= ``window``) of a history adds 1/d to C[i, j] (and ``transition``
where d = 1) and ``backward``/d to C[j, i]. With P the items' popularity

    R[i, j] = C[i, j] / (sum_j C[i, j])^row_exponent / P[j]^popularity_exponent
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Recipe(NamedTuple):
    """How pairs are counted and scaled.

    Attributes:
        window: farthest distance of a pair, in items.
        transition: added to the weight 1 of adjacent pairs.
        backward: of a pair read backwards, over forward.
        row_exponent: an item's counts are divided by their sum to this power.
        popularity_exponent: and each by the other item's popularity to this one.
    """

    window: int = 5
    transition: float = 1.0
    backward: float = 0.5
    row_exponent: float = 0.5
    popularity_exponent: float = 0.3


class Transitions(NamedTuple):
    """R as a CSR matrix: item i's entries lie at ``rows[i]`` to ``rows[i + 1]``, by item.

    Attributes:
        rows: int64 ``[V+2]``, 0 first; item 0, padding, has none.
        items: int32 ``[E]``, rising in each row.
        weights: float32 ``[E]``, > 0.
    """

    rows: Tensor
    items: Tensor
    weights: Tensor


def popularity(values: Tensor, num_items: int) -> Tensor:
    """float64 ``[V+1]``, how often each item occurs."""
    return torch.bincount(values, minlength=num_items + 1).double()


def transitions(
    values: Tensor, offsets: Tensor, num_items: int, recipe: Recipe, neighbours: int
) -> Transitions:
    """R of jagged histories, of each row the ``neighbours`` largest entries.

    Args:
        values: int64 ``[N]``, items 1..num_items.
        offsets: int64 ``[U+1]``.
        num_items: V.
        recipe: how pairs are counted and scaled.
        neighbours: M; of equal entries those of lower items stay.
    """
    width = num_items + 1
    keys, counts = _counts(values, offsets, width, recipe)
    rows, items = keys // width, keys % width
    sums = torch.zeros(width, dtype=torch.float64).index_add_(0, rows, counts)
    counts /= sums[rows] ** recipe.row_exponent
    counts /= popularity(values, num_items)[items].clamp(min=1) ** recipe.popularity_exponent
    kept = largest(rows, counts, neighbours)
    rows, items, counts = rows[kept], items[kept], counts[kept]
    return Transitions(row_starts(rows, width), items.int(), counts.float())


def largest(rows: Tensor, weights: Tensor, count: int) -> Tensor:
    """int64 ``[K]``, rising: which entries are among the ``count`` largest of their row.

    Args:
        rows: int64 ``[E]``, rising.
        weights: ``[E]``; of equal ones the first stay.
        count: how many of a row.
    """
    order = torch.argsort(weights, descending=True, stable=True)
    order = order[torch.argsort(rows[order], stable=True)]
    place = torch.arange(rows.numel()) - torch.searchsorted(rows, rows[order])
    return torch.sort(order[place < count]).values


def row_starts(rows: Tensor, width: int) -> Tensor:
    """int64 ``[width+1]``: where each row's entries begin, of rising ``rows``."""
    return torch.searchsorted(rows, torch.arange(width + 1))


def _counts(
    values: Tensor, offsets: Tensor, width: int, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """C's entries: row * width + column, rising, and the count in float64."""
    user = torch.repeat_interleave(torch.arange(offsets.numel() - 1), offsets.diff())
    pairs, weights = [values[:0]], [torch.zeros(0, dtype=torch.float64)]
    for distance in range(1, min(recipe.window, values.numel() - 1) + 1):
        same = user[:-distance] == user[distance:]
        first, then = values[:-distance][same], values[distance:][same]
        forward = 1 / distance + (recipe.transition if distance == 1 else 0.0)
        for one, other, weight in (
            (first, then, forward), (then, first, recipe.backward / distance)
        ):  # fmt: skip
            if weight:
                pairs.append(one * width + other)
                weights.append(torch.full(one.shape, weight, dtype=torch.float64))
    keys, which = torch.unique(torch.cat(pairs), return_inverse=True)
    counts = torch.zeros(keys.shape, dtype=torch.float64)
    return keys, counts.index_add_(0, which, torch.cat(weights))
