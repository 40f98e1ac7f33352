"""Draws of Beta(b, b), one word each: a table of its quantiles, computed once."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

_QUANTILES = 4096
_STEPS = 1 << 16


@functools.lru_cache(maxsize=8)
def quantiles(b: float) -> Tensor:
    """float64 ``[4096]``: the quantiles (k + 1/2) / 4096 of Beta(b, b).

    With x = v^(1/b) the density of v on 0 .. 2^-b, the lower half, is proportional to
    (1 - v^(1/b))^(b - 1), which is smooth: Simpson's rule gives its integral. The upper half is the
    lower one's mirror image.
    """
    v = torch.linspace(0, 0.5**b, 2 * _STEPS + 1, dtype=torch.float64)
    density = (1 - v ** (1 / b)) ** (b - 1)
    pieces = density[:-2:2] + 4 * density[1:-1:2] + density[2::2]
    mass = torch.cat([pieces.new_zeros(1), pieces.cumsum(0)])
    mass *= 0.5 / mass[-1]
    wanted = (torch.arange(_QUANTILES // 2, dtype=torch.float64) + 0.5) / _QUANTILES
    above = torch.searchsorted(mass, wanted).clamp(1, _STEPS)
    low, high = mass[above - 1], mass[above]
    even = v[::2]
    share = (wanted - low) / (high - low)
    lower = (even[above - 1] + share * (even[above] - even[above - 1])) ** (1 / b)
    return torch.cat([lower, 1 - lower.flip(0)])


def drawn(word: Tensor, table: Tensor) -> Tensor:
    """Beta variates of 32-bit words, by the twelve highest bits, shaped like ``word``."""
    return table[word >> 20]
