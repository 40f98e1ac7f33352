"""The training objective: L_tot = L_rec + l_deno L_deno + l_cont L_cont + l_expl L_expl (Eq. 12).

L_rec is :func:`ops.linear_cross_entropy` (Eq. 13), L_cont :func:`ops.level_infonce` (Eq. 6).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import ragged


def denoising_loss(error: Tensor, offsets: Tensor, depth: Tensor, size: int) -> Tensor:
    """L_deno: the mean of (eps_theta - eps)^2 over valid tokens, dimensions and levels 1..depth.

    Args:
        error: ``[N]``, each token's sum over its levels and dimensions.
        offsets: int64 ``[B+1]``.
        depth: int64 ``[B]``, levels computed.
        size: D.

    Returns:
        A scalar; 0 if no sequence has a level beyond 0.
    """
    real = torch.arange(error.shape[0], device=error.device) < offsets[-1]
    total = torch.where(real, error, torch.zeros_like(error)).sum()
    count = (ragged.lengths(offsets) * depth).sum() * size
    return total / count.clamp(min=1).to(error.dtype)


def depth_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the noise-free softmax of each row, mean over rows; 0 for no rows."""
    logarithms = torch.log_softmax(logits, -1)
    return -(logarithms.exp() * logarithms).sum() / max(logits.shape[0], 1)


def exploration_loss(logits: Tensor) -> Tensor:
    """L_expl: the negative entropy of the noise-free softmax, mean over users.

    The paper's text says "negative entropy", which minimised keeps the controller exploring; its
    formula, -sum p log p, is the entropy, which minimised would do the contrary. The text is
    followed: L_expl = sum p log p.
    """
    return -depth_entropy(logits)
