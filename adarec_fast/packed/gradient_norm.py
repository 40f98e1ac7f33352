"""The norm of all gradients; nothing here is ragged, so it is torch's own function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fwd(gradients: Sequence[Tensor], done: Tensor) -> Tensor:
    """``gradient_norm_fwd`` of the op's schema."""
    return torch.nn.utils.get_total_norm(gradients)
