"""Eq. 1 and 2 on packed tokens: sequences sorted by length, a batch that shrinks step by step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ragged
from ._common import recompute


def _forward(
    embeddings: Tensor,
    offsets: Tensor,
    sequence_bias: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_hh: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    max_length: int,
) -> tuple[Tensor, Tensor]:
    tokens, batch = embeddings.shape[0], offsets.shape[0] - 1
    sizes, order = ragged.lengths(offsets).sort(descending=True, stable=True)
    running = torch.bincount(sizes, minlength=1).flip(0).cumsum(0).flip(0)[1:].tolist()
    first = offsets[order]
    # Capacity may hold NaN, which times a gradient of zero would reach w_ih.
    inputs = F.linear(embeddings[: int(offsets[-1])], w_ih)
    bias = sequence_bias[order]
    hidden = embeddings.new_zeros(batch, w_hh.shape[1])
    total = torch.zeros_like(hidden)
    steps, places = [], []
    for step, count in enumerate(running):
        rows = first[:count] + step
        in_r, in_z, in_n = (inputs[rows] + bias[:count]).chunk(3, -1)
        rec_r, rec_z, rec_n = F.linear(hidden[:count], w_hh, b_hh).chunk(3, -1)
        update = torch.sigmoid(in_z + rec_z)
        new = torch.tanh(in_n + torch.sigmoid(in_r + rec_r) * rec_n)
        hidden = ((1 - update) * new + update * hidden[:count]).to(embeddings.dtype)
        steps.append(hidden)
        places.append(rows)
        # Sorted by length: whoever still runs stands in front.
        total = torch.cat([total[:count] + hidden, total[count:]])
    pooled = embeddings.new_zeros(batch, hidden.shape[1]).index_copy(
        0, order, total / sizes.clamp(min=1)[:, None].to(total.dtype)
    )
    logits = F.linear(pooled, w_out, b_out).to(embeddings.dtype)
    states = embeddings.new_zeros(tokens, w_hh.shape[1])
    if steps:
        states = states.index_copy(0, torch.cat(places), torch.cat(steps))
    return logits, states


def fwd(*inputs: Any) -> tuple[Tensor, Tensor]:
    """``depth_controller_fwd`` of the op's schema."""
    with torch.no_grad():
        return _forward(*inputs)


def bwd(grad_logits: Tensor, hidden: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """``depth_controller_bwd``: gradients of every input tensor but the offsets."""
    return recompute(_forward, inputs, (0, *range(2, 8)), (grad_logits,))
