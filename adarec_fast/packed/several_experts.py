"""HP-MoE with any number of experts on the (level, row) pairs that exist."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference.moe_aggregate import EPSILON
from ..reference.several_experts import gated, shares
from ._common import existing_pairs


def several_experts(
    outputs: Tensor,
    pooled: Tensor | None,
    depth: Tensor,
    level_mass: Tensor,
    router_w1: Tensor,
    router_level_bias: Tensor,
    router_w2: Tensor,
    router_b2: Tensor,
    gate_w: Tensor,
    gate_b: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`adarec_fast.reference.several_experts.several_experts` of rows of a depth int64
    ``[R]``; levels beyond are not read, and a row of depth -1 is 0.
    """
    experts, levels, rows, size = outputs.shape
    wide = torch.promote_types(outputs.dtype, torch.float32)
    pairs = existing_pairs(depth, levels, rows)
    level, row = pairs // max(rows, 1), pairs % max(rows, 1)
    before = router_level_bias.index_select(0, level)
    if pooled is not None:
        before = before + F.linear(pooled.flatten(0, 1).index_select(0, pairs), router_w1)
    logits = F.linear(F.silu(before), router_w2, router_b2)
    routed = shares(logits.T).to(wide)  # Eq. 7
    weight = level_mass.flatten()[pairs].to(wide) * routed
    found = weight[..., None] * outputs.flatten(1, 2).index_select(1, pairs).to(wide)
    total = found.new_zeros(experts, rows, size).index_add(1, row, found)
    z = total / (weight.new_zeros(experts, rows).index_add(1, row, weight) + EPSILON)[..., None]
    gates = routed.new_zeros(experts, levels * rows).index_copy(1, pairs, routed)
    user = gated(z, gate_w, gate_b).to(outputs.dtype)
    return user, gates.view(experts, levels, rows), z
