"""A level's mean and its last token, of packed tokens."""

from __future__ import annotations

from torch import Tensor

from .. import ragged
from . import level_pool


def fwd(x: Tensor, offsets: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """``pool_and_last_fwd`` of the op's schema."""
    return level_pool.fwd(x, offsets, depth, False), x[:, ragged.last_tokens(offsets)]


def bwd(d_mean: Tensor, d_last: Tensor, offsets: Tensor, depth: Tensor, tokens: int) -> Tensor:
    """``pool_and_last_bwd``: the gradient of x ``[K, tokens, D]``."""
    d_x = level_pool.bwd(d_mean, offsets, depth, False, tokens)
    return d_x.index_add(1, ragged.last_tokens(offsets), d_last)
