"""Running sums of what a training epoch reports, one step's numbers at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WATCHED = 6  # of the values: four losses, their weighted sum, the gradient norm


def epoch_statistics(
    sums: Tensor, bad_step: Tensor, bad_parts: Tensor, values: Sequence[Tensor], depth: Tensor,
    gate: Tensor, step: int | Tensor,
) -> Tensor:
    """Add a step; see :func:`adarec_fast.ops.epoch_statistics`."""
    watched = torch.stack([value.detach().double() for value in values[:WATCHED]])
    not_finite = ~torch.isfinite(watched)
    first = (bad_step < 0) & not_finite.any()
    bad_step.copy_(torch.where(first, step, bad_step))
    bad_parts.copy_(torch.where(first, not_finite, bad_parts))

    weight = depth.numel()
    counts = torch.zeros(gate.shape[0], dtype=torch.float64, device=sums.device)
    counts.index_add_(0, depth, torch.ones_like(depth, dtype=torch.float64))
    # An example reaches its depth and every level before it.
    reach = counts.flip(0).cumsum(0).flip(0)
    gate = gate.detach().double()
    known = torch.isfinite(gate)
    sums += torch.cat(
        [
            watched * weight,
            *[(value.detach().double() * weight).reshape(1) for value in values[WATCHED:]],
            counts,
            torch.where(known, gate * reach, 0.0),
            torch.where(known, reach, 0.0),
        ]
    )
    return (bad_step >= 0).float()
