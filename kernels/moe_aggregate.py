"""``moe_aggregate`` in Triton: router, averages over ragged levels and the final gate (Eq. 7-11).

Forward: one kernel routes and averages a tile of rows over its levels, a second gates the two
averages. Backward: the gate's share, then the levels' (which also leaves the gradient of each
router logit), then partials of the weights' gradients, and their sums in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.moe_aggregate import EPSILON as _EPSILON
from . import _heuristics
from ._launch import Operands, architecture, launch, multiprocessors, operands, padded_size
from ._linear_weights import Linear, linear_weights
from ._mlp import activate, activate_and_slope, hidden_before, load_w1
from ._product import product
from ._reduce import Partials

EPSILON = tl.constexpr(_EPSILON)


@triton.jit
def _load_tile(ptr, at, mask):
    return tl.load(ptr + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["rows", "planes"])
def _average_kernel(
    fine_ptr, coarse_ptr, pooled_ptr, depth_ptr, mass_ptr, w1_ptr, bias_ptr, w2_ptr, b2_ptr,
    gates_ptr, z_fine_ptr, z_coarse_ptr, rows, planes,
    D: tl.constexpr, H: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, CONTENT: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    reach = tl.load(depth_ptr + row, mask=row < rows, other=-1).to(tl.int32) + 1
    deepest = tl.max(reach)
    dims = tl.arange(0, BLOCK_D)
    inside = (dims < D)[None, :]
    at = row[:, None] * D + dims[None, :]
    sum_fine = tl.zeros((ROWS, BLOCK_D), tl.float32)
    sum_coarse = tl.zeros((ROWS, BLOCK_D), tl.float32)
    mass_fine = tl.zeros((ROWS,), tl.float32)
    mass_coarse = tl.zeros((ROWS,), tl.float32)
    b2 = tl.load(b2_ptr).to(tl.float32)
    for plane in range(0, planes):
        gate = tl.zeros((ROWS,), tl.float32)
        at_row = rows.to(tl.int64) * plane + row
        if plane < deepest:
            reached = reach > plane
            mask = reached[:, None] & inside
            at_plane = rows.to(tl.int64) * D * plane + at
            logit = tl.zeros((ROWS,), tl.float32) + b2
            if CONTENT:
                pooled = tl.load(pooled_ptr + at_plane, mask=mask, other=0.0).to(OPERAND)
            for start in range(0, H, CHUNK):
                hidden = start + tl.arange(0, CHUNK)
                if CONTENT:
                    w1 = load_w1(w1_ptr, hidden, dims, H, D, OPERAND)
                    before = hidden_before(pooled, w1, bias_ptr + plane * H, hidden, H, PRECISION)
                else:
                    bias = _load_tile(bias_ptr, plane * H + hidden, hidden < H)
                    before = tl.zeros((ROWS, CHUNK), tl.float32) + bias[None, :]
                w2 = _load_tile(w2_ptr, hidden, hidden < H)
                logit += tl.sum(activate(before, False) * w2[None, :], 1)
            gate = tl.where(reached, tl.sigmoid(logit), 0.0)
            mass = _load_tile(mass_ptr, at_row, reached)
            to_fine, to_coarse = mass * gate, mass * (1.0 - gate)
            mass_fine += to_fine
            mass_coarse += to_coarse
            sum_fine += to_fine[:, None] * _load_tile(fine_ptr, at_plane, mask)
            sum_coarse += to_coarse[:, None] * _load_tile(coarse_ptr, at_plane, mask)
        tl.store(gates_ptr + at_row, gate, mask=row < rows)
    mask = (row < rows)[:, None] & inside
    tl.store(z_fine_ptr + at, sum_fine / (mass_fine + EPSILON)[:, None], mask=mask)
    tl.store(z_coarse_ptr + at, sum_coarse / (mass_coarse + EPSILON)[:, None], mask=mask)


@triton.jit
def _gate(z_coarse, gate_w_ptr, gate_b_ptr, out, dims, D: tl.constexpr, OPERAND: tl.constexpr,
          PRECISION: tl.constexpr):
    """Eq. 10 for the dimensions ``out``."""
    w = load_w1(gate_w_ptr, out, dims, D, D, OPERAND)
    return tl.sigmoid(hidden_before(z_coarse, w, gate_b_ptr, out, D, PRECISION))


@triton.jit(do_not_specialize=["rows"])
def _fuse_kernel(
    z_fine_ptr, z_coarse_ptr, gate_w_ptr, gate_b_ptr, user_ptr, rows,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    out = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    real = (row < rows)[:, None]
    at = row[:, None] * D + dims[None, :]
    z_coarse = tl.load(z_coarse_ptr + at, mask=real & (dims < D)[None, :], other=0.0).to(OPERAND)
    gate = _gate(z_coarse, gate_w_ptr, gate_b_ptr, out, dims, D, OPERAND, PRECISION)
    at_out = row[:, None] * D + out[None, :]
    mask = real & (out < D)[None, :]
    fine = _load_tile(z_fine_ptr, at_out, mask)
    coarse = _load_tile(z_coarse_ptr, at_out, mask)
    tl.store(user_ptr + at_out, gate * fine + (1.0 - gate) * coarse, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _fuse_backward_kernel(
    grad_ptr, z_fine_ptr, z_coarse_ptr, gate_w_ptr, gate_b_ptr, d_z_fine_ptr, d_through_ptr,
    d_before_ptr, rows,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    real = (row < rows)[:, None]
    at = row[:, None] * D + dims[None, :]
    whole = real & (dims < D)[None, :]
    z_coarse = tl.load(z_coarse_ptr + at, mask=whole, other=0.0).to(OPERAND)
    d_through = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(0, D, CHUNK):
        out = start + tl.arange(0, CHUNK)
        gate = _gate(z_coarse, gate_w_ptr, gate_b_ptr, out, dims, D, OPERAND, PRECISION)
        at_out = row[:, None] * D + out[None, :]
        mask = real & (out < D)[None, :]
        grad = _load_tile(grad_ptr, at_out, mask)
        apart = _load_tile(z_fine_ptr, at_out, mask) - _load_tile(z_coarse_ptr, at_out, mask)
        d_before = grad * apart * gate * (1.0 - gate)
        tl.store(d_z_fine_ptr + at_out, grad * gate, mask=mask)
        tl.store(d_before_ptr + at_out, d_before, mask=mask)
        w = load_w1(gate_w_ptr, out, dims, D, D, OPERAND)
        d_through += product(d_before.to(OPERAND), tl.trans(w), PRECISION)
    tl.store(d_through_ptr + at, d_through, mask=whole)


@triton.jit(do_not_specialize=["rows", "planes"])
def _levels_backward_kernel(
    grad_ptr, d_z_fine_ptr, d_through_ptr, gates_ptr, z_fine_ptr, z_coarse_ptr, fine_ptr,
    coarse_ptr, depth_ptr, mass_ptr, d_fine_ptr, d_coarse_ptr, d_mass_ptr, d_logit_ptr,
    rows, planes,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    reach = tl.load(depth_ptr + row, mask=real, other=-1).to(tl.int32) + 1
    deepest = tl.max(reach)
    dims = tl.arange(0, BLOCK_D)
    inside = (dims < D)[None, :]
    at = row[:, None] * D + dims[None, :]
    mass_fine = tl.zeros((ROWS,), tl.float32) + EPSILON
    mass_coarse = tl.zeros((ROWS,), tl.float32) + EPSILON
    for plane in range(0, deepest):
        at_row = rows.to(tl.int64) * plane + row
        gate = _load_tile(gates_ptr, at_row, reach > plane)
        mass = _load_tile(mass_ptr, at_row, reach > plane)
        mass_fine += mass * gate
        mass_coarse += mass * (1.0 - gate)
    whole = real[:, None] & inside
    d_z_fine = _load_tile(d_z_fine_ptr, at, whole)
    # h = gate z_fine + (1 - gate) z_coarse: the direct part, and the part through the gate.
    d_z_coarse = _load_tile(grad_ptr, at, whole) - d_z_fine + _load_tile(d_through_ptr, at, whole)
    d_z_fine /= mass_fine[:, None]
    d_z_coarse /= mass_coarse[:, None]
    own_fine = tl.sum(d_z_fine * _load_tile(z_fine_ptr, at, whole), 1)
    own_coarse = tl.sum(d_z_coarse * _load_tile(z_coarse_ptr, at, whole), 1)
    for plane in range(0, planes):
        at_row = rows.to(tl.int64) * plane + row
        d_mass = tl.zeros((ROWS,), tl.float32)
        d_logit = tl.zeros((ROWS,), tl.float32)
        if plane < deepest:
            reached = reach > plane
            mask = reached[:, None] & inside
            at_plane = rows.to(tl.int64) * D * plane + at
            gate = _load_tile(gates_ptr, at_row, reached)
            mass = _load_tile(mass_ptr, at_row, reached)
            to_fine = tl.sum(d_z_fine * _load_tile(fine_ptr, at_plane, mask), 1) - own_fine
            to_coarse = tl.sum(d_z_coarse * _load_tile(coarse_ptr, at_plane, mask), 1) - own_coarse
            d_mass = tl.where(reached, gate * to_fine + (1.0 - gate) * to_coarse, 0.0)
            d_logit = mass * (to_fine - to_coarse) * gate * (1.0 - gate)
            tl.store(d_fine_ptr + at_plane, (mass * gate)[:, None] * d_z_fine, mask=mask)
            tl.store(d_coarse_ptr + at_plane, (mass * (1.0 - gate))[:, None] * d_z_coarse,
                     mask=mask)
        tl.store(d_mass_ptr + at_row, d_mass, mask=real)
        tl.store(d_logit_ptr + at_row, d_logit, mask=real)


@triton.jit(do_not_specialize=["rows"])
def _pooled_backward_kernel(
    pooled_ptr, depth_ptr, d_logit_ptr, w1_ptr, bias_ptr, w2_ptr, d_pooled_ptr, rows,
    D: tl.constexpr, H: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    plane = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    reached = tl.load(depth_ptr + row, mask=row < rows, other=-1) >= plane
    if tl.max(reached.to(tl.int32)) == 0:
        return
    dims = tl.arange(0, BLOCK_D)
    mask = reached[:, None] & (dims < D)[None, :]
    at = (rows.to(tl.int64) * plane + row)[:, None] * D + dims[None, :]
    pooled = tl.load(pooled_ptr + at, mask=mask, other=0.0).to(OPERAND)
    d_logit = _load_tile(d_logit_ptr, rows.to(tl.int64) * plane + row, reached)
    d_pooled = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(0, H, CHUNK):
        hidden = start + tl.arange(0, CHUNK)
        w1 = load_w1(w1_ptr, hidden, dims, H, D, OPERAND)
        before = hidden_before(pooled, w1, bias_ptr + plane * H, hidden, H, PRECISION)
        _, slope = activate_and_slope(before, False)
        w2 = _load_tile(w2_ptr, hidden, hidden < H)
        d_before = (d_logit[:, None] * w2[None, :] * slope).to(OPERAND)
        d_pooled += product(d_before, tl.trans(w1), PRECISION)
    tl.store(d_pooled_ptr + at, d_pooled, mask=mask)


@triton.jit(do_not_specialize=["rows", "planes"])
def _router_weights_kernel(
    pooled_ptr, depth_ptr, d_logit_ptr, w1_ptr, bias_ptr, w2_ptr, d_w1_ptr, d_bias_ptr, d_w2_ptr,
    d_b2_ptr, rows, planes,
    D: tl.constexpr, H: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, CONTENT: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    slot = tl.program_id(0)
    hidden = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    dims = tl.arange(0, BLOCK_D)
    w2 = _load_tile(w2_ptr, hidden, hidden < H)
    d_w1 = tl.zeros((CHUNK, BLOCK_D), tl.float32)
    d_w2 = tl.zeros((CHUNK,), tl.float32)
    d_b2 = tl.zeros((ROWS,), tl.float32)
    for plane in range(0, planes):
        d_bias = tl.zeros((CHUNK,), tl.float32)
        bias_row = bias_ptr + plane * H
        for tile in range(slot, tl.cdiv(rows, ROWS), tl.num_programs(0)):
            row = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
            reached = tl.load(depth_ptr + row, mask=row < rows, other=-1) >= plane
            if tl.max(reached.to(tl.int32)) > 0:
                d_logit = _load_tile(d_logit_ptr, rows.to(tl.int64) * plane + row, reached)
                d_b2 += d_logit
                if CONTENT:
                    at = (rows.to(tl.int64) * plane + row)[:, None] * D + dims[None, :]
                    mask = reached[:, None] & (dims < D)[None, :]
                    pooled = tl.load(pooled_ptr + at, mask=mask, other=0.0).to(OPERAND)
                    w1 = load_w1(w1_ptr, hidden, dims, H, D, OPERAND)
                    before = hidden_before(pooled, w1, bias_row, hidden, H, PRECISION)
                else:
                    bias = _load_tile(bias_row, hidden, hidden < H)
                    before = tl.zeros((ROWS, CHUNK), tl.float32) + bias[None, :]
                after, slope = activate_and_slope(before, False)
                d_w2 += tl.sum(d_logit[:, None] * after, 0)
                d_before = d_logit[:, None] * w2[None, :] * slope
                d_bias += tl.sum(d_before, 0)
                if CONTENT:
                    d_w1 += product(tl.trans(d_before.to(OPERAND)), pooled, PRECISION)
        at_bias = (slot.to(tl.int64) * planes + plane) * H + hidden
        tl.store(d_bias_ptr + at_bias, d_bias, mask=hidden < H)
    at_w1 = (slot.to(tl.int64) * H + hidden)[:, None] * D + dims[None, :]
    tl.store(d_w1_ptr + at_w1, d_w1, mask=(hidden < H)[:, None] & (dims < D)[None, :])
    tl.store(d_w2_ptr + slot * H + hidden, d_w2, mask=hidden < H)
    if tl.program_id(1) == 0:
        tl.store(d_b2_ptr + slot, tl.sum(d_b2, 0))


def _shape(fine: Tensor, router_w1: Tensor, ops: Operands) -> tuple[dict[str, Any], Any]:
    planes, rows, size = fine.shape
    block = padded_size(size)
    tile = _heuristics.tile("moe", block, ops.kind, architecture(fine.device), rows)
    return {
        "rows": rows, "planes": planes, "D": size, "H": router_w1.shape[0], "BLOCK_D": block,
        "ROWS": tile.rows, "CHUNK": tile.chunk, "OPERAND": ops.dtype, "PRECISION": ops.precision,
    }, tile


def _only(kernel: Any, **arguments: Any) -> dict[str, Any]:
    return {name: arguments[name] for name in kernel.arg_names}


def fwd(
    fine: Tensor, coarse: Tensor, pooled: Tensor | None, depth: Tensor, level_mass: Tensor,
    router_w1: Tensor, router_level_bias: Tensor, router_w2: Tensor, router_b2: Tensor,
    gate_w: Tensor, gate_b: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``moe_aggregate_fwd`` of the op's schema: h, g, z_fin and z_coar."""
    fine, coarse, level_mass, router_w1, router_level_bias, gate_w = (
        t.contiguous()
        for t in (fine, coarse, level_mass, router_w1, router_level_bias, gate_w)
    )
    shape, tile = _shape(fine, router_w1, operands(fine))
    planes, rows, size = fine.shape
    gates = fine.new_empty(planes, rows, dtype=torch.float32)
    z_fine = fine.new_empty(rows, size, dtype=torch.float32)
    z_coarse = torch.empty_like(z_fine)
    user = fine.new_empty(rows, size)
    tiles = triton.cdiv(rows, tile.rows)
    arguments = {
        "fine_ptr": fine, "coarse_ptr": coarse, "depth_ptr": depth, "mass_ptr": level_mass,
        "pooled_ptr": None if pooled is None else pooled.contiguous(),
        "w1_ptr": router_w1, "bias_ptr": router_level_bias, "w2_ptr": router_w2,
        "b2_ptr": router_b2, "gate_w_ptr": gate_w, "gate_b_ptr": gate_b, "gates_ptr": gates,
        "z_fine_ptr": z_fine, "z_coarse_ptr": z_coarse, "user_ptr": user,
        "CONTENT": pooled is not None, **shape,
    }
    launch(_average_kernel, (tiles,), _only(_average_kernel, **arguments), tile.options)
    grid = (tiles, triton.cdiv(size, tile.chunk))
    launch(_fuse_kernel, grid, _only(_fuse_kernel, **arguments), tile.options)
    return user, gates, z_fine, z_coarse


