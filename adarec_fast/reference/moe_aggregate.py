"""HP-MoE's routing and gated fusion, Eq. 7 to 11."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-8


def moe_aggregate(
    fine: Tensor,
    coarse: Tensor,
    pooled: Tensor | None,
    reached: Tensor,
    level_mass: Tensor,
    router_w1: Tensor,
    router_level_bias: Tensor,
    router_w2: Tensor,
    router_b2: Tensor,
    gate_w: Tensor,
    gate_b: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Route every level, average both experts over the levels, gate the two averages.

    The router is MLP([Pool; emb(k)]) with one hidden SiLU layer; the part of its first weight that
    meets emb(k) arrives folded with the bias into ``router_level_bias``.

    Args:
        fine, coarse: ``[K, R, D]``, expert outputs of R rows (read-outs) at K = T+1 levels.
        pooled: ``[K, R, D]``, Pool of every level; None: the router sees the level alone.
        reached: bool ``[K, R]``, levels that exist for a row.
        level_mass: ``[K, R]``, m_k, 1 in value at every reached level when the depth is hard.
        router_w1: ``[H, D]``.
        router_level_bias: ``[K, H]``.
        router_w2, router_b2: ``[H]``, ``[1]``.
        gate_w, gate_b: ``[D, D]``, ``[D]``.

    Returns:
        h ``[R, D]`` (Eq. 11), g ``[K, R]`` (Eq. 7, zero at levels not reached), z_fin and z_coar
        ``[R, D]`` (Eq. 8, 9).
    """
    before = router_level_bias[:, None].expand(-1, fine.shape[1], -1)
    if pooled is not None:
        before = before + F.linear(pooled, router_w1)
    routed = torch.sigmoid(F.silu(before) @ router_w2 + router_b2)  # Eq. 7
    mass = torch.where(reached, level_mass, torch.zeros_like(level_mass))
    to_fine, to_coarse = mass * routed, mass * (1 - routed)
    fine = torch.where(reached[..., None], fine, torch.zeros_like(fine))
    coarse = torch.where(reached[..., None], coarse, torch.zeros_like(coarse))
    z_fine = (to_fine[..., None] * fine).sum(0) / (to_fine.sum(0) + EPSILON)[:, None]  # Eq. 8
    z_coarse = (to_coarse[..., None] * coarse).sum(0) / (to_coarse.sum(0) + EPSILON)[:, None]  # 9
    gate = torch.sigmoid(F.linear(z_coarse, gate_w, gate_b))  # Eq. 10
    fused = gate * z_fine + (1 - gate) * z_coarse  # Eq. 11
    return fused, torch.where(reached, routed, torch.zeros_like(routed)), z_fine, z_coarse
