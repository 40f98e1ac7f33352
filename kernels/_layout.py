"""Whose token is it and how deep does it go, written once a call for kernels that ask often."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._jagged import levels_of, sequence_of
from ._launch import launch, search_steps

BLOCK = 128


class Layout(NamedTuple):
    """Of each token, int32 ``[N]``: its sequence, B at capacity, and the levels that exist."""

    sequence: Tensor
    reach: Tensor


@triton.jit
def lay_out(token, written, offsets_ptr, depth_ptr, sequence_ptr, reach_ptr, tokens, batch, steps,
            planes, HAS_DEPTH: tl.constexpr):
    """Write a :class:`Layout` where ``written``, and give how many levels each token has."""
    sequence = sequence_of(token, offsets_ptr, batch, steps)
    real = (token < tokens) & (sequence < batch)
    reach = levels_of(depth_ptr, sequence, real, planes, HAS_DEPTH)
    tl.store(sequence_ptr + token, sequence, mask=written & (token < tokens))
    tl.store(reach_ptr + token, reach, mask=written & (token < tokens))
    return reach


@triton.jit(do_not_specialize=["tokens", "batch", "steps", "planes"])
def _layout_kernel(offsets_ptr, depth_ptr, sequence_ptr, reach_ptr, tokens, batch, steps, planes,
                   BLOCK: tl.constexpr, HAS_DEPTH: tl.constexpr):
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    lay_out(token, token < tokens, offsets_ptr, depth_ptr, sequence_ptr, reach_ptr, tokens, batch,
            steps, planes, HAS_DEPTH)


def asked(x: Tensor, offsets: Tensor, depth: Tensor | None) -> tuple[Layout, dict[str, object]]:
    """A layout of ``x [K, N, D]`` to be written, and what ``lay_out`` is asked with."""
    planes, tokens, _ = x.shape
    batch = offsets.shape[0] - 1
    sequence = torch.empty(tokens, dtype=torch.int32, device=x.device)
    where = Layout(sequence, torch.empty_like(sequence))
    return where, {
        "offsets_ptr": offsets, "depth_ptr": depth, "sequence_ptr": where.sequence,
        "reach_ptr": where.reach, "batch": batch, "steps": search_steps(batch), "planes": planes,
        "HAS_DEPTH": depth is not None,
    }


def layout(x: Tensor, offsets: Tensor, depth: Tensor | None) -> Layout:
    """The layout of ``x [K, N, D]``, by a launch of its own."""
    where, arguments = asked(x, offsets, depth)
    tokens = x.shape[1]
    arguments |= {"tokens": tokens, "BLOCK": BLOCK}
    launch(_layout_kernel, (triton.cdiv(tokens, BLOCK),), arguments, {"num_warps": 4})
    return where
