"""A step of Adam (Kingma and Ba 2015) behind a clipped norm, by the book."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def adam(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], firsts: Sequence[Tensor],
    seconds: Sequence[Tensor], steps: Sequence[Tensor], norm: Tensor, found: Tensor, lr: Tensor,
    beta1: float, beta2: float, eps: float, weight_decay: float, max_norm: float,
) -> None:
    """See :func:`adarec_fast.ops.adam`; in place, and nothing where ``found`` is not 0."""
    good = found == 0
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0) if max_norm > 0 else torch.ones_like(norm)
    for parameter, gradient, first, second, step in zip(
        parameters, gradients, firsts, seconds, steps, strict=True
    ):
        gradient = gradient * scale + weight_decay * parameter
        number = step + 1
        new_first = beta1 * first + (1 - beta1) * gradient
        new_second = beta2 * second + (1 - beta2) * gradient.square()
        bias1, bias2 = (1 - beta ** number.double() for beta in (beta1, beta2))
        denominator = (new_second / bias2).sqrt() + eps
        moved = parameter - lr * new_first / bias1 / denominator
        for target, value in (
            (parameter, moved), (first, new_first), (second, new_second), (step, number)
        ):
            target.copy_(torch.where(good, value.to(target.dtype), target))
