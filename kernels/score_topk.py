"""``score_topk`` in Triton: catalogue scores in tiles, seen items masked, the k best kept on chip.

A program takes a tile of users and a part of the catalogue. A score and its item make one int64
key, which rises with the score and, among equal scores, falls with the item: keys are unique, so
the order is total and no result depends on the tiles. The best keys of a tile of scores replace the
worst of the k kept, until none is better; after the first tiles that is a matter of a few steps. A
second kernel ranks what the parts of the catalogue kept.

What users have seen is sorted first, each one's list for itself: then a program finds the first
item of its part by bisection and walks along the list beside the tiles, so that an item is looked
at in its own tile alone and not in every tile. 1,024 users of 8 seen items (21 among the longest of
16) over a catalogue of 12,101 cost 1 to 3 passes over a tile's scores there, and would cost 21.

More than ``WIDEST`` items are found in rounds: a round takes the best keys below the last one of
the round before.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _heuristics
from ._jagged import sequence_of
from ._launch import LARGEST_SIZE, architecture, launch, multiprocessors, operands, search_steps
from ._product import product

# Keys kept on chip for a user, and those of all parts of the catalogue that are ranked at once.
WIDEST = 64
RANKED = 2048
# Dimensions of a tile of vectors: D may have any size.
DEPTH = 64
# Seen items that a program sorts in, and those it compares them with at once.
SORTED, COMPARED = 32, 64
NOTHING = tl.constexpr(2**31 - 1)
NONE = tl.constexpr(-(2**63))
UNUSED = tl.constexpr(2**63 - 1)


@triton.jit
def _key(score, item):
    """int64: the score's bits in rising order (-0 as 0, NaN above all), then the item's falling."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    rising = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    rising = tl.where(score != score, 0x7FFFFFFF, rising)
    return (rising.to(tl.int64) << 32) | (0x7FFFFFFF - item).to(tl.int64)


@triton.jit
def _score_and_item(key):
    rising = (key >> 32).to(tl.int32)
    bits = tl.where(rising < 0, rising ^ 0x7FFFFFFF, rising)
    return bits.to(tl.float32, bitcast=True), 0x7FFFFFFF - (key & 0xFFFFFFFF)


@triton.jit
def _item(ptr, place, mask):
    """int32: an item of a list, what cannot be one as 0 or ``NOTHING``, which no tile holds."""
    item = tl.load(ptr + place, mask=mask, other=0)
    return tl.minimum(tl.maximum(item, 0), NOTHING - 1).to(tl.int32)


