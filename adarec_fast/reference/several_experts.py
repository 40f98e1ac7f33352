"""HP-MoE with any number of experts, of which Eq. 6 to 11 are the case of two.

The experts e = 0..N-1 go from the fine one to the coarsest.

* Every expert reads every level k <= T_u, as both do in Eq. 8 and 9. How much of a level counts for
  which is a softmax over the experts; the sigmoid of Eq. 7 is that of two of them, the coarsest
  one's logit being 0.
* The levels of a user are divided into N groups: that of e are the pairs of levels k, k+1 for
  k = floor(e T_u / N) .. floor((e + 1) T_u / N) - 1. Each expert but the fine one is contrasted
  over its own; in Eq. 6 k = floor(T_u / 2) .. T_u - 1 is the group e = 1 of two.
* The final gate is a softmax over the experts, a dimension at a time, by what all but the fine one
  found, as in Eq. 10.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .moe_aggregate import EPSILON


def level_group(depth: Tensor, expert: int, experts: int) -> tuple[Tensor, Tensor]:
    """Of Eq. 6's pairs of levels k, k+1 those of an expert: the first k, and the first behind them.

    Args:
        depth: int64, T_u.
        expert: 0..experts-1; 0 is the fine one, whose pairs nothing is contrasted over.
        experts: N.
    """
    return expert * depth // experts, (expert + 1) * depth // experts


def shares(logits: Tensor) -> Tensor:
    """Softmax over N experts of the logits of all but the last, which has 0.

    Args:
        logits: ``[N-1, ...]``.

    Returns:
        ``[N, ...]``, of sum 1 over the experts.
    """
    return torch.softmax(torch.cat([logits, torch.zeros_like(logits[:1])]), 0)


def several_experts(
    outputs: Tensor,
    pooled: Tensor | None,
    reached: Tensor,
    level_mass: Tensor,
    router_w1: Tensor,
    router_level_bias: Tensor,
    router_w2: Tensor,
    router_b2: Tensor,
    gate_w: Tensor,
    gate_b: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Route every level to the experts, average each over the levels, gate the averages.

    Args:
        outputs: ``[N, K, R, D]``, of the experts, for R rows at K = T+1 levels.
        pooled: ``[K, R, D]``, Pool of every level; None: the router sees the level alone.
        reached: bool ``[K, R]``, levels that exist for a row.
        level_mass: ``[K, R]``, m_k.
        router_w1: ``[H, D]``; router_level_bias: ``[K, H]``.
        router_w2, router_b2: ``[N-1, H]``, ``[N-1]``.
        gate_w, gate_b: ``[(N-1) D, (N-1) D]``, ``[(N-1) D]``.

    Returns:
        h ``[R, D]``, g ``[N, K, R]`` (zero at levels not reached) and z ``[N, R, D]``.
    """
    before = router_level_bias[:, None].expand(-1, outputs.shape[2], -1)
    if pooled is not None:
        before = before + F.linear(pooled, router_w1)
    routed = shares(F.linear(F.silu(before), router_w2, router_b2).movedim(-1, 0))  # Eq. 7
    mass = torch.where(reached, level_mass, torch.zeros_like(level_mass))
    weight = mass * routed
    kept = torch.where(reached[..., None], outputs, torch.zeros_like(outputs))
    z = (weight[..., None] * kept).sum(1) / (weight.sum(1) + EPSILON)[..., None]  # Eq. 8, 9
    user = gated(z, gate_w, gate_b)
    return user, torch.where(reached, routed, torch.zeros_like(routed)), z


def gated(z: Tensor, gate_w: Tensor, gate_b: Tensor) -> Tensor:
    """Eq. 10 and 11: h ``[R, D]`` of the experts' averages ``[N, R, D]``."""
    experts, rows, size = z.shape
    coarse = z[1:].movedim(0, 1).reshape(rows, (experts - 1) * size).to(gate_w.dtype)
    logits = F.linear(coarse, gate_w, gate_b).view(rows, experts - 1, size)
    return (shares(logits.movedim(1, 0)) * z).sum(0)
