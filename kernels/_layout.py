"""Whose token is it and how deep does it go, written once a call for kernels that ask often."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._jagged import sequence_of
from ._launch import launch, search_steps

BLOCK = 128


class Layout(NamedTuple):
    """Of each token, int32 ``[N]``: its sequence, B at capacity, and the levels that exist."""

    sequence: Tensor
    reach: Tensor


@triton.jit(do_not_specialize=["tokens", "batch", "steps", "planes"])
def _layout_kernel(offsets_ptr, depth_ptr, sequence_ptr, reach_ptr, tokens, batch, steps, planes,
                   BLOCK: tl.constexpr, HAS_DEPTH: tl.constexpr):
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    sequence = sequence_of(token, offsets_ptr, batch, steps)
    real = (token < tokens) & (sequence < batch)
    reach = tl.where(real, planes, 0)
    if HAS_DEPTH:
        depth = tl.load(depth_ptr + sequence, mask=real, other=-1).to(tl.int32)
        reach = tl.minimum(reach, depth + 1)
    tl.store(sequence_ptr + token, sequence, mask=token < tokens)
    tl.store(reach_ptr + token, reach, mask=token < tokens)


def layout(x: Tensor, offsets: Tensor, depth: Tensor | None) -> Layout:
    """The layout of ``x [K, N, D]``."""
    planes, tokens, _ = x.shape
    batch = offsets.shape[0] - 1
    sequence = torch.empty(tokens, dtype=torch.int32, device=x.device)
    reach = torch.empty_like(sequence)
    arguments = {
        "offsets_ptr": offsets, "depth_ptr": depth, "sequence_ptr": sequence, "reach_ptr": reach,
        "tokens": tokens, "batch": batch, "steps": search_steps(batch), "planes": planes,
        "BLOCK": BLOCK, "HAS_DEPTH": depth is not None,
    }
    launch(_layout_kernel, (triton.cdiv(tokens, BLOCK),), arguments, {"num_warps": 4})
    return Layout(sequence, reach)


def levels_of_sequences(x: Tensor, offsets: Tensor, depth: Tensor | None) -> Tensor:
    """How many levels of ``x [K, N, D]`` exist for each sequence, int32 ``[B]``."""
    planes, batch = x.shape[0], offsets.shape[0] - 1
    if depth is None:
        return torch.full((batch,), planes, dtype=torch.int32, device=x.device)
    return (depth + 1).clamp(max=planes).to(torch.int32)
