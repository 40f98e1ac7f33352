"""Eq. 4 and 5 on packed tokens, each level for the tokens that reach it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import rng
from ._common import recompute, token_depth


def _forward(
    embeddings: Tensor,
    offsets: Tensor,
    depth: Tensor,
    alpha_bar: Tensor,
    w1: Tensor,
    level_bias: Tensor,
    w2: Tensor,
    b2: Tensor,
    seed: Tensor | None,
    noise: Tensor | None,
    bounded: bool = False,
) -> tuple[Tensor, Tensor]:
    tokens, size = embeddings.shape
    levels = alpha_bar.shape[0]
    wide = torch.promote_types(embeddings.dtype, torch.float32)
    depths = token_depth(depth, offsets, tokens)
    if noise is None and seed is not None:
        noise = rng.trajectory_noise(seed, tokens, size, levels - 1, embeddings.dtype)
    planes = [embeddings]
    error = embeddings.new_zeros(tokens, dtype=wide)
    schedule = alpha_bar.to(wide)
    for k in range(1, levels):
        active = (depths >= k).nonzero()[:, 0]
        x = embeddings[active]
        signal, spread = schedule[k].sqrt(), (1 - schedule[k]).sqrt()
        epsilon = None if noise is None else noise[k - 1][active]
        noisy = signal * x if epsilon is None else signal * x + spread * epsilon
        predicted = F.linear(F.silu(F.linear(noisy.to(x.dtype), w1, level_bias[k - 1])), w2, b2)
        if bounded:
            predicted = spread * noisy + signal * predicted
        miss = predicted if epsilon is None else predicted - epsilon
        # Eq. 5 with Eq. 4 put in: x0 = E + sigma_k (epsilon - eps_theta), whatever its form.
        plane = (x - (spread / signal) * miss).to(x.dtype)
        planes.append(embeddings.new_zeros(tokens, size).index_copy(0, active, plane))
        error = error.index_add(0, active, miss.to(wide).square().sum(-1))
    return torch.stack(planes), error


def fwd(*inputs: Any) -> tuple[Tensor, Tensor]:
    """``hda_trajectory_fwd`` of the op's schema."""
    with torch.no_grad():
        return _forward(*inputs)


def bwd(grad_x0: Tensor, grad_error: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """``hda_trajectory_bwd``: gradients of embeddings, w1, level_bias, w2, b2."""
    # Planes beyond a depth hold no gradient: the reader of x0 has not written there.
    depths = token_depth(inputs[2], inputs[1], inputs[0].shape[0])
    reached = torch.arange(grad_x0.shape[0], device=depths.device)[:, None] <= depths
    grad_x0 = torch.where(reached[..., None], grad_x0, torch.zeros_like(grad_x0))
    grad_error = torch.where(depths >= 0, grad_error, torch.zeros_like(grad_error))
    return recompute(_forward, inputs, (0, 4, 5, 6, 7), (grad_x0, grad_error))
