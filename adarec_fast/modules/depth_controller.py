"""Adaptive depth controller (Eq. 1-3): how deep a user's trajectory goes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops, ragged, rng


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
        self.length_mlp = nn.Sequential(nn.Linear(1, size), nn.SiLU(), nn.Linear(size, size))
        self.w_ih = nn.Parameter(torch.empty(3 * size, size))
        self.length_w_ih = nn.Parameter(torch.empty(3 * size, size))
        self.b_ih = nn.Parameter(torch.empty(3 * size))
        self.w_hh = nn.Parameter(torch.empty(3 * size, size))
        self.b_hh = nn.Parameter(torch.empty(3 * size))
        self.w_out = nn.Parameter(torch.empty(max_depth + 1, size))
        self.b_out = nn.Parameter(torch.empty(max_depth + 1))

    def forward(self, embeddings: Tensor, offsets: Tensor, *, backend: str) -> Tensor:
        """Logits ``[B, T+1]`` (Eq. 1, 2) of packed embeddings ``[N, D]``."""
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
        return F.linear(self.length_mlp(share), self.length_w_ih, self.b_ih).to(dtype)

    def choose(self, logits: Tensor, seed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Depth ``[B]`` int64 and level mass m_k ``[T+1, B]``.

        With a seed (training) the depth is the argmax of the Gumbel-perturbed logits and m_k =
        sum over i >= k of the straight-through one-hot y_i: 1 up to the depth and 0 beyond in
        value, the Gumbel-Softmax in gradient (Eq. 3). Without, the plain argmax.
        """
        if seed is None:
            depth = logits.argmax(-1)
            return depth, ragged.reached_levels(depth, logits.shape[1]).to(logits.dtype)
        noise = rng.gumbel(seed, logits.shape[0], logits.shape[1], logits.dtype)
        soft = torch.softmax((logits + noise) / self.temperature, -1)
        depth = soft.argmax(-1)
        # Not F.one_hot, which reads the depths on the host to check them.
        choices = torch.arange(logits.shape[1], device=depth.device)
        hard = (choices == depth[:, None]).to(logits.dtype)
        # The difference is exactly zero, so that the forward value stays a true one-hot.
        chosen = hard + (soft - soft.detach())
        return depth, chosen.flip(-1).cumsum(-1).flip(-1).T.contiguous()