@triton.jit(do_not_specialize=["tokens", "users", "steps"])
def _sort_kernel(seen_ptr, seen_offsets_ptr, sorted_ptr, tokens, users, steps,
                 ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Lists of any length in rising order: an item's place is the number of those before it."""
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    user = sequence_of(place, seen_offsets_ptr, users, steps)
    real = (place < tokens) & (user < users)
    begin = tl.load(seen_offsets_ptr + user, mask=real, other=0)
    end = tl.load(seen_offsets_ptr + user + 1, mask=real, other=0)
    real = real & (place >= begin)
    item = _item(seen_ptr, place, real)
    # Places are counted from the first list's begin, so that 32 bits suffice.
    first = tl.min(tl.where(real, begin, tokens))
    last = tl.max(tl.where(real, end, 0))
    lower, upper = (begin - first).to(tl.int32), (end - first).to(tl.int32)
    own = (place - first).to(tl.int32)
    before = tl.zeros((ROWS,), tl.int32)
    for start in range(0, (last - first).to(tl.int32), COLUMNS):
        other = start + tl.arange(0, COLUMNS)
        rival = _item(seen_ptr, first + other, first + other < last)[None, :]
        other = other[None, :]
        same = (other >= lower[:, None]) & (other < upper[:, None])
        # Of equal items the earlier one comes first.
        less = rival < item[:, None] + (other < own[:, None]).to(tl.int32)
        before += tl.sum((same & less).to(tl.int32), 1)
    tl.store(sorted_ptr + begin + before, item, mask=real)


@triton.jit
def _first_from(sorted_ptr, begin, end, item):
    """Place in each sorted list of the first item that is not below ``item``."""
    open_ = begin < end
    more = tl.max(open_.to(tl.int32))
    while more > 0:
        middle = (begin + end) // 2
        below = tl.load(sorted_ptr + middle, mask=open_, other=0) < item
        begin = tl.where(open_ & below, middle + 1, begin)
        end = tl.where(open_ & (below == 0), middle, end)
        open_ = begin < end
        more = tl.max(open_.to(tl.int32))
    return begin


@triton.jit(do_not_specialize=["users", "catalogue", "tiles", "wanted"])
def _select_kernel(
    users_ptr, items_ptr, sorted_ptr, seen_offsets_ptr, bound_ptr, keys_ptr, users, catalogue,
    tiles, wanted, seen_score,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    KEPT: tl.constexpr, BOUNDED: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < users
    begin = tl.load(seen_offsets_ptr + row, mask=real, other=0)
    end = tl.load(seen_offsets_ptr + row + 1, mask=real, other=0)
    lane = tl.arange(0, KEPT)
    # Every key that may be replaced differs from every other, the empty places too.
    empty = tl.where(lane < wanted, NONE + lane.to(tl.int64), UNUSED)
    kept = tl.zeros((ROWS, KEPT), tl.int64) + empty[None, :]
    if BOUNDED:
        bound = tl.load(bound_ptr + row, mask=real, other=0)
    first = tl.program_id(1) * tiles
    place = _first_from(sorted_ptr, begin, end, 1 + first * COLUMNS)
    seen = tl.load(sorted_ptr + place, mask=place < end, other=NOTHING)
    for tile in range(first, tl.minimum(first + tiles, tl.cdiv(catalogue, COLUMNS))):
        # Item 0 is padding.
        item = 1 + tile * COLUMNS + tl.arange(0, COLUMNS)
        there = item <= catalogue
        score = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, D, DEPTH):
            dims = start + tl.arange(0, DEPTH)
            inside = dims < D
            at = row[:, None] * D + dims[None, :]
            x = tl.load(users_ptr + at, mask=real[:, None] & inside[None, :], other=0.0)
            at = item.to(tl.int64)[None, :] * D + dims[:, None]
            w = tl.load(items_ptr + at, mask=there[None, :] & inside[:, None], other=0.0)
            score += product(x.to(OPERAND), w.to(OPERAND), PRECISION)
        behind = 1 + tile * COLUMNS + COLUMNS
        nearest = tl.min(seen)
        while nearest < behind:
            score = tl.where(seen[:, None] == item[None, :], seen_score, score)
            place += (seen < behind).to(tl.int64)
            seen = tl.load(sorted_ptr + place, mask=place < end, other=NOTHING)
            nearest = tl.min(seen)
        # Scores that the output's dtype makes equal are equal.
        score = score.to(users_ptr.dtype.element_ty).to(tl.float32)
        keys = tl.where(there[None, :], _key(score, item[None, :]), NONE)
        if BOUNDED:
            keys = tl.where(keys < bound[:, None], keys, NONE)
        better = tl.full((), 1, tl.int32)
        while better > 0:
            best = tl.max(keys, 1)
            worst = tl.min(kept, 1)
            enters = (best > worst)[:, None]
            kept = tl.where(enters & (kept == worst[:, None]), best[:, None], kept)
            keys = tl.where(keys == best[:, None], NONE, keys)
            better = tl.max((best > worst).to(tl.int32))
    at = (row * tl.num_programs(1) + tl.program_id(1))[:, None] * KEPT + lane[None, :]
    tl.store(keys_ptr + at, tl.where(kept == UNUSED, NONE, kept), mask=real[:, None])


@triton.jit(do_not_specialize=["count", "wanted", "k", "place"])
def _rank_kernel(
    keys_ptr, scores_ptr, best_ptr, bound_ptr, count, wanted, k, place, WIDTH: tl.constexpr,
):
    user = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, WIDTH)
    keys = tl.load(keys_ptr + user * count + lane, mask=lane < count, other=NONE)
    best = tl.full((), NONE, tl.int64)
    for number in range(0, wanted):
        best = tl.max(keys)
        keys = tl.where(keys == best, NONE, keys)
        score, item = _score_and_item(best)
        at = user * k + place + number
        tl.store(scores_ptr + at, score)
        tl.store(best_ptr + at, item)
    tl.store(bound_ptr + user, best)


