"""The Transformer layer that encoders and ADARec's experts share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import ops


class TransformerLayer(nn.Module):
    """A post-LN layer over levels x jagged sequences (see :func:`ops.encoder_layer`).

    Args:
        size: D.
        heads: divides D.
        feedforward: inner size.
        eps: LayerNorm's.
        attention_dropout, hidden_dropout: probabilities in training.
        stream: the layer's first stream of the noise contract.
        causal: whether a token sees those before it and itself alone, or its whole sequence.
    """

    def __init__(
        self,
        size: int,
        heads: int,
        feedforward: int,
        *,
        eps: float,
        attention_dropout: float,
        hidden_dropout: float,
        stream: int,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.eps, self.stream, self.causal = heads, eps, stream, causal
        self.attention_dropout, self.hidden_dropout = attention_dropout, hidden_dropout
        self.qkv = nn.Linear(size, 3 * size, dtype=torch.float32)
        self.out = nn.Linear(size, size, dtype=torch.float32)
        self.norm1 = nn.LayerNorm(size, dtype=torch.float32)
        self.ff1 = nn.Linear(size, feedforward, dtype=torch.float32)
        self.ff2 = nn.Linear(feedforward, size, dtype=torch.float32)
        self.norm2 = nn.LayerNorm(size, dtype=torch.float32)

    def weights(self) -> ops.LayerWeights:
        """The parameters in the op's order."""
        layers = (self.qkv, self.out, self.norm1, self.ff1, self.ff2, self.norm2)
        return ops.LayerWeights(*(p for layer in layers for p in (layer.weight, layer.bias)))

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
        return ops.encoder_layer(
            x, offsets, depth, self.weights(), heads=self.heads, eps=self.eps,
            attention_dropout=self.attention_dropout, hidden_dropout=self.hidden_dropout,
            seed=seed, stream=self.stream, last_only=last_only, max_length=max_length,
            causal=self.causal, backend=backend,
        )
