"""Hierarchical diffusion augmentation, Eq. 4 and 5, for every level at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def hda_trajectory(
    embeddings: Tensor,
    alpha_bar: Tensor,
    w1: Tensor,
    level_bias: Tensor,
    w2: Tensor,
    b2: Tensor,
    noise: Tensor | None,
    bounded: bool = False,
) -> tuple[Tensor, Tensor]:
    """Noise, denoise and reconstruct x0 at the levels 1..T; level 0 is the input itself.

    The denoiser is eps_theta = F(E_k, k), F = W2 SiLU(W1 [E_k; emb(k)] + b1) + b2. The part of W1
    that meets the level embedding arrives folded with b1 into ``level_bias``.

    ``bounded``: eps_theta = sqrt(1 - alpha_bar_k) E_k + sqrt(alpha_bar_k) F(E_k, k), with which Eq.
    5 is x0 = sqrt(alpha_bar_k) E_k - sqrt(1 - alpha_bar_k) F: (x0, eps_theta) is (E_k, F) turned by
    an angle, and no level can be larger than the two.

    Args:
        embeddings: ``[..., D]``, E of every token.
        alpha_bar: ``[T+1]``, cumulative schedule, alpha_bar[0] = 1.
        w1: ``[H, D]``, the part of W1 that meets E_k.
        level_bias: ``[T, H]``, row k-1 is W1b emb(k) + b1.
        w2: ``[D, H]``.
        b2: ``[D]``.
        noise: ``[T, ..., D]``, row k-1 is epsilon_k; None stands for zero.
        bounded: the form of eps_theta.

    Returns:
        x0 ``[T+1, ..., D]`` and the squared error |eps_theta - eps|^2 summed over D, ``[T, ...]``.
    """
    levels = [embeddings]
    errors = []
    for k in range(1, alpha_bar.numel()):
        signal, spread = alpha_bar[k].sqrt(), (1 - alpha_bar[k]).sqrt()
        epsilon = torch.zeros_like(embeddings) if noise is None else noise[k - 1]
        noisy = signal * embeddings + spread * epsilon  # Eq. 4
        predicted = F.linear(F.silu(F.linear(noisy, w1, level_bias[k - 1])), w2, b2)
        if bounded:
            predicted = spread * noisy + signal * predicted
        levels.append((noisy - spread * predicted) / signal)  # Eq. 5
        errors.append((predicted - epsilon).square().sum(-1))
    return torch.stack(levels), torch.stack(errors)
