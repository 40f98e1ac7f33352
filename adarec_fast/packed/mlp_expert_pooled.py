"""The coarse expert with its means, on the (level, token) pairs that exist."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ragged
from ._common import recompute
from .level_pool import _forward as pool
from .mlp_expert import _forward as expert


def _forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, content = inputs
    x, offsets, depth = given[:3]
    arguments: tuple[Any, ...] = (*given, False)
    y = expert(*arguments)
    last = y[:, ragged.last_tokens(offsets)]
    mean = pool(x, offsets, depth, False) if content else x.new_zeros(0)
    return last, pool(y, offsets, depth, False), mean


def fwd(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``mlp_expert_pooled_fwd`` of the op's schema."""
    with torch.no_grad():
        return _forward(*inputs)


def bwd(
    d_last: Tensor, d_pooled: Tensor, d_content: Tensor, *inputs: Any
) -> tuple[Tensor, ...]:
    """``mlp_expert_pooled_bwd``: gradients of x and the six parameters."""
    grads = (d_last, d_pooled, d_content) if inputs[-1] else (d_last, d_pooled)
    return recompute(_forward, inputs, (0, *range(3, 9)), grads)
