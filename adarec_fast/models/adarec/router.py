"""Content-aware routing and gated fusion (Eq. 7-11)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import ops, ragged


class Router(nn.Module):
    """g_k = sigmoid(MLP([Pool; emb(k)])), averages over the levels, final gate.

    Args:
        size: D, also the router's hidden size.
        content: False leaves the router with the level embedding alone (Table 4's ablation).
        experts: N; of more than two, router and gate have outputs for all but one of them (see
            :mod:`adarec_fast.reference.several_experts`).
    """

    def __init__(self, size: int, *, content: bool, experts: int = 2) -> None:
        super().__init__()
        self.content = content
        routed = (size,) if experts == 2 else (experts - 1, size)
        self.router_w1: Tensor
        if content:
            self.router_w1 = nn.Parameter(torch.empty(size, size, dtype=torch.float32))
        else:
            # The op takes one all the same, and does not read it.
            nothing = torch.zeros(size, size, dtype=torch.float32)
            self.register_buffer("router_w1", nothing, persistent=False)
        self.level_w1 = nn.Parameter(torch.empty(size, size, dtype=torch.float32))
        self.b1 = nn.Parameter(torch.empty(size, dtype=torch.float32))
        self.router_w2 = nn.Parameter(torch.empty(routed, dtype=torch.float32))
        self.b2 = nn.Parameter(torch.empty(experts - 1, dtype=torch.float32))
        width = (experts - 1) * size
        self.gate = nn.Linear(width, width, dtype=torch.float32)

    def forward(
        self,
        fine: Tensor,
        coarse: Tensor,
        pooled: Tensor | None,
        depth: Tensor,
        level_mass: Tensor,
        level_embedding: Tensor,
        *,
        level_bias: Tensor | None = None,
        backend: str,
    ) -> ops.Aggregate:
        """See :func:`ops.moe_aggregate`; ``level_embedding`` is ``[T+1, D]``, ``level_bias`` what
        follows from it, if that is known.
        """
        return ops.moe_aggregate(
            fine, coarse, pooled if self.content else None, depth, level_mass,
            *self.weights(level_embedding, level_bias), backend=backend,
        )

    def weights(
        self, level_embedding: Tensor, level_bias: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The parameters in the op's order, emb(k)'s part of the router as a bias a level."""
        if level_bias is None:
            level_bias = F.linear(level_embedding, self.level_w1, self.b1).to(self.b1.dtype)
        return (
            self.router_w1, level_bias, self.router_w2, self.b2, self.gate.weight, self.gate.bias
        )


def without_experts(x0: Tensor, depth: Tensor, level_mass: Tensor, readout: str) -> Tensor:
    """Table 4's variant without HP-MoE: the ``"mean"`` of the levels k <= depth, weighted by m_k,
    or the ``"deepest"``, weighted by y_k = m_k - m_{k+1}, 0 but at the depth itself.

    Args:
        x0: ``[K, R, D]``; levels beyond a depth are not read.
        depth: int64 ``[R]``.
        level_mass: ``[K, R]``.
        readout: ``"mean"`` or ``"deepest"``.

    Returns:
        ``[R, D]``.
    """
    reached = ragged.reached_levels(depth, x0.shape[0])
    weight = torch.where(reached, level_mass, torch.zeros_like(level_mass))[..., None]
    kept = torch.where(reached[..., None], x0, torch.zeros_like(x0))
    if readout == "deepest":
        return ((weight - F.pad(weight[1:], (0, 0, 0, 0, 0, 1))) * kept).sum(0)
    return (weight * kept).sum(0) / weight.sum(0)
