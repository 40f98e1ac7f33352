"""``mlp_expert_pooled`` in Triton: the coarse expert, and means over tokens.

Forward is ``mlp_expert``'s, and a kernel that walks over both its result and its input as
``level_pool`` does. Backward is ``mlp_expert``'s kernels: a token's gradient is a share of its
sequence's, which they read there, and dx takes up the share of the input's mean. So no gradient of
every token at every level is written but dx; as separate ops there are four and two sums of them,
at 8,192 users (D = 64, T = 8) 1 GB: 0.3 ms on an H100 and 1.1 ms on an RTX 3090.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..packed import mlp_expert_pooled as packed
from . import mlp_expert
from ._launch import launch, padded_size
from .level_pool import LEVELS, STEP, _span


@triton.jit(do_not_specialize=["tokens", "batch", "planes"])
def _pool_kernel(
    x_ptr, y_ptr, offsets_ptr, depth_ptr, last_ptr, pooled_ptr, content_ptr, tokens, batch, planes,
    D: tl.constexpr, BLOCK_D: tl.constexpr, STEP: tl.constexpr, LEVELS: tl.constexpr,
):
    sequence, level, there, begin, length = _span(offsets_ptr, depth_ptr, planes, True, LEVELS)
    dims = tl.arange(0, BLOCK_D)
    mask = there[:, None] & (dims < D)[None, :]
    at_plane = (level * tokens * D)[:, None] + dims[None, :]
    pooled = tl.zeros((LEVELS, BLOCK_D), tl.float32)
    content = tl.zeros((LEVELS, BLOCK_D), tl.float32)
    for place in range(0, length, STEP):
        step = place + tl.arange(0, STEP)
        at = at_plane[:, None, :] + ((begin + step) * D)[None, :, None]
        real = mask[:, None, :] & (step < length)[None, :, None]
        pooled += tl.sum(tl.load(y_ptr + at, mask=real, other=0.0).to(tl.float32), 1)
        if content_ptr is not None:
            content += tl.sum(tl.load(x_ptr + at, mask=real, other=0.0).to(tl.float32), 1)
    at_mean = ((level * batch + sequence) * D)[:, None] + dims[None, :]
    written = mask & (tl.zeros_like(at_mean) < length)
    count = tl.maximum(length, 1).to(tl.float32)
    tl.store(pooled_ptr + at_mean, pooled / count, mask=written)
    if content_ptr is not None:
        tl.store(content_ptr + at_mean, content / count, mask=written)
    at_last = at_plane + (begin + length - 1) * D
    tl.store(last_ptr + at_mean, tl.load(y_ptr + at_last, mask=written, other=0.0), mask=written)


def fwd(x: Tensor, offsets: Tensor, depth: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``mlp_expert_pooled_fwd`` of the op's schema: each ``[K, B, D]``."""
    *given, residual, wanted = rest
    if residual:
        return packed.fwd(x, offsets, depth, *rest)
    x = x.contiguous()
    y = mlp_expert.fwd(x, offsets, depth, *given, residual, False)
    planes, tokens, size = x.shape
    batch, block = offsets.shape[0] - 1, padded_size(size)
    last, pooled = (x.new_empty(planes, batch, size) for _ in range(2))
    content = torch.empty_like(last) if wanted else x.new_empty(0)
    arguments = {
        "x_ptr": x, "y_ptr": y, "offsets_ptr": offsets, "depth_ptr": depth, "last_ptr": last,
        "pooled_ptr": pooled, "content_ptr": content if wanted else None, "tokens": tokens,
        "batch": batch, "planes": planes, "D": size, "BLOCK_D": block, "STEP": STEP,
        "LEVELS": LEVELS,
    }
    options = {"num_warps": 1 if block <= 64 else 2 if block <= 128 else 4}
    launch(_pool_kernel, (batch, triton.cdiv(planes, LEVELS)), arguments, options)
    return last, pooled, content


def bwd(
    d_last: Tensor, d_pooled: Tensor, d_content: Tensor, *inputs: Any
) -> tuple[Tensor, ...]:
    """``mlp_expert_pooled_bwd``: gradients of x, w1, b1, w2, b2, ln_w and ln_b."""
    *given, residual, wanted = inputs
    if residual:
        return packed.bwd(d_last, d_pooled, d_content, *inputs)
    return mlp_expert.backward(
        {
            "grad_ptr": d_pooled.contiguous(), "last_ptr": d_last.contiguous(),
            "content_ptr": d_content.contiguous() if wanted else None,
        },
        *given, False,
    )
