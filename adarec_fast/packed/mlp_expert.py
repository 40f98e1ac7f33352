"""The token-wise coarse expert on the (level, token) pairs that exist."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import rng
from ..reference.mlp_expert import mlp_expert
from ._common import last_token_pairs, recompute, scatter_rows, token_pairs


def _forward(
    x: Tensor,
    offsets: Tensor,
    depth: Tensor | None,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    ln_w: Tensor,
    ln_b: Tensor,
    eps: float,
    hidden_dropout: float,
    seed: Tensor | None,
    stream: int,
    residual: bool,
    last_only: bool,
) -> Tensor:
    levels, tokens, size = x.shape
    if last_only:
        source, target = last_token_pairs(offsets, depth, levels, tokens)
        rows = offsets.shape[0] - 1
    else:
        source = target = token_pairs(offsets, depth, levels, tokens)
        rows = tokens
    keep = None
    if seed is not None:
        index = rng.element_index(tokens, size, seed)
        keep = rng.keep_levels(seed, index, stream, levels, hidden_dropout).flatten(0, 1)[source]
    y = mlp_expert(
        x.flatten(0, 1)[source], w1, b1, w2, b2, ln_w, ln_b, eps, hidden_dropout, keep,
        residual,
    )  # fmt: skip
    return scatter_rows(y.to(x.dtype), target, (levels, rows))


def fwd(*inputs: Any) -> Tensor:
    """``mlp_expert_fwd`` of the op's schema."""
    with torch.no_grad():
        return _forward(*inputs)


def bwd(grad_y: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """``mlp_expert_bwd``: gradients of x and the six parameters."""
    return recompute(_forward, inputs, (0, *range(3, 9)), (grad_y,))
