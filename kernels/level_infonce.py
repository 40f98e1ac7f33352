"""``level_infonce`` in Triton: Eq. 6 as streaming softmaxes, no [levels, B, B] in memory.

Users are ordered by depth: each counts how many come before it. The candidates of level k
(depth > k) are then the end of that order and its anchors (k < depth <= 2k + 1) a run at the
candidates' beginning, so tiles hold no user to skip, loop bounds are read on the device, and a
user's positive is the candidate at its own place. Unit vectors are made once, in that order, in the
kernel that finds it; backward is handed both.

The forward kernel's programs each write a loss, and the one that ends last adds them up, in their
order. Backward makes the same tiles again from the saved log-sum-exps. A program owns a tile of
users of one level and sums what they receive as anchors and what as candidates: no atomics on
floats, one order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.level_infonce import Prepared
from . import _heuristics
from ._launch import architecture, float32_operands, launch, padded_size
from ._product import product

DEPTH = 32  # dimensions of an operand of the similarities
NORMALISED = 16  # rows of a tile of unit vectors
OTHERS = 256  # users that a tile's depths are compared with at once
LOSSES = 1024  # of programs, added at once
SMALLEST = tl.constexpr(1e-12)  # norm, as in torch.nn.functional.normalize


@triton.jit(do_not_specialize=["users", "levels"])
def _prepare_kernel(
    z_ptr, depth_ptr, targets_ptr, sorted_targets_ptr, user_ptr, starts_ptr, pairs_ptr, done_ptr,
    unit_ptr, norm_ptr, users, levels,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, OTHERS: tl.constexpr,
):
    """The order of a tile of users, and their unit vectors and norms of a level, by place."""
    tile, level = tl.program_id(0), tl.program_id(1)
    user = tile * ROWS + tl.arange(0, ROWS)
    there = user < users
    depth = tl.load(depth_ptr + user, mask=there, other=0).to(tl.int32)
    place = tl.zeros((ROWS,), tl.int32)
    start = tl.zeros((OTHERS,), tl.int32)
    reached = tl.zeros((OTHERS,), tl.int32)
    pairs = tl.zeros((OTHERS,), tl.int32)
    for first in range(0, users, OTHERS):
        other = first + tl.arange(0, OTHERS)
        exists = other < users
        theirs = tl.load(depth_ptr + other, mask=exists, other=0).to(tl.int32)
        before = (theirs[None, :] < depth[:, None]) & exists[None, :]
        # Of the same depth, the one with the smaller number comes first.
        before |= (theirs[None, :] == depth[:, None]) & (other[None, :] < user[:, None])
        place += tl.sum(before.to(tl.int32), 1)
        start += (exists & (theirs < level)).to(tl.int32)
        reached += (exists & (theirs < levels)).to(tl.int32)
        pairs += tl.where(exists, theirs - theirs // 2, 0)
    if tile == 0:
        tl.store(starts_ptr + level, tl.sum(start))
        if level == 0:
            tl.store(starts_ptr + levels, tl.sum(reached))
            tl.store(pairs_ptr, tl.sum(pairs))
            tl.store(done_ptr, 0)
    if level == 0:
        tl.store(user_ptr + place, user, mask=there)
        target = tl.load(targets_ptr + user, mask=there, other=0)
        tl.store(sorted_targets_ptr + place, target, mask=there)
    dims = tl.arange(0, BLOCK_D)
    reaches = there & (depth >= level)
    mask = reaches[:, None] & (dims < D)[None, :]
    plane = users.to(tl.int64) * level
    z = tl.load(z_ptr + (plane + user)[:, None] * D + dims[None, :], mask=mask, other=0.0)
    z = z.to(tl.float32)
    norm = tl.maximum(tl.sqrt(tl.sum(z * z, 1)), SMALLEST)
    at = (plane + place)[:, None] * D + dims[None, :]
    tl.store(unit_ptr + at, z / norm[:, None], mask=mask)
    tl.store(norm_ptr + plane + place, norm, mask=reaches)


@triton.jit
def _vectors(unit_ptr, row, there, dims, D: tl.constexpr):
    """Unit vectors of a tile of rows, zero where there is none."""
    mask = there[:, None] & (dims < D)[None, :]
    return tl.load(unit_ptr + row[:, None] * D + dims[None, :], mask=mask, other=0.0)


@triton.jit
def _logits(
    unit_ptr, targets_ptr, plane_x, place_x, there_x, plane_y, place_y, there_y, scale,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Similarities over the temperature, ``[ROWS, COLUMNS]``; -inf to others of the same target.

    Part of the dimensions at a time: held whole, the operands of a float32 product spill.
    """
    logit = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, D, DEPTH):
        dims = start + tl.arange(0, DEPTH)
        x = _vectors(unit_ptr, plane_x + place_x, there_x, dims, D)
        y = _vectors(unit_ptr, plane_y + place_y, there_y, dims, D)
        logit += product(x, tl.trans(y), PRECISION)
    target_x = tl.load(targets_ptr + place_x, mask=there_x, other=-1)
    target_y = tl.load(targets_ptr + place_y, mask=there_y, other=-1)
    barred = (target_x[:, None] == target_y[None, :]) & (place_x[:, None] != place_y[None, :])
    return tl.where(barred, float("-inf"), logit * scale)