def bwd(
    grad_user: Tensor, gates: Tensor, z_fine: Tensor, z_coarse: Tensor, fine: Tensor,
    coarse: Tensor, pooled: Tensor | None, depth: Tensor, level_mass: Tensor, router_w1: Tensor,
    router_level_bias: Tensor, router_w2: Tensor, router_b2: Tensor, gate_w: Tensor,
    gate_b: Tensor,
) -> tuple[Tensor, ...]:
    """``moe_aggregate_bwd``: gradients of fine, coarse, pooled, level_mass and the parameters."""
    fine, coarse, level_mass, router_w1, router_level_bias, gate_w, grad_user = (
        t.contiguous()
        for t in (fine, coarse, level_mass, router_w1, router_level_bias, gate_w, grad_user)
    )
    ops = operands(fine)
    shape, tile = _shape(fine, router_w1, ops)
    planes, rows, size = fine.shape
    hidden = router_w1.shape[0]
    wide = {"dtype": torch.float32, "device": fine.device}
    tiles = triton.cdiv(rows, tile.rows)
    of_weights = _heuristics.tile(
        "moe_weights", shape["BLOCK_D"], ops.kind, architecture(fine.device), rows
    )
    chunks = triton.cdiv(hidden, of_weights.chunk)
    slots = min(
        max(1, triton.cdiv(rows, of_weights.rows)),
        max(2, triton.cdiv(multiprocessors(fine.device), chunks)),
    )
    d_fine, d_coarse = torch.empty_like(fine), torch.empty_like(coarse)
    pooled = None if pooled is None else pooled.contiguous()
    d_pooled = fine.new_empty(0) if pooled is None else torch.empty_like(pooled)
    d_mass = torch.empty_like(level_mass)
    d_logit = torch.empty(planes, rows, **wide)
    d_z_fine, d_through, d_before = (torch.empty(rows, size, **wide) for _ in range(3))
    parts = Partials()
    common = {
        "grad_ptr": grad_user, "gates_ptr": gates, "z_fine_ptr": z_fine,
        "z_coarse_ptr": z_coarse, "fine_ptr": fine, "coarse_ptr": coarse,
        "pooled_ptr": pooled, "depth_ptr": depth, "mass_ptr": level_mass,
        "w1_ptr": router_w1, "bias_ptr": router_level_bias, "w2_ptr": router_w2,
        "gate_w_ptr": gate_w, "gate_b_ptr": gate_b,
        "d_through_ptr": d_through, "d_before_ptr": d_before, "d_logit_ptr": d_logit,
        "d_fine_ptr": d_fine, "d_coarse_ptr": d_coarse, "d_mass_ptr": d_mass,
        "d_pooled_ptr": d_pooled, "d_w1_ptr": parts.new(router_w1, slots),
        "d_bias_ptr": parts.new(router_level_bias, slots),
        "d_w2_ptr": parts.new(router_w2, slots), "d_b2_ptr": parts.new(router_b2, slots),
        "d_z_fine_ptr": d_z_fine, "CONTENT": pooled is not None, **shape,
    }

    def run(kernel: Any, *grid: int, tile: _heuristics.Tile = tile) -> None:
        given = {**common, "ROWS": tile.rows, "CHUNK": tile.chunk}
        launch(kernel, grid, _only(kernel, **given), tile.options)

    run(_fuse_backward_kernel, tiles)
    run(_levels_backward_kernel, tiles)
    if pooled is not None:
        run(_pooled_backward_kernel, tiles, planes)
    run(_router_weights_kernel, slots, chunks, tile=of_weights)
    # A row that does not exist has zeros in both.
    gate = Linear(z_coarse[None], d_before[None], gate_w, gate_b)
    linear_weights([gate], None, None, ops, parts)
    return (
        d_fine, d_coarse, d_pooled, d_mass,
        *parts.sum(router_w1, router_level_bias, router_w2, router_b2, gate_w, gate_b),
    )
