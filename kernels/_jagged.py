"""Device functions for packed tokens: whose token is it, and how deep does it go."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sequence_of(tokens, offsets_ptr, batch, steps):
    """Sequence of each token (int64 in, int32 out) by binary search; ``batch`` at capacity."""
    low = tl.zeros_like(tokens).to(tl.int32)
    high = low + batch
    for _ in range(steps):
        middle = (low + high) // 2
        open_ = low < high
        end = tl.load(offsets_ptr + middle + 1, mask=open_, other=0)
        after = open_ & (end <= tokens)
        low = tl.where(after, middle + 1, low)
        high = tl.where(open_ & ~after, middle, high)
    return low


@triton.jit
def planes_of(rows, tokens, offsets_ptr, depth_ptr, batch, steps, planes,
              HAS_DEPTH: tl.constexpr, LAST: tl.constexpr):
    """How many levels exist for each row, int32: depth + 1, or 0 for rows that do not exist.

    A row is a token, or with LAST a sequence, which stands for its last token. Without a depth
    every existing row has all ``planes``.
    """
    if LAST:
        sequence = tl.minimum(rows, batch).to(tl.int32)
    else:
        sequence = sequence_of(rows, offsets_ptr, batch, steps)
    real = (rows < tokens) & (sequence < batch)
    if HAS_DEPTH:
        count = tl.load(depth_ptr + sequence, mask=real, other=-1).to(tl.int32) + 1
    else:
        count = tl.where(real, planes, 0)
    return count


@triton.jit
def levels_of(depth_ptr, sequence, exists, planes, HAS_DEPTH: tl.constexpr):
    """How many of ``planes`` levels exist for each sequence, int32; 0 where none does."""
    count = tl.where(exists, planes, 0)
    if HAS_DEPTH:
        depth = tl.load(depth_ptr + sequence, mask=exists, other=-1).to(tl.int32)
        count = tl.minimum(count, depth + 1)
    return count


@triton.jit
def token_of(rows, exists, offsets_ptr, LAST: tl.constexpr):
    """Token of each row, int64: itself, or with LAST the last one of the sequence."""
    if LAST:
        token = tl.load(offsets_ptr + rows + 1, mask=exists, other=1) - 1
    else:
        token = rows
    return token
