"""What a level's embedding adds to the hidden layers of the denoiser and of the router."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def level_biases(
    table: Tensor, denoiser_w: Tensor, denoiser_b: Tensor, router_w: Tensor, router_b: Tensor
) -> tuple[Tensor, Tensor]:
    """W emb(k) + b of the denoiser for k = 1..T and of the router for k = 0..T.

    Args:
        table: ``[T+1, D]``, the levels' embeddings.
        denoiser_w, denoiser_b: ``[H, D]``, ``[H]``.
        router_w, router_b: ``[R, D]``, ``[R]``.

    Returns:
        ``[T, H]`` and ``[T+1, R]``.
    """
    return F.linear(table[1:], denoiser_w, denoiser_b), F.linear(table, router_w, router_b)
