"""Eq. 7 to 11 on the (level, row) pairs that exist."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference.moe_aggregate import EPSILON
from ._common import existing_pairs, recompute


def _forward(
    fine: Tensor,
    coarse: Tensor,
    pooled: Tensor | None,
    depth: Tensor,
    level_mass: Tensor,
    router_w1: Tensor,
    router_level_bias: Tensor,
    router_w2: Tensor,
    router_b2: Tensor,
    gate_w: Tensor,
    gate_b: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    levels, rows, size = fine.shape
    wide = torch.promote_types(fine.dtype, torch.float32)
    pairs = existing_pairs(depth, levels, rows)
    level, row = pairs // max(rows, 1), pairs % max(rows, 1)
    # Pairs are level-major. Expanding rows keeps the gradient a plain sum, which indexing is not.
    counts = torch.bincount(level, minlength=levels).tolist()
    before = torch.cat(
        [row.expand(n, -1) for row, n in zip(router_level_bias, counts, strict=True)]
    )
    if pooled is not None:
        before = before + F.linear(pooled.flatten(0, 1)[pairs], router_w1)
    routed = torch.sigmoid(F.silu(before) @ router_w2 + router_b2).to(wide)  # Eq. 7
    mass = level_mass.flatten()[pairs].to(wide)

    def average(values: Tensor, weights: Tensor) -> Tensor:
        total = values.new_zeros(rows, size, dtype=wide).index_add(
            0, row, weights[:, None] * values.flatten(0, 1)[pairs].to(wide)
        )
        return total / (values.new_zeros(rows, dtype=wide).index_add(0, row, weights)
                        + EPSILON)[:, None]

    z_fine = average(fine, mass * routed)  # Eq. 8
    z_coarse = average(coarse, mass * (1 - routed))  # Eq. 9
    gate = torch.sigmoid(F.linear(z_coarse.to(gate_w.dtype), gate_w, gate_b))  # Eq. 10
    user = gate * z_fine + (1 - gate) * z_coarse  # Eq. 11
    gates = routed.new_zeros(levels * rows).index_copy(0, pairs, routed).view(levels, rows)
    return user.to(fine.dtype), gates, z_fine, z_coarse


def fwd(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``moe_aggregate_fwd`` of the op's schema."""
    with torch.no_grad():
        return _forward(*inputs)


def bwd(
    grad_user: Tensor, gates: Tensor, z_fine: Tensor, z_coarse: Tensor, *inputs: Any
) -> tuple[Tensor, ...]:
    """``moe_aggregate_bwd``: gradients of every input but depth; an empty one for no content."""
    content = inputs[2] is not None
    wanted = (0, 1, 2, *range(4, 11)) if content else (0, 1, *range(4, 11))
    found = recompute(_forward, inputs, wanted, (grad_user,))
    return found if content else (*found[:2], grad_user.new_empty(0), *found[2:])
