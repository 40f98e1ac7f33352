"""``epoch_statistics`` in Triton: one program, float64 sums; the launch is all it takes.

Depths are counted by comparing with every level, which adds whole numbers and so has no order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch

USERS = 512  # that are counted at once


@triton.jit
def _finite(value):
    """False for infinities and nan."""
    return tl.abs(value) < float("inf")


@triton.jit
def _add(place, value_ptr, weight, sums_ptr):
    """Add a value to its sum; 1 if it is not finite."""
    value = tl.load(value_ptr).to(tl.float64)
    at = sums_ptr + place
    tl.store(at, tl.load(at) + value * weight)
    return tl.where(_finite(value), 0, 1)


@triton.jit(do_not_specialize=["users", "number"])
def _add_kernel(
    sums_ptr, bad_step_ptr, bad_parts_ptr, rec_ptr, deno_ptr, cont_ptr, expl_ptr, total_ptr,
    norm_ptr, entropy_ptr, error_ptr, depth_ptr, gate_ptr, step_ptr, found_ptr, users, number,
    LEVELS: tl.constexpr, BLOCK_K: tl.constexpr, USERS: tl.constexpr,
):
    weight = users.to(tl.float64)
    bad0 = _add(0, rec_ptr, weight, sums_ptr)
    bad1 = _add(1, deno_ptr, weight, sums_ptr)
    bad2 = _add(2, cont_ptr, weight, sums_ptr)
    bad3 = _add(3, expl_ptr, weight, sums_ptr)
    bad4 = _add(4, total_ptr, weight, sums_ptr)
    bad5 = _add(5, norm_ptr, weight, sums_ptr)
    _add(6, entropy_ptr, weight, sums_ptr)
    _add(7, error_ptr, weight, sums_ptr)
    known = tl.load(bad_step_ptr)
    found = (known >= 0).to(tl.int32)
    any_bad = bad0 | bad1 | bad2 | bad3 | bad4 | bad5
    if (found == 0) & (any_bad != 0):
        if step_ptr is not None:
            step = tl.load(step_ptr)
        else:
            step = number.to(tl.int64)
        tl.store(bad_step_ptr, step)
        tl.store(bad_parts_ptr, bad0.to(tl.uint8))
        tl.store(bad_parts_ptr + 1, bad1.to(tl.uint8))
        tl.store(bad_parts_ptr + 2, bad2.to(tl.uint8))
        tl.store(bad_parts_ptr + 3, bad3.to(tl.uint8))
        tl.store(bad_parts_ptr + 4, bad4.to(tl.uint8))
        tl.store(bad_parts_ptr + 5, bad5.to(tl.uint8))
    tl.store(found_ptr, (found | any_bad).to(tl.float32))

    level = tl.arange(0, BLOCK_K)
    at_depth = tl.zeros((BLOCK_K,), tl.int32)
    reach = tl.zeros((BLOCK_K,), tl.int32)
    for start in range(0, users, USERS):
        user = start + tl.arange(0, USERS)
        depth = tl.load(depth_ptr + user, mask=user < users, other=-1)
        at_depth += tl.sum((depth[:, None] == level[None, :]).to(tl.int32), 0)
        # An example reaches its depth and every level before it.
        reach += tl.sum((depth[:, None] >= level[None, :]).to(tl.int32), 0)
    inside = level < LEVELS
    gate = tl.load(gate_ptr + level, mask=inside, other=0.0).to(tl.float64)
    finite = _finite(gate)
    reached = tl.where(finite, reach.to(tl.float64), 0.0)
    at = sums_ptr + 8 + level
    tl.store(at, tl.load(at, mask=inside, other=0.0) + at_depth.to(tl.float64), mask=inside)
    at += LEVELS
    gate = tl.where(finite, gate, 0.0) * reached
    tl.store(at, tl.load(at, mask=inside, other=0.0) + gate, mask=inside)
    at += LEVELS
    tl.store(at, tl.load(at, mask=inside, other=0.0) + reached, mask=inside)


def fwd(
    sums: Tensor, bad_step: Tensor, bad_parts: Tensor, rec: Tensor, deno: Tensor, cont: Tensor,
    expl: Tensor, total: Tensor, norm: Tensor, entropy: Tensor, error: Tensor, depth: Tensor,
    gate: Tensor, step: Tensor | None, number: int,
) -> Tensor:
    """``epoch_statistics_fwd`` of the op's schema."""
    found = torch.empty((), dtype=torch.float32, device=sums.device)
    launch(_add_kernel, (1,), {
        "sums_ptr": sums, "bad_step_ptr": bad_step, "bad_parts_ptr": bad_parts.view(torch.uint8),
        "rec_ptr": rec, "deno_ptr": deno, "cont_ptr": cont, "expl_ptr": expl, "total_ptr": total,
        "norm_ptr": norm, "entropy_ptr": entropy, "error_ptr": error,
        "depth_ptr": depth.contiguous(), "gate_ptr": gate.contiguous(), "step_ptr": step,
        "found_ptr": found, "users": depth.shape[0], "number": number, "LEVELS": gate.shape[0],
        "BLOCK_K": triton.next_power_of_2(max(gate.shape[0], 2)), "USERS": USERS,
    }, {"num_warps": 8})
    return found