@triton.jit(do_not_specialize=["users", "levels"])
def _forward_kernel(
    unit_ptr, targets_ptr, starts_ptr, pairs_ptr, done_ptr, lse_ptr, losses_ptr, loss_ptr,
    users, levels, scale,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    LOSSES: tl.constexpr, PRECISION: tl.constexpr,
):
    level = tl.program_id(1)
    plane = users.to(tl.int64) * level
    # starts[j] is the first place of depth j or more.
    first = tl.load(starts_ptr + level + 1)
    end = tl.load(starts_ptr + tl.minimum(2 * level + 2, levels))
    place = first + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = place < end
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    positive = tl.zeros((ROWS,), tl.float32)
    # Nothing to compare where the tile holds no anchor.
    stop = tl.where(tl.max(there.to(tl.int32)) > 0, users, 0)
    for start in range(first.to(tl.int32), stop, COLUMNS):
        other = start + tl.arange(0, COLUMNS)
        exists = other < users
        logit = _logits(unit_ptr, targets_ptr, plane, place, there, plane + users, other, exists,
                        scale, ROWS, COLUMNS, D, DEPTH, PRECISION)
        logit = tl.where(exists[None, :], logit, float("-inf"))
        positive += tl.sum(tl.where(place[:, None] == other[None, :], logit, 0.0), 1)
        higher = tl.maximum(top, tl.max(logit, 1))
        # A user whose candidates were all barred so far has no maximum yet.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        mass = mass * tl.exp(top - base) + tl.sum(tl.exp(logit - base[:, None]), 1)
        top = higher
    lse = top + tl.log(tl.where(there, mass, 1.0))
    tl.store(lse_ptr + plane + place, lse, mask=there)
    loss = tl.sum(tl.where(there, lse - positive, 0.0))
    tl.store(losses_ptr + level * tl.num_programs(0) + tl.program_id(0), loss)
    # A release of this program's loss and an acquire of all others' before it.
    programs = tl.num_programs(0) * tl.num_programs(1)
    if tl.atomic_add(done_ptr, 1, sem="acq_rel") == programs - 1:
        total = tl.zeros((LOSSES,), tl.float32)
        for start in range(0, programs, LOSSES):
            at = start + tl.arange(0, LOSSES)
            # From where all multiprocessors see it: not from this one's first cache.
            total += tl.load(losses_ptr + at, mask=at < programs, other=0.0, cache_modifier=".cg")
        pairs = tl.maximum(tl.load(pairs_ptr), 1)
        tl.store(loss_ptr, tl.sum(total) / pairs.to(tl.float32))


@triton.jit(do_not_specialize=["users", "levels"])
def _backward_kernel(
    grad_ptr, unit_ptr, norm_ptr, targets_ptr, user_ptr, starts_ptr, pairs_ptr, lse_ptr, d_z_ptr,
    users, levels, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):
    level = tl.program_id(1)
    plane = users.to(tl.int64) * level
    reach = tl.load(starts_ptr + level)
    place = reach + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = place < users
    if tl.max(there.to(tl.int32)) == 0:
        return
    dims = tl.arange(0, BLOCK_D)
    d_x = tl.zeros((ROWS, BLOCK_D), tl.float32)
    if level + 1 < levels:
        # As anchors, against the candidates of the next level.
        first = tl.load(starts_ptr + level + 1)
        end = tl.load(starts_ptr + tl.minimum(2 * level + 2, levels))
        anchor = (place >= first) & (place < end)
        lse = tl.load(lse_ptr + plane + place, mask=anchor, other=float("inf"))
        stop = tl.where(tl.max(anchor.to(tl.int32)) > 0, users, 0)
        for start in range(first.to(tl.int32), stop, COLUMNS):
            other = start + tl.arange(0, COLUMNS)
            exists = other < users
            logit = _logits(unit_ptr, targets_ptr, plane, place, there, plane + users, other,
                            exists, scale, ROWS, COLUMNS, D, DEPTH, PRECISION)
            slope = tl.exp(logit - lse[:, None])
            slope -= tl.where(anchor[:, None] & (place[:, None] == other[None, :]), 1.0, 0.0)
            slope = tl.where(exists[None, :], slope, 0.0)
            y = _vectors(unit_ptr, plane + users + other, exists, dims, D)
            d_x += product(slope, y, PRECISION)
    if level > 0:
        # As candidates, of the anchors of the level before.
        end = tl.load(starts_ptr + tl.minimum(2 * level, levels))
        for start in range(reach.to(tl.int32), end.to(tl.int32), COLUMNS):
            other = start + tl.arange(0, COLUMNS)
            exists = other < end
            logit = _logits(unit_ptr, targets_ptr, plane, place, there, plane - users, other,
                            exists, scale, ROWS, COLUMNS, D, DEPTH, PRECISION)
            lse = tl.load(lse_ptr + plane - users + other, mask=exists, other=float("inf"))
            slope = tl.exp(logit - lse[None, :])
            slope -= tl.where(place[:, None] == other[None, :], 1.0, 0.0)
            slope = tl.where(exists[None, :], slope, 0.0)
            y = _vectors(unit_ptr, plane - users + other, exists, dims, D)
            d_x += product(slope, y, PRECISION)
    pairs = tl.maximum(tl.load(pairs_ptr), 1).to(tl.float32)
    d_x *= tl.load(grad_ptr).to(tl.float32) / pairs * scale
    x = _vectors(unit_ptr, plane + place, there, dims, D)
    norm = tl.load(norm_ptr + plane + place, mask=there, other=1.0)
    # A vector too short to be normalised was only divided.
    along = tl.where(norm > SMALLEST, tl.sum(d_x * x, 1), 0.0)
    d_z = (d_x - along[:, None] * x) / norm[:, None]
    user = tl.load(user_ptr + place, mask=there, other=0)
    at = (plane + user)[:, None] * D + dims[None, :]
    tl.store(d_z_ptr + at, d_z, mask=there[:, None] & (dims < D)[None, :])


