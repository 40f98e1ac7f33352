"""``level_pool`` in Triton: means over jagged sequences at every computed level.

A program takes one sequence and four levels and walks over its tokens, so sums have the same order
whatever the batch. Sequences are short: a mean of 6 to 8 tokens is read in one or two steps.

Memory bounds it: x is read, or its gradient written, once; at 8,192 users (D = 64, T = 8) 80 MB, 24
us on an H100 and 86 us on an RTX 3090. A warp for a sequence and a single level would have 2 KB
under way, a load for each of its two steps; with four levels it has 8 KB of independent loads, and
a batch of 256 users is 768 blocks to be started instead of 2,304.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch, padded_size

STEP, LEVELS = 8, 4


@triton.jit
def _span(offsets_ptr, depth_ptr, planes, HAS_DEPTH: tl.constexpr, LEVELS: tl.constexpr):
    """Sequence, levels, which of them are computed; first token, and how many there are."""
    sequence = tl.program_id(0)
    level = tl.program_id(1) * LEVELS + tl.arange(0, LEVELS)
    begin = tl.load(offsets_ptr + sequence)
    length = (tl.load(offsets_ptr + sequence + 1) - begin).to(tl.int32)
    there = level < planes
    if HAS_DEPTH:
        there &= level <= tl.load(depth_ptr + sequence)
    # Nothing to walk over where no level is computed.
    length = tl.where(tl.max(there.to(tl.int32)) > 0, length, 0)
    return sequence, level.to(tl.int64), there, begin, length


@triton.jit(do_not_specialize=["tokens", "batch", "planes"])
def _forward_kernel(
    x_ptr, offsets_ptr, depth_ptr, y_ptr, tokens, batch, planes,
    D: tl.constexpr, BLOCK_D: tl.constexpr, STEP: tl.constexpr, LEVELS: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_DEPTH: tl.constexpr,
):
    sequence, level, there, begin, length = _span(offsets_ptr, depth_ptr, planes, HAS_DEPTH, LEVELS)
    dims = tl.arange(0, BLOCK_D)
    mask = there[:, None] & (dims < D)[None, :]
    at_plane = (level * tokens * D)[:, None] + dims[None, :]
    total = tl.zeros((LEVELS, BLOCK_D), tl.float32)
    if CAUSAL:
        for place in range(0, length):
            at = at_plane + (begin + place) * D
            total += tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
            tl.store(y_ptr + at, total / (place + 1), mask=mask)
    else:
        for place in range(0, length, STEP):
            step = place + tl.arange(0, STEP)
            at = at_plane[:, None, :] + ((begin + step) * D)[None, :, None]
            real = mask[:, None, :] & (step < length)[None, :, None]
            total += tl.sum(tl.load(x_ptr + at, mask=real, other=0.0).to(tl.float32), 1)
        at_mean = ((level * batch + sequence) * D)[:, None] + dims[None, :]
        written = mask & (tl.zeros_like(at_mean) < length)
        tl.store(y_ptr + at_mean, total / tl.maximum(length, 1).to(tl.float32), mask=written)


@triton.jit(do_not_specialize=["tokens", "batch", "planes"])
def _backward_kernel(
    grad_ptr, offsets_ptr, depth_ptr, d_x_ptr, tokens, batch, planes,
    D: tl.constexpr, BLOCK_D: tl.constexpr, STEP: tl.constexpr, LEVELS: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_DEPTH: tl.constexpr,
):
    sequence, level, there, begin, length = _span(offsets_ptr, depth_ptr, planes, HAS_DEPTH, LEVELS)
    dims = tl.arange(0, BLOCK_D)
    mask = there[:, None] & (dims < D)[None, :]
    at_plane = (level * tokens * D)[:, None] + dims[None, :]
    if CAUSAL:
        # A token is in the mean of itself and of all that follow, so walk from the end.
        total = tl.zeros((LEVELS, BLOCK_D), tl.float32)
        for done in range(0, length):
            at = at_plane + (begin + length - 1 - done) * D
            grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
            total += grad / (length - done).to(tl.float32)
            tl.store(d_x_ptr + at, total, mask=mask)
    else:
        at_mean = ((level * batch + sequence) * D)[:, None] + dims[None, :]
        read = mask & (tl.zeros_like(at_mean) < length)
        share = tl.load(grad_ptr + at_mean, mask=read, other=0.0).to(tl.float32)
        share /= tl.maximum(length, 1).to(tl.float32)
        for done in range(0, length, STEP):
            step = done + tl.arange(0, STEP)
            at = at_plane[:, None, :] + ((begin + step) * D)[None, :, None]
            real = mask[:, None, :] & (step < length)[None, :, None]
            rows = tl.zeros((LEVELS, STEP, BLOCK_D), tl.float32) + share[:, None, :]
            tl.store(d_x_ptr + at, rows, mask=real)


def _launch(kernel: object, source: str, target: str, x: Tensor, y: Tensor, offsets: Tensor,
            depth: Tensor | None, causal: bool, tokens: int) -> Tensor:
    planes, _, size = x.shape
    block = padded_size(size)
    batch = offsets.shape[0] - 1
    arguments = {
        source: x, "offsets_ptr": offsets, "depth_ptr": depth, target: y, "tokens": tokens,
        "batch": batch, "planes": planes, "D": size, "BLOCK_D": block, "STEP": STEP,
        "LEVELS": LEVELS, "CAUSAL": causal, "HAS_DEPTH": depth is not None,
    }
    # A warp reads 8 rows of 64 floats in four 16-byte loads a thread, of each level.
    options = {"num_warps": 1 if block <= 64 else 2 if block <= 128 else 4}
    launch(kernel, (batch, triton.cdiv(planes, LEVELS)), arguments, options)
    return y


def fwd(x: Tensor, offsets: Tensor, depth: Tensor | None, causal: bool) -> Tensor:
    """``level_pool_fwd`` of the op's schema: ``[K, B, D]``, or ``[K, N, D]`` if causal."""
    x = x.contiguous()
    levels, tokens, size = x.shape
    y = x.new_empty(levels, tokens if causal else offsets.shape[0] - 1, size)
    return _launch(_forward_kernel, "x_ptr", "y_ptr", x, y, offsets, depth, causal, tokens)


def bwd(grad: Tensor, offsets: Tensor, depth: Tensor | None, causal: bool, tokens: int) -> Tensor:
    """``level_pool_bwd``: the gradient of x, ``[K, tokens, D]``."""
    grad = grad.contiguous()
    d_x = grad.new_empty(grad.shape[0], tokens, grad.shape[2])
    return _launch(
        _backward_kernel, "grad_ptr", "d_x_ptr", grad, d_x, offsets, depth, causal, tokens
    )
