"""Eq. 3: a depth by Gumbel-Softmax, hard in value and soft in gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ragged


def choose_depth(
    logits: Tensor, noise: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The depth of every sequence and the levels' mass.

    Args:
        logits: ``[B, T+1]`` of Eq. 2.
        noise: ``[B, T+1]``, Gumbel(0, 1); None: the plain argmax, which has no gradient.
        temperature: tau_gs.

    Returns:
        T_u int64 ``[B]``; m_k = sum over i >= k of the straight-through one-hot y_i, ``[T+1, B]``;
        and the softmax whose gradient y has, ``[B, T+1]``, or None without noise.
    """
    if noise is None:
        depth = logits.argmax(-1)
        return depth, ragged.reached_levels(depth, logits.shape[1]).to(logits.dtype), None
    soft = torch.softmax((logits + noise) / temperature, -1)
    depth = soft.argmax(-1)
    # Not F.one_hot, which reads the depths on the host to check them.
    choices = torch.arange(logits.shape[1], device=depth.device)
    hard = (choices == depth[:, None]).to(logits.dtype)
    # The difference is exactly zero, so that the forward value stays a true one-hot.
    chosen = hard + (soft - soft.detach())
    return depth, chosen.flip(-1).cumsum(-1).flip(-1).T.contiguous(), soft
