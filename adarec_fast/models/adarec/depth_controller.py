"""Adaptive depth controller (Eq. 1-3): how deep a user's trajectory goes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import ops, ragged
from ...reference.length_bias import length_bias


class DepthController(nn.Module):
    """Logits over 0..T from a GRU over [E; v], v an MLP of length / max_length; then a sample.

    Args:
        size: D, also the GRU's hidden size and the size of v.
        max_depth: T.
        max_length: longest history, which normalises the length.
        temperature: tau_gs of Eq. 3.
    """

    def __init__(self, size: int, max_depth: int, max_length: int, temperature: float) -> None:
        super().__init__()
        self.max_depth, self.max_length, self.temperature = max_depth, max_length, temperature
        self.length_mlp = nn.Sequential(
            nn.Linear(1, size, dtype=torch.float32), nn.SiLU(),
            nn.Linear(size, size, dtype=torch.float32),
        )  # fmt: skip
        self.w_ih = nn.Parameter(torch.empty(3 * size, size, dtype=torch.float32))
        self.length_w_ih = nn.Parameter(torch.empty(3 * size, size, dtype=torch.float32))
        self.b_ih = nn.Parameter(torch.empty(3 * size, dtype=torch.float32))
        self.w_hh = nn.Parameter(torch.empty(3 * size, size, dtype=torch.float32))
        self.b_hh = nn.Parameter(torch.empty(3 * size, dtype=torch.float32))
        self.w_out = nn.Parameter(torch.empty(max_depth + 1, size, dtype=torch.float32))
        self.b_out = nn.Parameter(torch.empty(max_depth + 1, dtype=torch.float32))

    def forward(self, embeddings: Tensor, offsets: Tensor, *, backend: str) -> Tensor:
        """Logits ``[B, T+1]`` (Eq. 1, 2) of packed embeddings ``[N, D]``."""
        weight = self.length_w_ih
        if ops.has_kernel("length_bias", backend, weight.device.type, weight.dtype):
            bias = ops.length_bias(
                offsets, *self._length_weights(), max_length=self.max_length, backend=backend
            ).to(embeddings.dtype)
        else:
            bias = self.length_bias(ragged.lengths(offsets), embeddings.dtype)
        return ops.depth_controller(
            embeddings, offsets, bias, self.w_ih, self.w_hh, self.b_hh, self.w_out, self.b_out,
            max_length=self.max_length, backend=backend,
        )

    def length_bias(self, lengths: Tensor, dtype: torch.dtype) -> Tensor:
        """v's part of the GRU's input ``[B, 3D]``, the same at every token of a sequence.

        ``lengths`` is int64 ``[B]``, ``dtype`` that of the embeddings.
        """
        share = lengths[:, None].to(dtype) / self.max_length
        return length_bias(share, *self._length_weights())[0].to(dtype)

    def _length_weights(self) -> tuple[Tensor, ...]:
        first, second = [one for one in self.length_mlp if isinstance(one, nn.Linear)]
        layers = (first.weight, first.bias, second.weight, second.bias)
        return *layers, self.length_w_ih, self.b_ih

    def choose(
        self,
        logits: Tensor,
        seed: Tensor | None,
        *,
        offsets: Tensor | None = None,
        num_tokens: int | None = None,
        all_levels: bool = False,
        backend: str = "auto",
    ) -> ops.Depths:
        """Eq. 3 at this temperature; see :func:`ops.choose_depth`. Without a seed, the argmax."""
        return ops.choose_depth(
            logits, seed=seed, temperature=self.temperature, offsets=offsets,
            num_tokens=num_tokens, all_levels=all_levels, backend=backend,
        )
