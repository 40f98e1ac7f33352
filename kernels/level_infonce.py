"""``level_infonce`` in Triton: Eq. 6 as streaming softmaxes, no [levels, B, B] in memory.

Users are sorted by depth on the device. The candidates of level k (depth > k) are then the end of
that order and its anchors (k < depth <= 2k + 1) a run at the candidates' beginning, so tiles hold
no user to skip, loop bounds are read on the device, and a user's positive is the candidate at its
own place. Unit vectors are made once, in that order.

Backward makes the same tiles again from the saved log-sum-exps. A program owns a tile of users of
one level and sums what they receive as anchors and what as candidates: no atomics, one order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _heuristics
from ._launch import architecture, float32_operands, launch, padded_size
from ._product import product

DEPTH = 32  # dimensions of an operand of the similarities
NORMALISED = 16  # rows of a tile of unit vectors
SMALLEST = tl.constexpr(1e-12)  # norm, as in torch.nn.functional.normalize


@triton.jit(do_not_specialize=["users"])
def _unit_kernel(
    z_ptr, order_ptr, starts_ptr, unit_ptr, norm_ptr, users,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):
    """Unit vectors and norms of the users that reach a level, in the order of depth."""
    level = tl.program_id(1)
    place = tl.load(starts_ptr + level) + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    user = tl.load(order_ptr + place, mask=place < users, other=0)
    dims = tl.arange(0, BLOCK_D)
    mask = (place < users)[:, None] & (dims < D)[None, :]
    row = users.to(tl.int64) * level
    z = tl.load(z_ptr + (row + user)[:, None] * D + dims[None, :], mask=mask, other=0.0)
    z = z.to(tl.float32)
    norm = tl.maximum(tl.sqrt(tl.sum(z * z, 1)), SMALLEST)
    at = (row + place)[:, None] * D + dims[None, :]
    tl.store(unit_ptr + at, z / norm[:, None], mask=mask)
    tl.store(norm_ptr + row + place, norm, mask=place < users)


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
    unit_ptr, targets_ptr, order_ptr, starts_ptr, lse_ptr, losses_ptr, users, levels, scale,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
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
    user = tl.load(order_ptr + place, mask=there, other=0)
    tl.store(lse_ptr + plane + user, lse, mask=there)
    loss = tl.sum(tl.where(there, lse - positive, 0.0))
    tl.store(losses_ptr + level * tl.num_programs(0) + tl.program_id(0), loss)


@triton.jit(do_not_specialize=["users", "levels"])
def _backward_kernel(
    unit_ptr, norm_ptr, targets_ptr, order_ptr, starts_ptr, lse_ptr, share_ptr, d_z_ptr,
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
    user = tl.load(order_ptr + place, mask=there, other=0)
    d_x = tl.zeros((ROWS, BLOCK_D), tl.float32)
    if level + 1 < levels:
        # As anchors, against the candidates of the next level.
        first = tl.load(starts_ptr + level + 1)
        end = tl.load(starts_ptr + tl.minimum(2 * level + 2, levels))
        anchor = (place >= first) & (place < end)
        lse = tl.load(lse_ptr + plane + user, mask=anchor, other=float("inf"))
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
            rival = tl.load(order_ptr + other, mask=exists, other=0)
            lse = tl.load(lse_ptr + plane - users + rival, mask=exists, other=float("inf"))
            slope = tl.exp(logit - lse[None, :])
            slope -= tl.where(place[:, None] == other[None, :], 1.0, 0.0)
            slope = tl.where(exists[None, :], slope, 0.0)
            y = _vectors(unit_ptr, plane - users + other, exists, dims, D)
            d_x += product(slope, y, PRECISION)
    d_x *= tl.load(share_ptr) * scale
    x = _vectors(unit_ptr, plane + place, there, dims, D)
    norm = tl.load(norm_ptr + plane + place, mask=there, other=1.0)
    # A vector too short to be normalised was only divided.
    along = tl.where(norm > SMALLEST, tl.sum(d_x * x, 1), 0.0)
    d_z = (d_x - along[:, None] * x) / norm[:, None]
    at = (plane + user)[:, None] * D + dims[None, :]
    tl.store(d_z_ptr + at, d_z, mask=there[:, None] & (dims < D)[None, :])


def _prepare(
    kernel: str, z: Tensor, depth: Tensor, targets: Tensor, temperature: float
) -> tuple[dict[str, Any], Tensor, _heuristics.Tile]:
    """Sort the users, make the unit vectors, and choose a kernel's tile; arguments, norms, tile."""
    levels, users, size = z.shape
    block, ops = padded_size(size), float32_operands(z.device)
    tile = _heuristics.tile(kernel, block, ops.kind, architecture(z.device), users)
    sorted_depth, order = torch.sort(depth, stable=True)
    starts = torch.searchsorted(sorted_depth, torch.arange(levels + 1, device=z.device))
    unit = torch.empty(levels, users, size, dtype=torch.float32, device=z.device)
    norm = torch.empty(levels, users, dtype=torch.float32, device=z.device)
    common = {"order_ptr": order, "starts_ptr": starts, "unit_ptr": unit, "users": users, "D": size}
    arguments = {"z_ptr": z, "norm_ptr": norm, "BLOCK_D": block, "ROWS": NORMALISED}
    grid = (triton.cdiv(users, NORMALISED), levels)
    launch(_unit_kernel, grid, {**common, **arguments}, {"num_warps": 4})
    return {
        **common, "targets_ptr": targets[order], "levels": levels, "scale": 1.0 / temperature,
        "ROWS": tile.rows, "COLUMNS": tile.chunk, "DEPTH": DEPTH, "PRECISION": ops.precision,
    }, norm, tile


def _pairs(depth: Tensor) -> Tensor:
    """How many pairs there are, at least 1, float32 on the device."""
    return (depth - depth // 2).sum().clamp(min=1).float()


def fwd(z: Tensor, depth: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """``level_infonce_fwd`` of the op's schema: the loss and lse ``[K-1, B]``, 0 without a pair."""
    z = z.contiguous()
    arguments, _, tile = _prepare("infonce_forward", z, depth, targets, temperature)
    steps, users = z.shape[0] - 1, z.shape[1]
    tiles = triton.cdiv(users, tile.rows)
    lse = z.new_zeros(steps, users, dtype=torch.float32)
    losses = z.new_empty(steps, tiles, dtype=torch.float32)
    arguments |= {"lse_ptr": lse, "losses_ptr": losses}
    launch(_forward_kernel, (tiles, steps), arguments, tile.options)
    return losses.sum() / _pairs(depth), lse


def bwd(
    grad_loss: Tensor, lse: Tensor, z: Tensor, depth: Tensor, targets: Tensor, temperature: float
) -> Tensor:
    """``level_infonce_bwd``: the gradient of z, written for the levels that exist."""
    z = z.contiguous()
    arguments, norm, tile = _prepare("infonce_backward", z, depth, targets, temperature)
    d_z = torch.empty_like(z)
    arguments |= {
        "norm_ptr": norm, "lse_ptr": lse.contiguous(), "d_z_ptr": d_z,
        "share_ptr": (grad_loss / _pairs(depth)).float(), "BLOCK_D": padded_size(z.shape[2]),
    }
    grid = (triton.cdiv(z.shape[1], tile.rows), z.shape[0])
    launch(_backward_kernel, grid, arguments, tile.options)
    return d_z
