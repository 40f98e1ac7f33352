"""The coarse expert E_coar in its default form, a token-wise MLP."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .encoder_layer import drop


def mlp_expert(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    ln_w: Tensor,
    ln_b: Tensor,
    eps: float,
    hidden_dropout: float,
    keep: Tensor | None,
    residual: bool = False,
) -> Tensor:
    """LN(dropout(W2 GELU(W1 x + b1) + b2)), D -> 2D -> D; if ``residual``, x is added before LN.

    Args:
        x: ``[..., D]``.
        w1, b1: ``[H, D]``, ``[H]``.
        w2, b2: ``[D, H]``, ``[D]``.
        ln_w, ln_b: ``[D]``.
        eps: LayerNorm's.
        hidden_dropout: probability that goes with ``keep``.
        keep: bool ``[..., D]`` or None.
        residual: a path around the MLP.

    Returns:
        ``[..., D]``.
    """
    y = drop(F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2), keep, hidden_dropout)
    return F.layer_norm(x + y if residual else y, (x.shape[-1],), ln_w, ln_b, eps)
