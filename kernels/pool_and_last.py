"""``pool_and_last`` in Triton: a level's mean and its last token, and back.

A program takes one sequence and four levels, as ``level_pool``'s do. Memory bounds it: x is read,
or its gradient written, once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch, padded_size

STEP, LEVELS = 8, 4


@triton.jit
def _span(offsets_ptr, depth_ptr, planes, LEVELS: tl.constexpr):
    """Sequence, levels, which of them are computed; first token, and how many there are."""
    sequence = tl.program_id(0)
    level = tl.program_id(1) * LEVELS + tl.arange(0, LEVELS)
    there = (level < planes) & (level <= tl.load(depth_ptr + sequence))
    begin = tl.load(offsets_ptr + sequence)
    length = (tl.load(offsets_ptr + sequence + 1) - begin).to(tl.int32)
    # Nothing to walk over where no level is computed.
    length = tl.where(tl.max(there.to(tl.int32)) > 0, length, 0)
    return sequence, level.to(tl.int64), there, begin, length


@triton.jit(do_not_specialize=["tokens", "batch", "planes"])
def _forward_kernel(
    x_ptr, offsets_ptr, depth_ptr, mean_ptr, last_ptr, tokens, batch, planes,
    D: tl.constexpr, BLOCK_D: tl.constexpr, STEP: tl.constexpr, LEVELS: tl.constexpr,
):
    sequence, level, there, begin, length = _span(offsets_ptr, depth_ptr, planes, LEVELS)
    dims = tl.arange(0, BLOCK_D)
    mask = there[:, None] & (dims < D)[None, :]
    at_plane = (level * tokens * D)[:, None] + dims[None, :]
    total = tl.zeros((LEVELS, BLOCK_D), tl.float32)
    for place in range(0, length, STEP):
        step = place + tl.arange(0, STEP)
        at = at_plane[:, None, :] + ((begin + step) * D)[None, :, None]
        real = mask[:, None, :] & (step < length)[None, :, None]
        total += tl.sum(tl.load(x_ptr + at, mask=real, other=0.0).to(tl.float32), 1)
    at_row = ((level * batch + sequence) * D)[:, None] + dims[None, :]
    mean = total / tl.maximum(length, 1).to(tl.float32)
    tl.store(mean_ptr + at_row, mean, mask=mask)
    last = tl.load(x_ptr + at_plane + (begin + length - 1) * D, mask=mask, other=0.0)
    tl.store(last_ptr + at_row, last, mask=mask)


@triton.jit(do_not_specialize=["tokens", "batch", "planes"])
def _backward_kernel(
    d_mean_ptr, d_last_ptr, offsets_ptr, depth_ptr, d_x_ptr, tokens, batch, planes,
    D: tl.constexpr, BLOCK_D: tl.constexpr, STEP: tl.constexpr, LEVELS: tl.constexpr,
):
    sequence, level, there, begin, length = _span(offsets_ptr, depth_ptr, planes, LEVELS)
    dims = tl.arange(0, BLOCK_D)
    mask = there[:, None] & (dims < D)[None, :]
    at_plane = (level * tokens * D)[:, None] + dims[None, :]
    at_row = ((level * batch + sequence) * D)[:, None] + dims[None, :]
    share = tl.load(d_mean_ptr + at_row, mask=mask, other=0.0).to(tl.float32)
    share /= tl.maximum(length, 1).to(tl.float32)
    d_last = tl.load(d_last_ptr + at_row, mask=mask, other=0.0).to(tl.float32)
    for done in range(0, length, STEP):
        step = done + tl.arange(0, STEP)
        at = at_plane[:, None, :] + ((begin + step) * D)[None, :, None]
        final = (step == length - 1)[None, :, None]
        rows = share[:, None, :] + tl.where(final, d_last[:, None, :], 0.0)
        real = mask[:, None, :] & (step < length)[None, :, None]
        tl.store(d_x_ptr + at, rows, mask=real)


def _launch(kernel: object, tensors: dict[str, Tensor], x: Tensor, offsets: Tensor,
            depth: Tensor) -> None:
    """``x`` is x or its gradient, ``[K, N, D]``."""
    planes, tokens, size = x.shape
    block, batch = padded_size(size), depth.shape[0]
    # A warp has 8 KB of loads under way at D = 64.
    options = {"num_warps": 1 if block <= 64 else 2 if block <= 128 else 4}
    launch(kernel, (batch, triton.cdiv(planes, LEVELS)), {
        **tensors, "offsets_ptr": offsets, "depth_ptr": depth, "tokens": tokens, "batch": batch,
        "planes": planes, "D": size, "BLOCK_D": block, "STEP": STEP, "LEVELS": LEVELS,
    }, options)


def fwd(x: Tensor, offsets: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """``pool_and_last_fwd`` of the op's schema: two ``[K, B, D]``."""
    x = x.contiguous()
    mean, last = (x.new_empty(x.shape[0], depth.shape[0], x.shape[2]) for _ in range(2))
    _launch(_forward_kernel, {"x_ptr": x, "mean_ptr": mean, "last_ptr": last}, x, offsets, depth)
    return mean, last


def bwd(d_mean: Tensor, d_last: Tensor, offsets: Tensor, depth: Tensor, tokens: int) -> Tensor:
    """``pool_and_last_bwd``: the gradient of x, ``[K, tokens, D]``."""
    d_x = d_mean.new_empty(d_mean.shape[0], tokens, d_mean.shape[2])
    tensors = {"d_mean_ptr": d_mean, "d_last_ptr": d_last, "d_x_ptr": d_x}
    _launch(_backward_kernel, tensors, d_x, offsets, depth)
    return d_x
