"""The default coarse expert of HP-MoE; the others are Transformer layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import ops, rng


class MLPExpert(nn.Module):
    """The default coarse expert: LN(W2 GELU(W1 x + b1) + b2), D -> 2D -> D, a token at a time.

    What reaches the coarse representation has passed the bottleneck, unless ``residual`` adds a
    path around it: LN(x + W2 GELU(W1 x + b1) + b2).
    """

    def __init__(
        self, size: int, *, eps: float, hidden_dropout: float, residual: bool = False
    ) -> None:
        super().__init__()
        self.eps, self.hidden_dropout, self.residual = eps, hidden_dropout, residual
        self.ff1 = nn.Linear(size, 2 * size, dtype=torch.float32)
        self.ff2 = nn.Linear(2 * size, size, dtype=torch.float32)
        self.norm = nn.LayerNorm(size, dtype=torch.float32)

    def forward(
        self,
        x: Tensor,
        offsets: Tensor,
        depth: Tensor | None,
        *,
        seed: Tensor | None,
        last_only: bool = False,
        max_length: int,
        backend: str,
    ) -> Tensor:
        """``[K, N, D]`` to ``[K, N, D]``, or to ``[K, B, D]`` if ``last_only``."""
        return ops.mlp_expert(
            x, offsets, depth, *self.weights(), eps=self.eps, hidden_dropout=self.hidden_dropout,
            seed=seed, stream=rng.STREAM_COARSE_MLP, residual=self.residual, last_only=last_only,
            max_length=max_length, backend=backend,
        )

    def pooled(
        self,
        x: Tensor,
        offsets: Tensor,
        depth: Tensor,
        *,
        seed: Tensor | None,
        content: bool,
        max_length: int,
        backend: str,
    ) -> ops.PooledLevels:
        """Of that, last rows and means over tokens (see :func:`ops.mlp_expert_pooled`)."""
        return ops.mlp_expert_pooled(
            x, offsets, depth, *self.weights(), eps=self.eps, hidden_dropout=self.hidden_dropout,
            seed=seed, stream=rng.STREAM_COARSE_MLP, residual=self.residual, content=content,
            max_length=max_length, backend=backend,
        )

    def weights(self) -> tuple[Tensor, ...]:
        """The parameters in the op's order."""
        layers = (self.ff1, self.ff2, self.norm)
        return tuple(p for layer in layers for p in (layer.weight, layer.bias))
