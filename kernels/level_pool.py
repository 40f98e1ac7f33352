"""``level_pool`` in Triton: means over jagged sequences at every computed level.

A program takes one sequence and one level and walks over its tokens, so sums have the same order
whatever the batch. Sequences are short: a mean of 6 to 8 tokens is read in one or two steps.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch, padded_size

STEP = 8


@triton.jit
def _span(offsets_ptr, depth_ptr, HAS_DEPTH: tl.constexpr):
    """Sequence, level, first token, end; an empty span where the level is not computed."""
    sequence, level = tl.program_id(0), tl.program_id(1)
    begin = tl.load(offsets_ptr + sequence)
    end = tl.load(offsets_ptr + sequence + 1)
    if HAS_DEPTH:
        end = tl.where(tl.load(depth_ptr + sequence) >= level, end, begin)
    return sequence, level, begin, end


@triton.jit(do_not_specialize=["tokens", "batch"])
def _forward_kernel(
    x_ptr, offsets_ptr, depth_ptr, y_ptr, tokens, batch,
    D: tl.constexpr, BLOCK_D: tl.constexpr, STEP: tl.constexpr, CAUSAL: tl.constexpr,
    HAS_DEPTH: tl.constexpr,
):
    sequence, level, begin, end = _span(offsets_ptr, depth_ptr, HAS_DEPTH)
    length = (end - begin).to(tl.int32)
    dims = tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), tl.float32)
    plane = level.to(tl.int64) * tokens * D
    if CAUSAL:
        for place in range(0, length):
            at = plane + (begin + place) * D + dims
            total += tl.load(x_ptr + at, mask=dims < D, other=0.0).to(tl.float32)
            tl.store(y_ptr + at, total / (place + 1), mask=dims < D)
    else:
        for place in range(0, length, STEP):
            token = begin + place + tl.arange(0, STEP)
            mask = (token < end)[:, None] & (dims < D)[None, :]
            at = plane + token[:, None] * D + dims[None, :]
            total += tl.sum(tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32), 0)
        at = (level.to(tl.int64) * batch + sequence) * D + dims
        written = tl.where(length > 0, D, 0)
        tl.store(y_ptr + at, total / tl.maximum(length, 1).to(tl.float32), mask=dims < written)


@triton.jit(do_not_specialize=["tokens", "batch"])
def _backward_kernel(
    grad_ptr, offsets_ptr, depth_ptr, d_x_ptr, tokens, batch,
    D: tl.constexpr, BLOCK_D: tl.constexpr, STEP: tl.constexpr, CAUSAL: tl.constexpr,
    HAS_DEPTH: tl.constexpr,
):
    sequence, level, begin, end = _span(offsets_ptr, depth_ptr, HAS_DEPTH)
    length = (end - begin).to(tl.int32)
    dims = tl.arange(0, BLOCK_D)
    plane = level.to(tl.int64) * tokens * D
    if CAUSAL:
        # A token is in the mean of itself and of all that follow, so walk from the end.
        total = tl.zeros((BLOCK_D,), tl.float32)
        for done in range(0, length):
            at = plane + (end - 1 - done) * D + dims
            grad = tl.load(grad_ptr + at, mask=dims < D, other=0.0).to(tl.float32)
            total += grad / (length - done).to(tl.float32)
            tl.store(d_x_ptr + at, total, mask=dims < D)
    else:
        at = (level.to(tl.int64) * batch + sequence) * D + dims
        read = tl.where(length > 0, D, 0)
        share = tl.load(grad_ptr + at, mask=dims < read, other=0.0).to(tl.float32)
        share /= tl.maximum(length, 1).to(tl.float32)
        for done in range(0, length, STEP):
            token = begin + done + tl.arange(0, STEP)
            mask = (token < end)[:, None] & (dims < D)[None, :]
            rows = tl.zeros((STEP, BLOCK_D), tl.float32) + share[None, :]
            tl.store(d_x_ptr + plane + token[:, None] * D + dims[None, :], rows, mask=mask)


def _launch(kernel: object, source: str, target: str, x: Tensor, y: Tensor, offsets: Tensor,
            depth: Tensor | None, causal: bool, tokens: int) -> Tensor:
    levels, _, size = x.shape
    block = padded_size(size)
    batch = offsets.shape[0] - 1
    arguments = {
        source: x, "offsets_ptr": offsets, "depth_ptr": depth, target: y, "tokens": tokens,
        "batch": batch, "D": size, "BLOCK_D": block, "STEP": STEP, "CAUSAL": causal,
        "HAS_DEPTH": depth is not None,
    }
    # A warp reads 8 rows of 64 floats in four 16-byte loads a thread.
    options = {"num_warps": 1 if block <= 64 else 2 if block <= 128 else 4}
    launch(kernel, (batch, levels), arguments, options)
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
