"""Item-to-item weights by ridge regression: what of a history foretells its next item.

At step t of a history, x_t[i] = sum_s decay^(t-1-s) over the steps s of item i among the ``window``
before t. The weights towards item j are the ridge regression of [item t = j] on x_t, over all steps
of all histories and, counting ``backward`` as much, of the histories read from their end. Its
inputs are the N(j) of the ``inputs`` items with the largest C[i, j] / sqrt(G[i, i]), i other than
j. With G = sum_t x_t x_t^T, and C[i, j] the sum of x_t[i] over the steps at which item t is j,

    w_j = (G[N, N] + penalty I)^-1 C[N, j]

Where counts give each of ten items that come together the same credit, a regression shares it out.
With every item an input and nothing read backwards this is SLIT (Choi et al., Session-aware Linear
Item-Item Models for Session-based Recommendation, WWW 2021); to choose inputs first is fsSLIM's way
(Ning and Karypis, SLIM: Sparse Linear Methods for Top-N Recommender Systems, ICDM 2011), and makes
time and space linear in the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ragged
from .transitions import Transitions, largest, row_starts

# What may lie in memory at once: pairs that are not summed up yet, entries of G that are looked
# through, cells of the map from items to inputs, and of the matrices that are solved.
_PAIRS, _ENTRIES, _CELLS, _SOLVED = 2**24, 2**17, 2**23, 2**22


class Ridge(NamedTuple):
    """How the regression is done.

    Attributes:
        decay: of an item's weight with each step back, in (0, 1]; what reads the weights fades a
            history by the same.
        penalty: of the ridge, > 0.
        window: farthest step back that is read.
        backward: of histories read backwards, over forward.
        inputs: items that an item may be foretold by.
    """

    decay: float = 0.95
    penalty: float = 400.0
    window: int = 50
    backward: float = 0.3
    inputs: int = 1024


def regression(
    values: Tensor, offsets: Tensor, num_items: int, ridge: Ridge, neighbours: int
) -> Transitions:
    """The weights that are positive, of each row (an item of a history) the largest.

    Args:
        values: int64 ``[N]``, items 1..num_items, on the CPU.
        offsets: int64 ``[U+1]``.
        num_items: V.
        ridge: how.
        neighbours: M; of equal entries those of lower items stay.
    """
    width = num_items + 1
    gram, cross = _sums(values, offsets, width, ridge)
    at, columns = gram.keys // width, gram.keys % width
    diagonal = torch.zeros(width, dtype=torch.float64)
    diagonal[at[at == columns]] = gram.sums[at == columns]
    # Of the two places of a pair, that in the row of the item with fewer others: no row is long.
    others = torch.bincount(at, minlength=width) * width + torch.arange(width)
    half = others[at] <= others[columns]
    square = _Rows(row_starts(at[half], width), columns[half], gram.sums[half])

    # A row of a target, first.
    target, item = cross.keys // width, cross.keys % width
    kept = target != item
    target, item, sums = target[kept], item[kept], cross.sums[kept]
    kept = largest(target, sums / diagonal[item].sqrt(), ridge.inputs)
    target, item, sums = target[kept], item[kept], sums[kept]
    sides = _Rows(row_starts(target, width), item, sums)
    weights = torch.zeros(sums.shape, dtype=torch.float64)
    for targets in _groups(sides, square, width):
        places, found = _solved(targets, sides, square, width, ridge.penalty)
        weights[places] = found

    order = torch.argsort(item * width + target)
    item, target, found = item[order], target[order], weights[order].float()
    kept = found > 0
    item, target, found = item[kept], target[kept], found[kept]
    kept = largest(item, found, neighbours)
    return Transitions(row_starts(item[kept], width), target[kept].int(), found[kept])


class _Entries(NamedTuple):
    """Of a matrix: row * width + column, rising, and float64 values."""

    keys: Tensor
    sums: Tensor


class _Rows(NamedTuple):
    """A matrix by rows: int64 ``[V+2]``, int64 ``[E]``, float64 ``[E]``."""

    begin: Tensor
    columns: Tensor
    sums: Tensor


class _Sum:
    """Entries that come a few at a time; equal ones are added up when many have come."""

    def __init__(self) -> None:
        self.parts: list[_Entries] = []
        self.waiting = 0

    def add(self, keys: Tensor, sums: Tensor) -> None:
        self.parts.append(_Entries(keys, sums))
        self.waiting += keys.numel()
        if self.waiting > _PAIRS:
            self.parts, self.waiting = [self.entries()], 0

    def entries(self) -> _Entries:
        if not self.parts:
            return _Entries(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64))
        keys, which = torch.unique(torch.cat([p.keys for p in self.parts]), return_inverse=True)
        sums = torch.zeros(keys.shape, dtype=torch.float64)
        return _Entries(keys, sums.index_add_(0, which, torch.cat([p.sums for p in self.parts])))


def _sums(
    values: Tensor, offsets: Tensor, width: int, ridge: Ridge
) -> tuple[_Entries, _Entries]:
    """G, and C with a row of a target.

    Two items a < b of a history of n, d = b - a apart, lie together in the x_t of the steps behind
    b that see both, min(n-1-b, window-d) of them, u = 0, 1, ... with decay^(d+2u) each; read from
    the end, in those before a.
    """
    gram, cross = _Sum(), _Sum()
    user = ragged.sequence_ids(offsets, values.numel())
    place = torch.arange(values.numel()) - offsets[user]
    behind = offsets[user + 1] - offsets[user] - 1 - place
    gram_of = _geometric(ridge.decay**2, ridge.window)
    longest = int(torch.cat([offsets[:1], ragged.lengths(offsets)]).max())  # 0 of nobody
    for distance in range(min(ridge.window, longest) + 1):
        if distance:
            same = torch.nonzero(user[:-distance] == user[distance:])[:, 0]
        else:
            same = torch.arange(values.numel())
        first, then = values[same], values[same + distance]
        most = ridge.window - distance
        together = gram_of[behind[same + distance].clamp(max=most)]
        together += ridge.backward * gram_of[place[same].clamp(max=most)]
        together *= ridge.decay**distance
        gram.add(first * width + then, together)
        if distance:
            gram.add(then * width + first, together)
            forward = torch.full(first.shape, ridge.decay ** (distance - 1), dtype=torch.float64)
            cross.add(then * width + first, forward)
            if ridge.backward:
                cross.add(first * width + then, ridge.backward * forward)
    return gram.entries(), cross.entries()


def _geometric(ratio: float, most: int) -> Tensor:
    """float64 ``[most+1]``: 1 + ratio + ... of so many terms."""
    terms = ratio ** torch.arange(most, dtype=torch.float64)
    return torch.cat([terms.new_zeros(1), terms.cumsum(0)])


def _groups(sides: _Rows, square: _Rows, width: int) -> Iterator[Tensor]:
    """Targets that are solved side by side, of about as many inputs each."""
    inputs = sides.begin.diff()
    of_inputs = torch.cat([torch.zeros(1).long(), square.begin.diff()[sides.columns].cumsum(0)])
    entries = of_inputs[sides.begin].diff()
    order = torch.argsort(inputs, stable=True)
    order = order[inputs[order] > 0]
    begin, cells = 0, max(1, _CELLS // width)
    costs = torch.stack([inputs[order], entries[order].cumsum(0)], 1).tolist()
    for end in range(1, len(costs) + 1):
        if end < len(costs):
            widest, seen = costs[end]
            seen -= costs[begin - 1][1] if begin else 0
            many = end - begin + 1
            if many <= cells and seen <= _ENTRIES and many * widest**2 <= _SOLVED:
                continue
        yield order[begin:end]
        begin = end


def _solved(
    targets: Tensor, sides: _Rows, square: _Rows, width: int, penalty: float
) -> tuple[Tensor, Tensor]:
    """Where in ``sides`` the weights of some targets stand, and the weights."""
    places, owner, slot = _within(sides.begin, targets)
    inputs, widest = sides.columns[places], int(slot.max()) + 1
    # Of each target, the number that an item has among its inputs; -1 for others.
    slots = torch.full((targets.numel() * width,), -1, dtype=torch.int32)
    slots[owner * width + inputs] = slot.int()
    at, row, _ = _within(square.begin, inputs)
    column = slots[(owner * width)[row].add_(square.columns[at])]
    there = torch.nonzero(column >= 0)[:, 0]
    row, column, sums = row[there], column[there].long(), square.sums[at[there]]
    matrix = torch.zeros(targets.numel(), widest, widest, dtype=torch.float64)
    matrix[owner[row], slot[row], column] = sums
    matrix[owner[row], column, slot[row]] = sums
    matrix.diagonal(dim1=1, dim2=2).add_(penalty)  # so that rows without an input solve to zero
    right = torch.zeros(targets.numel(), widest, 1, dtype=torch.float64)
    right[owner, slot, 0] = sides.sums[places]
    solution = torch.cholesky_solve(right, torch.linalg.cholesky(matrix))
    return places, solution[owner, slot, 0]


def _within(begin: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All entries of some rows: where they stand, whose they are (of ``rows``), their number."""
    many = begin[rows + 1] - begin[rows]
    owner = torch.repeat_interleave(torch.arange(rows.numel()), many)
    number = torch.arange(owner.numel()) - (many.cumsum(0) - many)[owner]
    return begin[rows][owner] + number, owner, number
