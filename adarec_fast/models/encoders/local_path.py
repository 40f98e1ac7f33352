"""The local path that an encoder may have before each of its layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import ops


class LocalPath(nn.Module):
    """LN(x + dropout(sum_j taps_j * x_{t-j})) over packed tokens (see :func:`ops.local_path`).

    The taps start at zero, so that the path at first is a LayerNorm of what is normal already.

    Args:
        size: D.
        taps: k, tokens that it sees, the token itself among them.
        eps: LayerNorm's.
        dropout: probability in training.
        stream: dropout's, of the noise contract.
    """

    def __init__(self, size: int, taps: int, *, eps: float, dropout: float, stream: int) -> None:
        super().__init__()
        self.eps, self.dropout, self.stream = eps, dropout, stream
        self.taps = nn.Parameter(torch.zeros(taps, size, dtype=torch.float32))
        self.norm = nn.LayerNorm(size, dtype=torch.float32)

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """The parameters in the op's order."""
        return self.taps, self.norm.weight, self.norm.bias

    def forward(
        self, x: Tensor, offsets: Tensor, *, seed: Tensor | None, max_length: int, backend: str
    ) -> Tensor:
        """``[N, D]`` to ``[N, D]``."""
        return ops.local_path(
            x, offsets, *self.weights(), eps=self.eps, p=self.dropout, seed=seed,
            stream=self.stream, max_length=max_length, backend=backend,
        )  # fmt: skip
