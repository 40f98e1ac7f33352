"""Clipping and Adam; nothing here is ragged, so it is the reference's code."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..reference.adam import adam


def fwd(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], firsts: Sequence[Tensor],
    seconds: Sequence[Tensor], steps: Sequence[Tensor], done: Tensor, norm: Tensor, found: Tensor,
    lr: Tensor, beta1: float, beta2: float, eps: float, weight_decay: float, max_norm: float,
) -> None:
    """``adam_fwd`` of the op's schema."""
    adam(
        parameters, gradients, firsts, seconds, steps, norm, found, lr, beta1, beta2, eps,
        weight_decay, max_norm,
    )  # fmt: skip
