"""Gaussian diffusion of vectors, its steps counted t = 0..T-1 as in public code.

With alpha-bar_t the product of 1 - beta_s over s <= t, and alpha-bar_{-1} = 1,

    q(x_t | x_0):  x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) eps

(ADARec's own levels count 1..T; see :mod:`..adarec.diffusion`.)
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

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


def variance_betas(steps: int, scale: float, least: float, greatest: float) -> Tensor:
    """beta_t, float64 ``[T]``, of DiffRec's ``linear-var``: 1 - alpha-bar_t is evenly spaced from
    scale least to scale greatest, but that beta_0 is then replaced by 1e-5."""
    remaining = 1 - scale * torch.linspace(least, greatest, steps, dtype=torch.float64)
    found = torch.full((steps,), 1e-5, dtype=torch.float64)
    found[1:] = (1 - remaining[1:] / remaining[:-1]).clamp(max=0.999)
    return found


class Posterior(NamedTuple):
    """What leads from x_t one step back to x_{t-1}, given x_0: float64 ``[T]`` each.

    Attributes:
        of_x0, of_x: mu_t = of_x0 x_0 + of_x x_t; at t = 0 they are 1 and 0.
        variance: of x_{t-1} around mu_t; 0 at t = 0.
    """

    of_x0: Tensor
    of_x: Tensor
    variance: Tensor

    @classmethod
    def of(cls, beta: Tensor) -> Posterior:
        """Of beta_t ``[T]``."""
        bar = (1 - beta).cumprod(0)
        before = torch.cat([torch.ones_like(bar[:1]), bar[:-1]])
        return cls(
            beta * before.sqrt() / (1 - bar), (1 - before) * (1 - beta).sqrt() / (1 - bar),
            beta * (1 - before) / (1 - bar),
        )  # fmt: skip


def noised(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t ``[..., D]``; ``alpha_bar``, of each vector's step, broadcasts over D."""
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise


def implied_noise(x: Tensor, x0: Tensor, alpha_bar: Tensor) -> Tensor:
    """The eps that leads from x_0 to x_t: inverse of :func:`noised`."""
    return (x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()


def diffrec_embedding(steps: Tensor, size: int) -> Tensor:
    """[cos | sin] ``[..., size]`` of step numbers, in the form of DiffRec's public code: size / 2
    frequencies 10000^(-k / (size / 2)).

    Args:
        steps: int64, any shape.
        size: even.
    """
    half = size // 2
    rate = torch.arange(half, device=steps.device) * (-math.log(10_000) / half)
    angle = steps[..., None] * rate.exp()
    return torch.cat([angle.cos(), angle.sin()], -1)


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
