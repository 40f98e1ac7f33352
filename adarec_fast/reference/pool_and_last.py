"""A level's mean over a sequence's tokens, and its last token."""

from __future__ import annotations

import torch
from torch import Tensor

from .level_pool import level_pool


def pool_and_last(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Of padded ``x [K, B, L, D]``, valid at bool ``[B, L]``: mean and last, each ``[K, B, D]``."""
    sequence = torch.arange(x.shape[1], device=x.device)
    last = (valid.sum(1) - 1).clamp(min=0)
    return level_pool(x, valid, False), x[:, sequence, last]
