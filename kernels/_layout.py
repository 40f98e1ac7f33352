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
    """``sequence`` int32 ``[N]`` of each token, B at capacity; levels that exist, int32.

    ``token_reach [N]`` counts them for tokens, ``row_reach [R]`` for rows: the tokens, or the
    sequences, each of which stands for its last token.
    """

    sequence: Tensor
    token_reach: Tensor
    row_reach: Tensor


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


def layout(x: Tensor, offsets: Tensor, depth: Tensor | None, last_only: bool) -> Layout:
    """The layout of ``x [K, N, D]``; rows are sequences if ``last_only``, else tokens."""
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
    if not last_only:
        return Layout(sequence, reach, reach)
    if depth is None:
        rows = torch.full((batch,), planes, dtype=torch.int32, device=x.device)
    else:
        rows = (depth + 1).clamp(max=planes).to(torch.int32)
    return Layout(sequence, reach, rows)
