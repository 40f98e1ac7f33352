"""``dropout`` in Triton: a mask of the noise contract, applied to packed tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import rng
from ._launch import launch
from .philox import keep, philox4

BLOCK = 1024


@triton.jit(do_not_specialize=["elements", "threshold"])
def _dropout_kernel(x_ptr, seed_ptr, y_ptr, elements, threshold, scale, stream,
                    D: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < elements
    word, _, _, _ = philox4(seed_ptr, index, stream, 0, D)
    x = tl.load(x_ptr + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + index, tl.where(keep(word, threshold), x * scale, 0.0), mask=mask)


def fwd(x: Tensor, seed: Tensor, p: float, stream: int) -> Tensor:
    """``dropout_fwd`` of the op's schema; its own backward."""
    x = x.contiguous()
    y = torch.empty_like(x)
    arguments = {
        "x_ptr": x, "seed_ptr": seed, "y_ptr": y, "elements": x.numel(),
        "threshold": rng.dropout_threshold(p), "scale": 1.0 / (1.0 - p), "stream": stream,
        "D": x.shape[1], "BLOCK": BLOCK,
    }
    launch(_dropout_kernel, (triton.cdiv(x.numel(), BLOCK),), arguments, {"num_warps": 4})
    return y
