"""A local path: what the last k tokens tell by themselves, beside what attention finds."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .encoder_layer import drop


def mix(x: Tensor, taps: Tensor) -> Tensor:
    """sum_j taps_j * x_{t-j}, element-wise in D; nothing lies before a sequence's first token."""
    before, length = taps.shape[0] - 1, x.shape[-2]
    padded = F.pad(x, (0, 0, before, 0))
    mixed = x * taps[0]
    for back in range(1, taps.shape[0]):
        mixed = mixed + padded.narrow(-2, before - back, length) * taps[back]
    return mixed


def local_path(
    x: Tensor,
    taps: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    p: float,
    keep: Tensor | None,
) -> Tensor:
    """LN(x + dropout(sum_j taps_j * x_{t-j})), a causal depthwise convolution with a residual.

    Args:
        x: ``[..., L, D]``, sequences beginning at the left.
        taps: ``[k, D]``, of the token itself first.
        norm_weight, norm_bias: ``[D]``.
        eps: LayerNorm's.
        p: dropout probability that goes with ``keep``.
        keep: bool ``[..., L, D]`` or None.

    Returns:
        ``[..., L, D]``; rows at padding are meaningless.
    """
    mixed = drop(mix(x, taps), keep, p)
    return F.layer_norm(x + mixed, (x.shape[-1],), norm_weight, norm_bias, eps)
