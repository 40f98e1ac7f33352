"""The levels' biases in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.level_biases import level_biases


def fwd(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    """``level_biases_fwd`` of the op's schema."""
    with torch.no_grad():
        denoiser, router = level_biases(*inputs)
    return denoiser.to(inputs[1].dtype), router.to(inputs[3].dtype)


def bwd(
    d_denoiser: Tensor, d_router: Tensor, table: Tensor, denoiser_w: Tensor, denoiser_b: Tensor,
    router_w: Tensor, router_b: Tensor,
) -> tuple[Tensor, ...]:
    """``level_biases_bwd``: gradients of the table and of both layers."""
    d_table = d_router @ router_w
    d_table[1:] += d_denoiser @ denoiser_w
    return (
        d_table.to(table.dtype), (d_denoiser.T @ table[1:]).to(denoiser_w.dtype),
        d_denoiser.sum(0).to(denoiser_b.dtype), (d_router.T @ table).to(router_w.dtype),
        d_router.sum(0).to(router_b.dtype),
    )
