"""Pool of Eq. 7: the mean over a sequence's valid tokens, or its causal running mean."""

from __future__ import annotations

import torch
from torch import Tensor


def level_pool(x: Tensor, valid: Tensor, causal: bool) -> Tensor:
    """Mean over valid tokens.

    Args:
        x: ``[..., L, D]``, sequences beginning at the left.
        valid: bool ``[..., L]``.
        causal: False gives the mean of the whole sequence, True the running mean up to each
            position (what an example that is read at every position may look at).

    Returns:
        ``[..., D]``, or ``[..., L, D]`` if causal.
    """
    masked = torch.where(valid[..., None], x, torch.zeros_like(x))
    if causal:
        count = torch.arange(1, x.shape[-2] + 1, device=x.device, dtype=x.dtype)
        return masked.cumsum(-2) / count[:, None]
    return masked.sum(-2) / valid.sum(-1, keepdim=True).clamp(min=1).to(x.dtype)