def sort_seen(seen: Tensor, seen_offsets: Tensor) -> Tensor:
    """int32 ``[S]``: each user's seen items in rising order."""
    batch = seen_offsets.shape[0] - 1
    in_order = torch.empty(seen.shape[0], dtype=torch.int32, device=seen.device)
    sort = {
        "seen_ptr": seen, "seen_offsets_ptr": seen_offsets, "sorted_ptr": in_order,
        "tokens": seen.shape[0], "users": batch, "steps": search_steps(batch), "ROWS": SORTED,
        "COLUMNS": COMPARED,
    }
    launch(_sort_kernel, (triton.cdiv(seen.shape[0], SORTED),), sort, {"num_warps": 4})
    return in_order


def fwd(
    users: Tensor, items: Tensor, seen: Tensor, seen_offsets: Tensor, k: int, seen_score: float
) -> tuple[Tensor, Tensor]:
    """``score_topk_fwd`` of the op's schema: scores ``[B, k]`` and items int64 ``[B, k]``."""
    users, items, seen, seen_offsets = (
        t.contiguous() for t in (users, items, seen, seen_offsets)
    )
    batch, size = users.shape
    catalogue = items.shape[0] - 1
    ops = operands(users)
    bucket = min(LARGEST_SIZE, triton.next_power_of_2(size))
    tile = _heuristics.tile("score_topk", bucket, ops.kind, architecture(users.device), batch)
    kept = min(WIDEST, max(16, triton.next_power_of_2(k)))
    row_tiles, item_tiles = triton.cdiv(batch, tile.rows), triton.cdiv(catalogue, tile.chunk)
    # Parts enough to keep every multiprocessor busy, few enough that one program ranks them.
    parts = triton.cdiv(2 * multiprocessors(users.device), max(1, row_tiles))
    tiles = triton.cdiv(item_tiles, min(parts, item_tiles, RANKED // kept))
    parts = triton.cdiv(item_tiles, tiles)
    scores = users.new_empty(batch, k)
    best = torch.empty(batch, k, dtype=torch.int64, device=users.device)
    keys = torch.empty(batch, parts, kept, dtype=torch.int64, device=users.device)
    bound = torch.empty(batch, dtype=torch.int64, device=users.device)
    width = triton.next_power_of_2(parts * kept)
    in_order = sort_seen(seen, seen_offsets)
    for place in range(0, k, kept):
        wanted = min(kept, k - place)
        select = {
            "users_ptr": users, "items_ptr": items, "sorted_ptr": in_order,
            "seen_offsets_ptr": seen_offsets, "bound_ptr": bound, "keys_ptr": keys,
            "users": batch, "catalogue": catalogue, "tiles": tiles, "wanted": wanted,
            "seen_score": seen_score, "D": size, "ROWS": tile.rows, "COLUMNS": tile.chunk,
            "DEPTH": DEPTH, "KEPT": kept, "BOUNDED": place > 0, "OPERAND": ops.dtype,
            "PRECISION": ops.precision,
        }
        launch(_select_kernel, (row_tiles, parts), select, tile.options)
        rank = {
            "keys_ptr": keys, "scores_ptr": scores, "best_ptr": best, "bound_ptr": bound,
            "count": parts * kept, "wanted": wanted, "k": k, "place": place, "WIDTH": width,
        }
        # Up to 16 keys a thread; one warp ranks without shared memory.
        launch(_rank_kernel, (batch,), rank, {"num_warps": max(1, min(4, width // 512))})
    return scores, best