def _common(
    kernel: str, z: Tensor, saved: Prepared, temperature: float
) -> tuple[dict[str, Any], _heuristics.Tile]:
    """A kernel's tile, and the arguments that forward and backward share."""
    levels, users, size = z.shape
    ops = float32_operands(z.device)
    tile = _heuristics.tile(kernel, padded_size(size), ops.kind, architecture(z.device), users)
    return {
        "unit_ptr": saved.unit, "targets_ptr": saved.targets, "starts_ptr": saved.starts,
        "pairs_ptr": saved.pairs, "lse_ptr": saved.lse, "users": users, "levels": levels,
        "scale": 1.0 / temperature, "D": size, "ROWS": tile.rows, "COLUMNS": tile.chunk,
        "DEPTH": DEPTH, "PRECISION": ops.precision,
    }, tile


def fwd(z: Tensor, depth: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """``level_infonce_fwd`` of the op's schema: the loss and a buffer of :class:`Prepared`."""
    z = z.contiguous()
    levels, users, size = z.shape
    wide = {"dtype": torch.float32, "device": z.device}
    buffer = torch.empty(sum(Prepared.words(levels, users, size)), **wide)
    saved = Prepared.of(buffer, levels, users, size)
    launch(_prepare_kernel, (triton.cdiv(users, NORMALISED), levels), {
        "z_ptr": z, "depth_ptr": depth.contiguous(), "targets_ptr": targets.contiguous(),
        "sorted_targets_ptr": saved.targets, "user_ptr": saved.user, "starts_ptr": saved.starts,
        "pairs_ptr": saved.pairs, "done_ptr": saved.done, "unit_ptr": saved.unit,
        "norm_ptr": saved.norm, "users": users, "levels": levels, "D": size,
        "BLOCK_D": padded_size(size), "ROWS": NORMALISED, "OTHERS": OTHERS,
    }, {"num_warps": 4})
    arguments, tile = _common("infonce_forward", z, saved, temperature)
    grid = triton.cdiv(users, tile.rows), levels - 1
    if min(grid) == 0:
        return torch.zeros((), **wide), buffer
    loss, losses = torch.empty((), **wide), torch.empty(grid[0] * grid[1], **wide)
    arguments |= {"done_ptr": saved.done, "losses_ptr": losses, "loss_ptr": loss, "LOSSES": LOSSES}
    launch(_forward_kernel, grid, arguments, tile.options)
    return loss, buffer


def bwd(
    grad_loss: Tensor, saved: Tensor, z: Tensor, depth: Tensor, targets: Tensor, temperature: float
) -> Tensor:
    """``level_infonce_bwd``: the gradient of z, written for the levels that exist."""
    levels, users, size = z.shape
    prepared = Prepared.of(saved, levels, users, size)
    arguments, tile = _common("infonce_backward", z, prepared, temperature)
    d_z = torch.empty_like(z, memory_format=torch.contiguous_format)
    arguments |= {
        "grad_ptr": grad_loss, "norm_ptr": prepared.norm, "user_ptr": prepared.user,
        "d_z_ptr": d_z, "BLOCK_D": padded_size(size),
    }
    launch(_backward_kernel, (triton.cdiv(users, tile.rows), levels), arguments, tile.options)
    return d_z
