"""Gaussian diffusion of vectors, its steps counted t = 0..T-1 as in DreamRec's public code.

With alpha-bar_t the product of 1 - beta_s over s <= t, and alpha-bar_{-1} = 1,

    q(x_t | x_0):  x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) eps

(ADARec's own levels count 1..T; see :mod:`..adarec.diffusion`.)
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

NoiseSchedule = Literal["linear", "exp", "cosine"]


def betas(schedule: NoiseSchedule, steps: int) -> Tensor:
    """beta_t, float64 ``[T]``.

    ``linear``: evenly spaced from 1e-4 to 0.02 (Ho et al. 2020), whatever T; ``exp``: DreamRec's
    1 - exp(-0.1 / T - x_t (10 - 0.1) / (2 T^2)), x_t evenly spaced from 1 to 2 T + 1; ``cosine``:
    alpha-bar along a squared cosine (Nichol and Dhariwal 2021), within [1e-4, 0.9999].
    """
    if schedule == "linear":
        return torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    if schedule == "exp":
        x = torch.linspace(1, 2 * steps + 1, steps, dtype=torch.float64)
        return 1 - torch.exp(-0.1 / steps - x * (10 - 0.1) / (2 * steps**2))
    k = torch.arange(steps + 1, dtype=torch.float64) / steps
    remaining = torch.cos((k + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - remaining[1:] / remaining[:-1]).clamp(1e-4, 0.9999)


def alpha_bars(schedule: NoiseSchedule, steps: int) -> Tensor:
    """alpha-bar_t, float64 ``[T]``, falling."""
    return (1 - betas(schedule, steps)).cumprod(0)


def noised(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t ``[..., D]``; ``alpha_bar``, of each vector's step, broadcasts over D."""
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise


def implied_noise(x: Tensor, x0: Tensor, alpha_bar: Tensor) -> Tensor:
    """The eps that leads from x_0 to x_t: inverse of :func:`noised`."""
    return (x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()


def step_embedding(steps: Tensor, size: int) -> Tensor:
    """[sin | cos] ``[..., size]`` of step numbers, in the form of DreamRec's public code: size / 2
    frequencies 10000^(-k / (size / 2 - 1)).

    Args:
        steps: int64, any shape.
        size: even.
    """
    half = size // 2
    rate = torch.arange(half, device=steps.device) * (-math.log(10_000) / max(1, half - 1))
    angle = steps[..., None] * rate.exp()
    return torch.cat([angle.sin(), angle.cos()], -1)
