"""Eq. 12 of packed tokens: nothing is padded in the reference, so it is the reference's code."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ragged
from ..reference.objective import objective


def fwd(
    rec: Tensor, cont: Tensor | None, error: Tensor | None, offsets: Tensor, computed: Tensor,
    logits: Tensor | None, gates: Tensor | None, row_depth: Tensor, levels: int, size: int,
    deno_weight: float, cont_weight: float, expl_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``objective_fwd`` of the op's schema."""
    weights = deno_weight, cont_weight, expl_weight
    with torch.no_grad():
        total, *parts, gate = objective(
            rec, cont, error, offsets, computed, logits, gates, row_depth, levels, size, weights
        )
        count = ((ragged.lengths(offsets) * computed).sum() * size).clamp(min=1)
        wide = torch.promote_types(rec.dtype, torch.float32)
        parts = [part.to(rec.dtype) for part in parts]
        return total.to(rec.dtype), torch.stack(parts), gate.to(rec.dtype), count.to(wide)


def bwd(
    grad: Tensor, count: Tensor, offsets: Tensor, logits: Tensor | None, tokens: int,
    deno_weight: float, cont_weight: float, expl_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``objective_bwd``: the gradients of cont, error and logits."""
    real = torch.arange(tokens, device=grad.device) < offsets[-1]
    d_error = torch.where(real, deno_weight * grad / count, 0.0).to(grad.dtype)
    d_logits = grad.new_empty(0)
    if logits is not None:
        logarithms = torch.log_softmax(logits, -1)
        mass = logarithms.exp()
        slope = mass * (logarithms - (mass * logarithms).sum(-1, keepdim=True))
        share = expl_weight * grad / max(logits.shape[0], 1)
        d_logits = (share * slope).to(logits.dtype)
    return cont_weight * grad, d_error, d_logits
