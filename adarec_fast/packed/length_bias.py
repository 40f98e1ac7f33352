"""The length's bias behind the op: the reference's own code, and its gradient by hand.

Autograd's own products in its own order, so the same bits; making the forward pass again for it
would cost half as much again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ragged
from ..reference.length_bias import length_bias as reference


def _share(offsets: Tensor, max_length: int, dtype: torch.dtype) -> Tensor:
    return ragged.lengths(offsets)[:, None].to(dtype) / max_length


def fwd(
    offsets: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w_v: Tensor, b_ih: Tensor,
    max_length: int,
) -> tuple[Tensor, Tensor]:
    """``length_bias_fwd`` of the op's schema."""
    with torch.no_grad():
        bias, v = reference(_share(offsets, max_length, w1.dtype), w1, b1, w2, b2, w_v, b_ih)
    return bias.to(w1.dtype), v.to(w1.dtype)


def bwd(
    grad_bias: Tensor, v: Tensor, offsets: Tensor, w1: Tensor, b1: Tensor, w2: Tensor,
    b2: Tensor, w_v: Tensor, b_ih: Tensor, max_length: int,
) -> tuple[Tensor, ...]:
    """``length_bias_bwd``: gradients of the six weights, in their order."""
    weights = (w1, b1, w2, b2, w_v, b_ih)
    dtype = w1.dtype
    if torch.is_autocast_enabled(v.device.type):
        dtype = torch.get_autocast_dtype(v.device.type)
    share = _share(offsets, max_length, w1.dtype).to(dtype)
    grad, v, w1, b1, w2, w_v = (t.to(dtype) for t in (grad_bias, v, w1, b1, w2, w_v))
    with torch.no_grad():
        before = F.linear(share, w1, b1)
        hidden = F.silu(before)
        d_v = grad.mm(w_v)
        d_before = torch.ops.aten.silu_backward(d_v.mm(w2), before)
        found = (
            d_before.t().mm(share), d_before.sum(0), d_v.t().mm(hidden), d_v.sum(0),
            grad.t().mm(v), grad.sum(0),
        )
    return tuple(d.to(w.dtype) for d, w in zip(found, weights, strict=True))
