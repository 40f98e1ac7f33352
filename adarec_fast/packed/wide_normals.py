"""Normals of the noise contract; nothing here is ragged, so it is the contract's own code."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import rng


def fwd(row: Tensor, seed: Tensor, size: int, stream: int, group: int) -> Tensor:
    """``wide_normals_fwd`` of the op's schema."""
    return rng.wide_normals(seed, row, size, torch.float32, stream, group).contiguous()
