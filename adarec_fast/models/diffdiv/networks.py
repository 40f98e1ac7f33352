"""What guides, and what denoises."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from ..blocks.gaussian import step_embedding


class VariationalGuidance(nn.Module):
    """Guidance drawn around a history's state: z = mu(c) + s(c) eps, and a perceptron of it.

    Args:
        size: D, of the state, of z and of the guidance.
        hidden: of each perceptron.
    """

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.mean, self.log_variance, self.out = (_perceptron(size, hidden) for _ in range(3))

    def forward(self, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Guidance ``[..., B, D]``, mu ``[B, D]`` and log s^2 ``[B, D]``.

        Args:
            state: c ``[B, D]``.
            noise: eps ``[..., B, D]``.
        """
        mean, log_variance = self.mean(state), self.log_variance(state)
        z = mean + (0.5 * log_variance).exp() * noise
        return self.out(z), mean, log_variance


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mu, s^2) | N(0, 1)) of each history ``[B]``, the mean over dimensions."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean(-1)


class Denoiser(nn.Module):
    """x_0 of x_t, of guidance and of the step t: f([x_t; guidance; tau(t)]).

    tau is a perceptron of the step's sinusoids, D to 2 D to D.

    Args:
        size: D.
        layers: hidden layers of f, with ReLU; 0: one linear map.
        hidden: their size.
    """

    def __init__(self, size: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.size = size
        self.step_in = nn.Linear(size, 2 * size, dtype=torch.float32)
        self.step_out = nn.Linear(2 * size, size, dtype=torch.float32)
        sizes = [3 * size, *[hidden] * layers, size]
        self.layers = nn.ModuleList(
            nn.Linear(one, other, dtype=torch.float32) for one, other in pairwise(sizes)
        )

    def forward(self, x: Tensor, guidance: Tensor, steps: Tensor) -> Tensor:
        """``[..., D]``.

        Args:
            x: x_t ``[..., D]``.
            guidance: broadcasts with x.
            steps: int64, t, whose embedding broadcasts with x.
        """
        tau = step_embedding(steps, self.size).to(x.dtype)
        tau = self.step_out(nn.functional.gelu(self.step_in(tau)))
        # A product for each of the three parts: guidance and steps are fewer than the vectors.
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        of_x, of_guidance, of_step = first.weight.split(self.size, 1)
        h = x @ of_x.T + guidance @ of_guidance.T + (tau @ of_step.T + first.bias)
        for layer in self.layers[1:]:
            h = layer(torch.relu(h))
        return h


def guided(with_guidance: Tensor, without: Tensor, weight: float) -> Tensor:
    """(1 + w) f(guidance) - w f(none), classifier-free (Ho and Salimans 2021)."""
    return (1 + weight) * with_guidance - weight * without


def _perceptron(size: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(size, hidden, dtype=torch.float32), nn.ReLU(),
        nn.Linear(hidden, size, dtype=torch.float32),
    )  # fmt: skip
