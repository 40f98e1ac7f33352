"""Eq. 3 behind the op: the reference's own code, and its gradient by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ragged, rng
from ..reference.choose_depth import choose_depth as reference


def fwd(
    logits: Tensor, seed: Tensor | None, offsets: Tensor | None, temperature: float,
    all_levels: bool, rows: int,
) -> tuple[Tensor, ...]:
    """``choose_depth_fwd`` of the op's schema."""
    # Noise in half precision would be infinite where a uniform number is rounded to one.
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    noise = None if seed is None else rng.gumbel(seed, wide.shape[0], wide.shape[1], wide.dtype)
    with torch.no_grad():
        depth, mass, soft = reference(wide, noise, temperature)
    computed = depth.new_empty(0)
    if all_levels:
        computed = torch.full_like(depth, logits.shape[1] - 1)
    row_depth = depth.new_empty(0)
    if offsets is not None:
        # Capacity behind the last token reaches no level, not even level 0: depth -1.
        deepest = computed if all_levels else depth
        row_depth = ragged.row_of_tokens(deepest + 1, offsets, rows) - 1
        mass = ragged.row_of_tokens(mass, offsets, rows, dim=1)
    soft = wide.new_empty(0, logits.shape[1]) if soft is None else soft
    return depth, computed, row_depth, mass.to(logits.dtype), soft


def bwd(grad_mass: Tensor, soft: Tensor, offsets: Tensor | None, temperature: float) -> Tensor:
    """``choose_depth_bwd``: the gradient of the logits, that of Gumbel-Softmax."""
    grad = grad_mass.to(soft.dtype)
    if offsets is not None:
        batch = offsets.shape[0] - 1
        owner = ragged.sequence_ids(offsets, grad.shape[1])
        grad = grad.new_zeros(grad.shape[0], batch + 1).index_add_(1, owner, grad)[:, :batch]
    # y_i counts in every m_k with k <= i.
    d_soft = grad.T.cumsum(-1)
    d_logits = torch._softmax_backward_data(d_soft, soft, -1, soft.dtype) / temperature
    return d_logits.to(grad_mass.dtype)
