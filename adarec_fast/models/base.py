"""What a sequential model is to the rest of the package."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class LossOutput(NamedTuple):
    """A batch's losses and what the training log shows of them. All but ``total`` is detached.

    Attributes:
        total: L_tot of Eq. 12, a scalar with gradient.
        parts: ``rec``, ``deno``, ``cont``, ``expl``: scalars before their weights.
        depth: ``[B]`` int64, T_u.
        gate: ``[T+1]``, mean g_k over the examples that reach level k; nan where none does.
        depth_entropy: entropy of the noise-free depth softmax, nats.
        denoising_error: mean (eps_theta - eps)^2, the same number as ``parts["deno"]``.
        examples: of a worker's share of a batch: B of the whole batch, whose means all values
            are but ``depth``; the gradient of ``total`` is the share's part of it.
    """

    total: Tensor
    parts: dict[str, Tensor]
    depth: Tensor
    gate: Tensor
    depth_entropy: Tensor
    denoising_error: Tensor
    examples: int | None = None


def initialise(module: nn.Module, generator: torch.Generator, scale: float = 0.02) -> None:
    """Normal(0, scale) matrices, zero biases, unit LayerNorms, as SASRec's public code does."""
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.dim() >= 2 or name.endswith("router_w2"):
                parameter.normal_(0.0, scale, generator=generator)
            elif "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
            else:
                parameter.zero_()
