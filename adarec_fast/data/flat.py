"""Arithmetic on jagged arrays: ``values [N]`` with ``offsets [B + 1]``."""

from __future__ import annotations

import torch
from torch import Tensor


def lengths_to_offsets(lengths: Tensor) -> Tensor:
    """Exclusive prefix sum: int64 lengths [B] to int64 offsets [B + 1]."""
    offsets = torch.zeros(lengths.numel() + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    return offsets


def range_positions(
    starts: Tensor, lengths: Tensor, total: int | None = None
) -> tuple[Tensor, Tensor]:
    """Positions of the ranges ``starts[i] .. starts[i] + lengths[i]``, one after another.

    Args:
        starts: int64 [B], first position of each range.
        lengths: int64 [B], number of positions of each range, none negative.
        total: ``lengths.sum()`` where the caller knows it; spares a device synchronisation.

    Returns:
        ``(positions, offsets)``: int64 [N] and int64 [B + 1].
    """
    offsets = lengths_to_offsets(lengths)
    shift = torch.repeat_interleave(starts - offsets[:-1], lengths, output_size=total)
    positions = shift + torch.arange(shift.numel(), dtype=torch.int64, device=shift.device)
    return positions, offsets


def gather_ranges(
    values: Tensor, starts: Tensor, lengths: Tensor, total: int | None = None
) -> tuple[Tensor, Tensor]:
    """``range_positions`` followed by the gather: jagged ``(values [N], offsets [B + 1])``."""
    positions, offsets = range_positions(starts, lengths, total)
    return values[positions], offsets
