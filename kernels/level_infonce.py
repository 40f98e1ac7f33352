"""``level_infonce`` in Triton: Eq. 6 as streaming softmaxes, no [levels, B, B] in memory.

Users are sorted by depth on the device. The candidates of level k (depth > k) are then the end of
that order and its anchors (k < depth <= 2k + 1) a run at the candidates' beginning, so tiles hold
no user to skip, loop bounds are read on the device, and a user's positive is the candidate at its
own place.

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

SMALLEST = tl.constexpr(1e-12)  # norm, as in torch.nn.functional.normalize


@triton.jit
def _users(place, end, order_ptr, targets_ptr):
    """Users at the places of a tile and their targets; ``end`` is the first place not there."""
    user = tl.load(order_ptr + place, mask=place < end, other=0)
    return user, tl.load(targets_ptr + user, mask=place < end, other=-1)


@triton.jit
def _unit(z_ptr, level, user, there, users, dims, D: tl.constexpr):
    """Unit vectors of a tile of users at a level, zero where there is no user, and their norms."""
    at = (users.to(tl.int64) * level + user)[:, None] * D + dims[None, :]
    mask = there[:, None] & (dims < D)[None, :]
    z = tl.load(z_ptr + at, mask=mask, other=0.0).to(tl.float32)
    norm = tl.maximum(tl.sqrt(tl.sum(z * z, 1)), SMALLEST)
    return z / norm[:, None], norm


@triton.jit
def _similarity(x, y, place_x, place_y, target_x, target_y, scale, PRECISION: tl.constexpr):
    """Similarities over the temperature, -inf to other users with the same target."""
    similarity = product(x, tl.trans(y), PRECISION) * scale
    same = target_x[:, None] == target_y[None, :]
    barred = same & (place_x[:, None] != place_y[None, :])
    return tl.where(barred, float("-inf"), similarity)


@triton.jit(do_not_specialize=["users", "levels"])
def _forward_kernel(
    z_ptr, targets_ptr, order_ptr, starts_ptr, lse_ptr, losses_ptr, users, levels, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    level = tl.program_id(1)
    # starts[j] is the first place of depth j or more.
    first = tl.load(starts_ptr + level + 1)
    end = tl.load(starts_ptr + tl.minimum(2 * level + 2, levels))
    place = first + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    there = place < end
    user, target = _users(place, end, order_ptr, targets_ptr)
    x, _ = _unit(z_ptr, level, user, there, users, dims, D)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    positive = tl.zeros((ROWS,), tl.float32)
    # Nothing to compare where the tile holds no anchor.
    stop = tl.where(tl.max(there.to(tl.int32)) > 0, users, 0)
    for start in range(first.to(tl.int32), stop, COLUMNS):
        other = start + tl.arange(0, COLUMNS)
        rival, rival_target = _users(other, users, order_ptr, targets_ptr)
        y, _ = _unit(z_ptr, level + 1, rival, other < users, users, dims, D)
        logit = _similarity(x, y, place, other, target, rival_target, scale, PRECISION)
        logit = tl.where((other < users)[None, :], logit, float("-inf"))
        own = place[:, None] == other[None, :]
        positive += tl.sum(tl.where(own, logit, 0.0), 1)
        higher = tl.maximum(top, tl.max(logit, 1))
        # A user whose candidates were all barred so far has no maximum yet.
        level_of = tl.where(higher == float("-inf"), 0.0, higher)
        mass = mass * tl.exp(top - level_of) + tl.sum(tl.exp(logit - level_of[:, None]), 1)
        top = higher
    lse = top + tl.log(tl.where(there, mass, 1.0))
    tl.store(lse_ptr + users.to(tl.int64) * level + user, lse, mask=there)
    loss = tl.sum(tl.where(there, lse - positive, 0.0))
    tl.store(losses_ptr + level * tl.num_programs(0) + tl.program_id(0), loss)


@triton.jit(do_not_specialize=["users", "levels"])
def _backward_kernel(
    z_ptr, targets_ptr, order_ptr, starts_ptr, lse_ptr, share_ptr, d_z_ptr, users, levels, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    level = tl.program_id(1)
    reach = tl.load(starts_ptr + level)
    place = reach + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = place < users
    if tl.max(there.to(tl.int32)) == 0:
        return
    dims = tl.arange(0, BLOCK_D)
    user, target = _users(place, users, order_ptr, targets_ptr)
    x, norm = _unit(z_ptr, level, user, there, users, dims, D)
    d_x = tl.zeros((ROWS, BLOCK_D), tl.float32)
    if level + 1 < levels:
        # As anchors, against the candidates of the next level.
        first = tl.load(starts_ptr + level + 1)
        end = tl.load(starts_ptr + tl.minimum(2 * level + 2, levels))
        anchor = (place >= first) & (place < end)
        at_lse = users.to(tl.int64) * level + user
        lse = tl.load(lse_ptr + at_lse, mask=anchor, other=float("inf"))
        stop = tl.where(tl.max(anchor.to(tl.int32)) > 0, users, 0)
        for start in range(first.to(tl.int32), stop, COLUMNS):
            other = start + tl.arange(0, COLUMNS)
            rival, rival_target = _users(other, users, order_ptr, targets_ptr)
            y, _ = _unit(z_ptr, level + 1, rival, other < users, users, dims, D)
            logit = _similarity(x, y, place, other, target, rival_target, scale, PRECISION)
            slope = tl.exp(logit - lse[:, None])
            slope -= tl.where(anchor[:, None] & (place[:, None] == other[None, :]), 1.0, 0.0)
            d_x += product(tl.where((other < users)[None, :], slope, 0.0), y, PRECISION)
    if level > 0:
        # As candidates, of the anchors of the level before.
        end = tl.load(starts_ptr + tl.minimum(2 * level, levels))
        for start in range(reach.to(tl.int32), end.to(tl.int32), COLUMNS):
            other = start + tl.arange(0, COLUMNS)
            rival, rival_target = _users(other, end, order_ptr, targets_ptr)
            y, _ = _unit(z_ptr, level - 1, rival, other < end, users, dims, D)
            at_lse = users.to(tl.int64) * (level - 1) + rival
            lse = tl.load(lse_ptr + at_lse, mask=other < end, other=float("inf"))
            logit = _similarity(x, y, place, other, target, rival_target, scale, PRECISION)
            slope = tl.exp(logit - lse[None, :])
            own = (other < end)[None, :] & (place[:, None] == other[None, :])
            d_x += product(slope - tl.where(own, 1.0, 0.0), y, PRECISION)
    d_x *= tl.load(share_ptr) * scale
    # A vector too short to be normalised was only divided.
    along = tl.where(norm > SMALLEST, tl.sum(d_x * x, 1), 0.0)
    d_z = (d_x - along[:, None] * x) / norm[:, None]
    at = (users.to(tl.int64) * level + user)[:, None] * D + dims[None, :]
    tl.store(d_z_ptr + at, d_z, mask=there[:, None] & (dims < D)[None, :])


def _arguments(
    kernel: str, z: Tensor, depth: Tensor, targets: Tensor, temperature: float
) -> tuple[dict[str, Any], _heuristics.Tile]:
    levels, users, size = z.shape
    block = padded_size(size)
    ops = float32_operands()
    tile = _heuristics.tile(kernel, block, ops.kind, architecture(z.device))
    sorted_depth, order = torch.sort(depth, stable=True)
    every = torch.arange(levels + 1, device=z.device)
    return {
        "z_ptr": z, "targets_ptr": targets.contiguous(), "order_ptr": order,
        "starts_ptr": torch.searchsorted(sorted_depth, every),
        "users": users, "levels": levels, "scale": 1.0 / temperature,
        "D": size, "BLOCK_D": block, "ROWS": tile.rows, "COLUMNS": tile.chunk,
        "PRECISION": ops.precision,
    }, tile


def _pairs(depth: Tensor) -> Tensor:
    """How many pairs there are, at least 1, float32 on the device."""
    return (depth - depth // 2).sum().clamp(min=1).float()


def fwd(z: Tensor, depth: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """``level_infonce_fwd`` of the op's schema: the loss and lse ``[K-1, B]``, 0 without a pair."""
    z = z.contiguous()
    arguments, tile = _arguments("infonce_forward", z, depth, targets, temperature)
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
    arguments, tile = _arguments("infonce_backward", z, depth, targets, temperature)
    d_z = torch.empty_like(z)
    arguments |= {
        "lse_ptr": lse.contiguous(), "share_ptr": (grad_loss / _pairs(depth)).float(),
        "d_z_ptr": d_z,
    }
    grid = (triton.cdiv(z.shape[1], tile.rows), z.shape[0])
    launch(_backward_kernel, grid, arguments, tile.options)
    return d_z
