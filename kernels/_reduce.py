"""The sums of all float32 partials of an op's backward, in one launch and a fixed order.

A kernel that makes weight gradients leaves one partial a program. Summed one by one, transposed and
cast they are 3 to 17 launches an op; here one kernel takes all of them, and writes each gradient in
its weight's own dtype and order. A program owns 64 elements of a gradient and adds their partials
64 at a time, which is one round trip to L2 for the 16 to 64 partials that there mostly are; or 512
elements, of 8 partials at most.

What bounds it is memory: a launch reads 1.5 to 6 MB (D = 64), 1 to 2 us on an H100 and 2 to 7 us on
an RTX 3090, where it comes from L2. Of more than ``MOST`` partials (a LayerNorm's, one a tile of
rows of a large batch) the sum by a single program would take long, so a launch before it makes them
``SLOTS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._heuristics import AMD, Tile
from ._launch import INTERPRETED, architecture, launch

SLOTS = 64  # partials that are added at a time
FEW = 8  # so many at most are added at once, of eight times as many elements
COLUMNS = 64  # elements of a program
if INTERPRETED:  # which takes one program after another
    COLUMNS = 4096
MOST = 8 * SLOTS
EXACT = 1 << 24  # integers below it are float32 numbers


@triton.jit
def _sum(part, total, slots, rows, width, place, block, share, COLUMNS: tl.constexpr,
         SLOTS: tl.constexpr):
    """A share of the partials, summed over COLUMNS elements."""
    size = rows * width
    at = block * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.cdiv(slots, tl.num_programs(1)) * share
    end = tl.minimum(tl.cdiv(slots, tl.num_programs(1)) + begin, slots)
    found = tl.zeros((SLOTS, COLUMNS), tl.float32)
    for start in range(begin, end, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        mask = (slot < end)[:, None] & (at < size)[None, :]
        found += tl.load(part + slot[:, None].to(tl.int64) * size + at[None, :], mask=mask,
                         other=0.0)
    to = place + share * size + (at % width) * rows + at // width
    tl.store(total + to, tl.sum(found, 0), mask=at < size)


@triton.jit
def _sum_kernel(parts, sums, table, COLUMNS: tl.constexpr, SLOTS: tl.constexpr,
                FEW: tl.constexpr):
    """A program of axis 0 finds its entry in the tuples; axis 1 are shares of the partials.

    ``table[i]``: its first program; how many partials ``[rows, width]`` it has; rows; width; and
    the element of ``sums[i]`` where their sum goes, transposed, share by share. All are floats:
    integers in a tuple would be compiled in where they are 1 or multiples of 16.
    """
    program, share = tl.program_id(0), tl.program_id(1)
    part, total = parts[0], sums[0]
    first = tl.full((), 0.0, tl.float32)
    slots = tl.full((), table[0][1], tl.float32)
    rows = tl.full((), table[0][2], tl.float32)
    width = tl.full((), table[0][3], tl.float32)
    place = tl.full((), table[0][4], tl.float32)
    for entry in tl.static_range(1, len(table)):
        later = program >= table[entry][0]
        part = tl.where(later, parts[entry], part)
        total = tl.where(later, sums[entry], total)
        first = tl.where(later, table[entry][0], first)
        slots = tl.where(later, table[entry][1], slots)
        rows = tl.where(later, table[entry][2], rows)
        width = tl.where(later, table[entry][3], width)
        place = tl.where(later, table[entry][4], place)
    slots = slots.to(tl.int32)
    rows = rows.to(tl.int32)
    width = width.to(tl.int32)
    place = place.to(tl.int32)
    block = program - first.to(tl.int32)
    if slots <= FEW:
        _sum(part, total, slots, rows, width, place, block, share, COLUMNS * SLOTS // FEW, FEW)
    else:
        _sum(part, total, slots, rows, width, place, block, share, COLUMNS, SLOTS)


class _Entry(NamedTuple):
    """Partials ``[slots, rows * width]``, whose sum, transposed, begins at ``place``."""

    values: Tensor
    rows: int
    width: int
    place: int


def _launch(entries: Sequence[_Entry], sums: Sequence[Tensor], shares: int) -> None:
    if not entries:
        return
    table, programs = [], 0
    for entry in entries:
        slots = entry.values.shape[0]
        table.append(tuple(map(float, (programs, slots, entry.rows, entry.width, entry.place))))
        columns = COLUMNS if slots > FEW else COLUMNS * SLOTS // FEW
        programs += triton.cdiv(entry.rows * entry.width, columns)
    arguments: dict[str, Any] = {
        "parts": tuple(e.values for e in entries), "sums": tuple(sums), "table": tuple(table),
        "COLUMNS": COLUMNS, "SLOTS": SLOTS, "FEW": FEW,
    }
    # Left alone, ptxas takes 32 registers for sm_90 and spills.
    tile = Tile(SLOTS, COLUMNS, num_warps=8, max_registers=64)
    if architecture(sums[0].device) in AMD:
        tile = tile._replace(num_warps=4, max_registers=None)
    launch(_sum_kernel, (programs, shares), arguments, tile.options)


class Partials:
    """The partials of an op's weight gradients: made here, written by kernels, then summed.

    ::

        parts = Partials()
        d_w1 = parts.new(w1, slots)                      # [slots, H, D]
        d_w2 = parts.new(w2, slots, transposed=True)     # [slots, H, D] of w2 [D, H]
        ...                                              # kernels write every element
        d_w1, d_w2 = parts.sum(w1, w2)                   # like w1 and w2
    """

    def __init__(self) -> None:
        self._of: dict[int, list[_Entry]] = {}

    def new(
        self, like: Tensor, slots: int, *, transposed: bool = False,
        rows: tuple[int, int] | None = None,
    ) -> Tensor:
        """Partials to be written, float32 ``[slots, *like.shape]`` on ``like``'s device.

        Args:
            like: a weight. Where ``rows`` are given, several calls are to cover it.
            slots: how many there are; of none the sum is zero.
            transposed: a partial is ``[columns, rows]`` of the weight's ``[rows, columns]``.
            rows: begin and end on the weight's first axis, which a partial is of.

        Raises:
            ValueError: the weight has 2^24 elements or more.
        """
        if like.numel() >= EXACT:
            raise ValueError(f"a weight {list(like.shape)} has {EXACT} elements or more")
        begin, end = rows or (0, like.shape[0])
        inner = like.shape[1:].numel()
        place, size = begin * inner, (end - begin) * inner
        shape = (inner, end - begin) if transposed else (end - begin, *like.shape[1:])
        values = torch.empty(slots, *shape, dtype=torch.float32, device=like.device)
        entry = _Entry(values, *(shape if transposed else (1, size)), place)
        self._of.setdefault(id(like), []).append(entry)
        return values

    def sum(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """Each weight's gradient, contiguous and of the weight's dtype.

        Raises:
            ValueError: the partials are not of as many elements as a weight has.
        """
        found = []
        by_dtype: dict[torch.dtype, list[tuple[_Entry, Tensor]]] = {}
        for weight in weights:
            entries = self._of.get(id(weight), [])
            if sum(e.rows * e.width for e in entries) != weight.numel():
                raise ValueError(f"partials cover another part than a weight {list(weight.shape)}")
            total = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
            found.append(total)
            pairs = by_dtype.setdefault(weight.dtype, [])
            pairs += [(e, total) for e in entries if e.rows * e.width]
        by_dtype = {dtype: _shortened(pairs) for dtype, pairs in by_dtype.items()}
        for pairs in by_dtype.values():
            _launch([e for e, _ in pairs], [total for _, total in pairs], 1)
        return tuple(found)


def _shortened(pairs: list[tuple[_Entry, Tensor]]) -> list[tuple[_Entry, Tensor]]:
    """The same with at most ``MOST`` partials each."""
    long = [e for e, _ in pairs if e.values.shape[0] > MOST]
    flat = [e._replace(rows=1, width=e.rows * e.width, place=0) for e in long]
    fewer = [e.values.new_empty(SLOTS, *e.values.shape[1:]) for e in long]
    _launch(flat, fewer, SLOTS)
    short = {id(e): e._replace(values=values) for e, values in zip(long, fewer, strict=True)}
    return [(short.get(id(e), e), total) for e, total in pairs]
