"""Dropout of the noise contract; nothing here is ragged, so it is the reference's own code."""

from __future__ import annotations

from torch import Tensor

from .. import rng
from ..reference.encoder_layer import drop


def fwd(x: Tensor, seed: Tensor, p: float, stream: int) -> Tensor:
    """``dropout_fwd`` of the op's schema."""
    index = rng.element_index(x.shape[0], x.shape[1], seed)
    return drop(x, rng.keep_mask(seed, index, stream, 0, p), p)
