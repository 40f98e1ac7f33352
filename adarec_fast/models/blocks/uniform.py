"""Linear maps and convolutions as torch itself starts them, from a generator of one's own."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def uniform_linears(module: nn.Module, generator: torch.Generator) -> None:
    """Weights and biases of every ``nn.Linear`` and ``nn.Conv2d`` in it uniform within
    1 / sqrt(its inputs)."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            bound = part.weight[0].numel() ** -0.5
            part.weight.uniform_(-bound, bound, generator=generator)
            if part.bias is not None:
                part.bias.uniform_(-bound, bound, generator=generator)
