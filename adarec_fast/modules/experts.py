"""The two experts of HP-MoE and the Transformer layer they share with the backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops, rng


class TransformerLayer(nn.Module):
    """A causal post-LN layer over levels x jagged sequences (see :func:`ops.encoder_layer`).

    Args:
        size: D.
        heads: divides D.
        feedforward: inner size.
        eps: LayerNorm's.
        attention_dropout, hidden_dropout: probabilities in training.
        stream: the layer's first stream of the noise contract.
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
    ) -> None:
        super().__init__()
        self.heads, self.eps, self.stream = heads, eps, stream
        self.attention_dropout, self.hidden_dropout = attention_dropout, hidden_dropout
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.norm1 = nn.LayerNorm(size)
        self.ff1 = nn.Linear(size, feedforward)
        self.ff2 = nn.Linear(feedforward, size)
        self.norm2 = nn.LayerNorm(size)

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
            backend=backend,
        )


class MLPExpert(nn.Module):
    """The default coarse expert: LN(W2 GELU(W1 x + b1) + b2), D -> 2D -> D, a token at a time.

    It has no residual path: what reaches the coarse representation has passed the bottleneck.
    """

    def __init__(self, size: int, *, eps: float, hidden_dropout: float) -> None:
        super().__init__()
        self.eps, self.hidden_dropout = eps, hidden_dropout
        self.ff1 = nn.Linear(size, 2 * size)
        self.ff2 = nn.Linear(2 * size, size)
        self.norm = nn.LayerNorm(size)

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
            seed=seed, stream=rng.STREAM_COARSE_MLP, last_only=last_only, max_length=max_length,
            backend=backend,
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
            seed=seed, stream=rng.STREAM_COARSE_MLP, content=content, max_length=max_length,
            backend=backend,
        )

    def weights(self) -> tuple[Tensor, ...]:
        """The parameters in the op's order."""
        layers = (self.ff1, self.ff2, self.norm)
        return tuple(p for layer in layers for p in (layer.weight, layer.bias))


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
