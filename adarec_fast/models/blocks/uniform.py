"""Linear maps as torch itself starts them, from a generator of one's own."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def uniform_linears(module: nn.Module, generator: torch.Generator) -> None:
    """Weights and biases of every ``nn.Linear`` in it uniform within 1 / sqrt(its inputs)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            bound = part.in_features**-0.5
            part.weight.uniform_(-bound, bound, generator=generator)
            part.bias.uniform_(-bound, bound, generator=generator)
