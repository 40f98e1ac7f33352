"""Adaptive depth controller, Eq. 1 and 2: GRU, mean pool, logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def depth_controller(
    embeddings: Tensor,
    valid: Tensor,
    sequence_bias: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_hh: Tensor,
    w_out: Tensor,
    b_out: Tensor,
) -> tuple[Tensor, Tensor]:
    """Logits over the depths 0..T.

    The length vector v of Eq. 1 is the same at every token, so its product with the GRU's input
    weights is a bias a sequence: W_ih [E; v] + b_ih = W_e E + (W_v v + b_ih). The gates are
    torch.nn.GRU's, in its order (reset, update, new).

    Args:
        embeddings: ``[B, L, D]``, E; sequences begin at the left.
        valid: bool ``[B, L]``.
        sequence_bias: ``[B, 3G]``, W_v v + b_ih.
        w_ih: ``[3G, D]``, W_e.
        w_hh, b_hh: ``[3G, G]``, ``[3G]``.
        w_out, b_out: ``[T+1, G]``, ``[T+1]``.

    Returns:
        logits ``[B, T+1]`` and the hidden states ``[B, L, G]``.
    """
    batch, steps, _ = embeddings.shape
    inputs = F.linear(embeddings, w_ih) + sequence_bias[:, None]
    hidden = embeddings.new_zeros(batch, w_hh.shape[1])
    states = []
    for step in range(steps):
        in_r, in_z, in_n = inputs[:, step].chunk(3, -1)
        rec_r, rec_z, rec_n = F.linear(hidden, w_hh, b_hh).chunk(3, -1)
        update = torch.sigmoid(in_z + rec_z)
        new = torch.tanh(in_n + torch.sigmoid(in_r + rec_r) * rec_n)
        hidden = (1 - update) * new + update * hidden
        states.append(hidden)
    states_all = torch.stack(states, 1)
    count = valid.sum(1, keepdim=True).clamp(min=1).to(embeddings.dtype)
    pooled = (states_all * valid[..., None]).sum(1) / count  # Eq. 1
    return F.linear(pooled, w_out, b_out), states_all  # Eq. 2
