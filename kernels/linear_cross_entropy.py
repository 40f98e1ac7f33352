"""``linear_cross_entropy`` in Triton: Eq. 13 as a streaming softmax, no [rows, items] in memory.

Forward is flash attention with the catalogue as keys and as values. A program takes a tile of rows
and a split of the catalogue, so that few rows fill the device too, and keeps of each row the
greatest logit, the sum of exponentials and the vectors' sum weighted with them. A second kernel
merges the splits into losses and the gradient of hidden, a third takes the mean.

A row's own target is left out of its sums. What remains gives the loss as softplus(lse' - logit)
and 1 - p as its sigmoid, with lse' that of the others: small losses and the gradients of rows that
are nearly right come out of no difference of nearly equal numbers, whatever the products round.

Backward makes the logits again for the gradient of the weight, in programs that each own a tile of
items and walk over the rows: every row is written once, nothing is summed by atomics, and the
incoming gradient is one factor of the last multiplication. Where a catalogue has too few tiles to
fill the device and rows are many, they are cut in slices, whose sums are added at the end.

Two products forward and two backward, each of 2 R V D operations, bound large batches
(bench/triton_model.py has their floors); of 256 rows over 12,101 items a program on 132
multiprocessors walks over three tiles forward and eight backward, one after the other.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _heuristics
from ._launch import architecture, launch, multiprocessors, operands, padded_size
from ._product import product

# Items of a split of the catalogue, at least, and rows of a slice, which costs one more launch.
SPLIT, SLICE = 128, 1024
# Programs a multiprocessor, at most, where it is for the launcher to say.
MOST = 8
# Rows that a program merges at once, and splits of them.
MERGED, SPLITS = 2, 16
# Elements of d_hidden that a program scales at once, and partials that are summed at once.
BLOCK = 1024
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(float("-inf"))
# Exponentials are lifted by 2^10 where they are operands: float16 is normal from 2^-14 on.
LIFT, LIFTED = tl.constexpr(10.0), tl.constexpr(1024.0)


@triton.jit
def _vectors(ptr, first, there, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr):
    """Rows ``first``, an int64, and those after it; zero where not ``there``, None for all."""
    dims = tl.arange(0, BLOCK_D)
    at = ptr + first * D + tl.arange(0, ROWS)[:, None] * D + dims[None, :]
    # Masks that are none cost nothing: the loop over whole tiles copies them asynchronously.
    if there is None and D == BLOCK_D:
        rows = tl.load(at)
    elif there is None:
        rows = tl.load(at, mask=(dims < D)[None, :], other=0.0)
    elif D == BLOCK_D:
        rows = tl.load(at, mask=there[:, None], other=0.0)
    else:
        rows = tl.load(at, mask=there[:, None] & (dims < D)[None, :], other=0.0)
    return rows


@triton.jit
def _take(
    h, weight_ptr, tile, catalogue, target, top, mass, sums,
    D: tl.constexpr, BLOCK_D: tl.constexpr, COLUMNS: tl.constexpr, WHOLE: tl.constexpr,
    GRAD: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    """Add a tile of items, all of which exist if WHOLE, to the sums of exponentials.

    They are powers of 2, one instruction each, relative to ``top``, the greatest logit so far less
    LIFT.
    """
    # Item 0 is padding.
    first = 1 + tl.cast(tile, tl.int64) * COLUMNS
    item = first.to(tl.int32) + tl.arange(0, COLUMNS)
    if WHOLE:
        w = _vectors(weight_ptr, first, None, D, BLOCK_D, COLUMNS).to(OPERAND)
        other = item[None, :] != target[:, None]
    else:
        there = item <= catalogue
        w = _vectors(weight_ptr, first, there, D, BLOCK_D, COLUMNS).to(OPERAND)
        other = there[None, :] & (item[None, :] != target[:, None])
    logit = tl.where(other, product(h, tl.trans(w), PRECISION), LOWEST)
    higher = tl.maximum(top, tl.max(logit, 1) * LOG2E - LIFT)
    # A catalogue of one item has no other, and a tile may hold none.
    base = tl.where(higher == LOWEST, 0.0, higher)
    power = tl.exp2(logit * LOG2E - base[:, None])
    fade = tl.exp2(top - base)
    mass = mass * fade + tl.sum(power, 1)
    if GRAD:
        sums = sums * fade[:, None] + product(power.to(OPERAND), w, PRECISION)
    return higher, mass, sums


@triton.jit
def _share(counts_ptr, tiles, BLOCK: tl.constexpr):
    """1 / rows that count, from their numbers in each tile."""
    count = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, tiles, BLOCK):
        at = start + tl.arange(0, BLOCK)
        count += tl.load(counts_ptr + at, mask=at < tiles, other=0)
    return 1.0 / tl.maximum(tl.sum(count), 1).to(tl.float32)


@triton.jit(do_not_specialize=["rows", "catalogue", "tiles"])
def _forward_kernel(
    hidden_ptr, weight_ptr, targets_ptr, top_ptr, mass_ptr, sums_ptr, counts_ptr, rows, catalogue,
    tiles,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    GRAD: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    begin = tl.program_id(0).to(tl.int64) * ROWS
    row = begin + tl.arange(0, ROWS)
    split = tl.program_id(1)
    target = tl.load(targets_ptr + row, mask=row < rows, other=0).to(tl.int32)
    counted = target > 0
    count = tl.sum(counted.to(tl.int32))
    if split == 0:
        tl.store(counts_ptr + tl.program_id(0), count)
    if count == 0:
        return
    h = _vectors(hidden_ptr, begin, counted, D, BLOCK_D, ROWS).to(OPERAND)
    top = tl.full((ROWS,), LOWEST, tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, BLOCK_D), tl.float32)
    end = split * tiles + tiles
    whole = tl.minimum(end, catalogue // COLUMNS)
    for tile in range(split * tiles, whole):
        top, mass, sums = _take(h, weight_ptr, tile, catalogue, target, top, mass, sums, D, BLOCK_D,
                                COLUMNS, True, GRAD, OPERAND, PRECISION)
    for tile in range(whole, tl.minimum(end, tl.cdiv(catalogue, COLUMNS))):
        top, mass, sums = _take(h, weight_ptr, tile, catalogue, target, top, mass, sums, D, BLOCK_D,
                                COLUMNS, False, GRAD, OPERAND, PRECISION)
    place = split.to(tl.int64) * rows
    tl.store(top_ptr + place + row, top, mask=counted)
    tl.store(mass_ptr + place + row, mass, mask=counted)
    if GRAD:
        dims = tl.arange(0, BLOCK_D)
        at = (place + row)[:, None] * D + dims[None, :]
        tl.store(sums_ptr + at, sums, mask=counted[:, None] & (dims < D)[None, :])


@triton.jit(do_not_specialize=["rows", "catalogue", "splits", "tiles"])
def _merge_kernel(
    hidden_ptr, weight_ptr, targets_ptr, top_ptr, mass_ptr, sums_ptr, counts_ptr, state_ptr,
    losses_ptr, d_hidden_ptr, rows, catalogue, splits, tiles,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK: tl.constexpr, GRAD: tl.constexpr, OPERAND: tl.constexpr,
):
    share = _share(counts_ptr, tiles, BLOCK)
    dims = tl.arange(0, BLOCK_D)
    losses = tl.zeros((ROWS,), tl.float32)
    for group in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        begin = tl.cast(group, tl.int64) * ROWS
        row = begin + tl.arange(0, ROWS)
        target = tl.load(targets_ptr + row, mask=row < rows, other=0)
        counted = target > 0
        real = counted & (target <= catalogue)
        top = tl.full((ROWS,), LOWEST, tl.float32)
        base = tl.zeros((ROWS,), tl.float32)
        mass = tl.zeros((ROWS,), tl.float32)
        sums = tl.zeros((ROWS, BLOCK_D), tl.float32)
        for start in range(0, splits, SPLITS):
            split = start + tl.arange(0, SPLITS)
            at = split.to(tl.int64)[:, None] * rows + row[None, :]
            mask = (split < splits)[:, None] & counted[None, :]
            tops = tl.load(top_ptr + at, mask=mask, other=LOWEST)
            higher = tl.maximum(top, tl.max(tops, 0))
            base = tl.where(higher == LOWEST, 0.0, higher)
            scale = tl.exp2(tops - base[None, :])
            fade = tl.exp2(top - base)
            masses = tl.load(mass_ptr + at, mask=mask, other=0.0)
            mass = mass * fade + tl.sum(masses * scale, 0)
            if GRAD:
                all_dims = at[:, :, None] * D + dims[None, None, :]
                inside = mask[:, :, None] & (dims < D)[None, None, :]
                parts = tl.load(sums_ptr + all_dims, mask=inside, other=0.0)
                sums = sums * fade[:, None] + tl.sum(parts * scale[:, :, None], 0)
            top = higher
        h = _vectors(hidden_ptr, begin, real, D, BLOCK_D, ROWS).to(OPERAND).to(tl.float32)
        mask = real[:, None] & (dims < D)[None, :]
        w = tl.load(weight_ptr + target[:, None] * D + dims[None, :], mask=mask, other=0.0)
        w = w.to(OPERAND).to(tl.float32)
        # A target that is no item makes the loss NaN.
        logit = tl.where(real, tl.sum(h * w, 1), float("nan"))
        excess = (base + tl.log2(mass)) * LN2 - logit
        decay = tl.exp(-tl.abs(excess))
        loss = tl.maximum(excess, 0.0) + tl.log(1.0 + decay)
        losses += tl.where(counted, loss, 0.0)
        if GRAD:
            rest = tl.where(excess > 0, 1.0, decay) / (1.0 + decay)  # 1 - p of the target
            lse = tl.where(counted, (logit + loss) * LOG2E, float("inf"))
            tl.store(state_ptr + row, lse, mask=row < rows)
            tl.store(state_ptr + rows + row, tl.where(counted, rest, 0.0), mask=row < rows)
            weight = tl.where(mass > 0, rest / mass, 0.0)
            d_h = (weight[:, None] * sums - rest[:, None] * w) * share
            d_h = tl.where(counted[:, None], d_h, 0.0)
            at = row[:, None] * D + dims[None, :]
            tl.store(d_hidden_ptr + at, d_h, mask=(row < rows)[:, None] & (dims < D)[None, :])
    tl.store(losses_ptr + tl.program_id(0), tl.sum(losses))


@triton.jit(do_not_specialize=["rows", "parts", "tiles"])
def _mean_kernel(losses_ptr, counts_ptr, state_ptr, loss_ptr, rows, parts, tiles,
                 BLOCK: tl.constexpr, GRAD: tl.constexpr):
    share = _share(counts_ptr, tiles, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, parts, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(losses_ptr + at, mask=at < parts, other=0.0)
    tl.store(loss_ptr, tl.sum(total) * share)
    if GRAD:
        tl.store(state_ptr + rows.to(tl.int64) * 2, share)


@triton.jit(do_not_specialize=["rows", "catalogue", "tiles"])
def _backward_kernel(
    grad_ptr, found_ptr, state_ptr, hidden_ptr, weight_ptr, targets_ptr, d_hidden_ptr, d_weight_ptr,
    rows, catalogue, tiles,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    grad = tl.load(grad_ptr).to(tl.float32)
    # The gradient of hidden was found forward; every program takes its part in scaling it.
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    elements = rows.to(tl.int64) * D
    for start in range(program.to(tl.int64) * BLOCK, elements,
                       tl.num_programs(0) * tl.num_programs(1) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        found = tl.load(found_ptr + at, mask=at < elements, other=0.0).to(tl.float32)
        tl.store(d_hidden_ptr + at, found * grad, mask=at < elements)

    first = tl.program_id(0).to(tl.int64) * COLUMNS
    item = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = (item > 0) & (item <= catalogue)
    w = _vectors(weight_ptr, first, there, D, BLOCK_D, COLUMNS).to(OPERAND)
    d_w = tl.zeros((COLUMNS, BLOCK_D), tl.float32)
    slice_ = tl.program_id(1)
    last = tl.minimum(slice_ * tiles + tiles, tl.cdiv(rows, ROWS))
    for tile in range(slice_ * tiles, last):
        begin = tl.cast(tile, tl.int64) * ROWS
        place = tl.arange(0, ROWS)
        real = place < rows - tile * ROWS
        target = tl.load(targets_ptr + begin + place, mask=real, other=0).to(tl.int32)
        lse = tl.load(state_ptr + begin + place, mask=real, other=float("inf"))
        rest = tl.load(state_ptr + rows + begin + place, mask=real, other=0.0)
        h = _vectors(hidden_ptr, begin, target > 0, D, BLOCK_D, ROWS).to(OPERAND)
        logit = product(w, tl.trans(h), PRECISION)
        slope = tl.exp2(logit * LOG2E - (lse - LIFT)[None, :])
        own = -rest * LIFTED
        slope = tl.where(item[:, None] == target[None, :], own[None, :], slope)
        d_w += product(slope.to(OPERAND), h, PRECISION)
    scale = tl.load(state_ptr + rows.to(tl.int64) * 2) * grad / LIFTED
    # Row 0 has collected what was left out.
    d_w = tl.where(there[:, None], d_w * scale, 0.0)
    dims = tl.arange(0, BLOCK_D)
    at = tl.arange(0, COLUMNS)[:, None] * D + dims[None, :]
    place = (slice_.to(tl.int64) * (catalogue + 1) + first) * D
    tl.store(d_weight_ptr + place + at, d_w,
             mask=(item <= catalogue)[:, None] & (dims < D)[None, :])


@functools.lru_cache(maxsize=1024)
def _parts(tiles: int, least: int, programs: int, multiprocessors: int) -> tuple[int, int]:
    """Cut a walk over ``tiles``, of which ``programs`` take one each, in parts for more programs.

    Time is that of the multiprocessor with most programs, in tiles. One program alone leaves half
    of it idle, and each costs two tiles beside its walk: it starts, and its sums are written and
    read again.

    Args:
        tiles: how many a whole walk has.
        least: tiles of a part where there are several.
        programs: how many walk over the same tiles for something else each.
        multiprocessors: of the device.

    Returns:
        How many parts, at least one, and tiles of a part.
    """
    def cost(parts: int) -> int:
        busiest = triton.cdiv(parts * programs, multiprocessors)
        return max(2, busiest) * (triton.cdiv(tiles, parts) + 2)

    most = min(tiles // least, triton.cdiv(MOST * multiprocessors, max(1, programs)))
    each = triton.cdiv(tiles, min(range(1, max(1, most) + 1), key=cost))
    return max(1, triton.cdiv(tiles, max(1, each))), each


def _common(
    kernel: str, hidden: Tensor, weight: Tensor, targets: Tensor
) -> tuple[dict[str, Any], _heuristics.Tile]:
    rows, size = hidden.shape
    ops, block = operands(hidden), padded_size(size)
    tile = _heuristics.tile(kernel, block, ops.kind, architecture(hidden.device), rows)
    return {
        "hidden_ptr": hidden, "weight_ptr": weight, "targets_ptr": targets, "rows": rows,
        "catalogue": weight.shape[0] - 1, "D": size, "BLOCK_D": block, "OPERAND": ops.dtype,
        "PRECISION": ops.precision, "ROWS": tile.rows, "COLUMNS": tile.chunk, "BLOCK": BLOCK,
    }, tile


def fwd(
    hidden: Tensor, weight: Tensor, targets: Tensor, needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``linear_cross_entropy_fwd``: the loss, d_hidden for a gradient of 1, and what bwd needs.

    The last is float32 ``[2R + 1]``: log-sum-exps in base 2, 1 - p of the targets, 1 / rows.
    """
    hidden, weight, targets = hidden.contiguous(), weight.contiguous(), targets.contiguous()
    rows, size = hidden.shape
    arguments, tile = _common("cross_entropy", hidden, weight, targets)
    processors, row_tiles = multiprocessors(hidden.device), triton.cdiv(rows, tile.rows)
    item_tiles = triton.cdiv(weight.shape[0] - 1, tile.chunk)
    splits, walk = _parts(item_tiles, triton.cdiv(SPLIT, tile.chunk), row_tiles, processors)
    merges = min(triton.cdiv(rows, MERGED), MOST * processors)
    wide = {"dtype": torch.float32, "device": hidden.device}
    top, mass = torch.empty(splits, rows, **wide), torch.empty(splits, rows, **wide)
    sums = torch.empty(splits, rows, size, **wide) if needs_grad else None
    counts = torch.empty(row_tiles, dtype=torch.int32, device=hidden.device)
    losses, loss = torch.empty(merges, **wide), torch.empty((), **wide)
    d_hidden = torch.empty_like(hidden) if needs_grad else hidden.new_empty(0)
    state = torch.empty(2 * rows + 1 if needs_grad else 0, **wide)
    arguments |= {
        "top_ptr": top, "mass_ptr": mass, "sums_ptr": sums, "counts_ptr": counts,
        "state_ptr": state, "losses_ptr": losses, "d_hidden_ptr": d_hidden, "loss_ptr": loss,
        "GRAD": needs_grad,
    }
    forward = {**arguments, "tiles": walk}
    launch(_forward_kernel, (row_tiles, splits), forward, tile.options)
    arguments |= {"tiles": row_tiles, "splits": splits, "parts": merges}
    merge = {**arguments, "ROWS": MERGED, "SPLITS": SPLITS}
    launch(_merge_kernel, (merges,), merge, {"num_warps": 4})
    launch(_mean_kernel, (1,), arguments, {"num_warps": 4})
    return loss, d_hidden, state


def bwd(
    grad: Tensor, d_hidden: Tensor, state: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """``linear_cross_entropy_bwd``: the gradients of hidden and of the whole weight, both fresh."""
    hidden, weight, targets = hidden.contiguous(), weight.contiguous(), targets.contiguous()
    arguments, tile = _common("cross_entropy_weights", hidden, weight, targets)
    item_tiles = triton.cdiv(weight.shape[0], tile.chunk)
    row_tiles = triton.cdiv(hidden.shape[0], tile.rows)
    slices, walk = _parts(
        row_tiles, triton.cdiv(SLICE, tile.rows), item_tiles, multiprocessors(hidden.device)
    )
    scaled = torch.empty_like(hidden)
    if slices == 1:
        d_weight = torch.empty_like(weight)
    else:
        d_weight = torch.empty(slices, *weight.shape, dtype=torch.float32, device=weight.device)
    arguments |= {
        "grad_ptr": grad, "found_ptr": d_hidden, "state_ptr": state, "d_hidden_ptr": scaled,
        "d_weight_ptr": d_weight, "tiles": walk,
    }
    launch(_backward_kernel, (item_tiles, slices), arguments, tile.options)
    return scaled, d_weight if slices == 1 else d_weight.sum(0).to(weight.dtype)
