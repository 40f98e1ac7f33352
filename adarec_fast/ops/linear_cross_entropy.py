"""``linear_cross_entropy``: Eq. 13 over the whole catalogue, gradients in the same pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.linear_cross_entropy import linear_cross_entropy as reference
from ._library import check_index, check_shape, choose, define
from ._ownership import give_away


def _fake_forward(hidden: Tensor, weight: Tensor, targets: Tensor, needs_grad: bool,
                  backend: str) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if not needs_grad:
        return hidden.new_empty((), dtype=wide), hidden.new_empty(0), weight.new_empty(0)
    return hidden.new_empty((), dtype=wide), torch.empty_like(hidden), torch.empty_like(weight)


define(
    "linear_cross_entropy",
    "(Tensor hidden, Tensor weight, Tensor targets, bool needs_grad) -> (Tensor, Tensor, Tensor)",
    None,
    _fake_forward,
    None,
    cpu=("cpp", "packed"),
    waits=False,
)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, hidden: Tensor, weight: Tensor, targets: Tensor,
                needs_grad: bool) -> Tensor:
        loss, d_hidden, d_weight = torch.ops.adarec_fast.linear_cross_entropy_fwd(
            hidden, weight, targets, needs_grad, backend
        )
        ctx.save_for_backward(d_hidden, d_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_hidden, d_weight = ctx.saved_tensors
        return None, d_hidden * grad, give_away(d_weight * grad), None, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Mean of -log softmax(h W^T)[target], no [rows, items] tensor kept.

    Args:
        hidden: ``[R, D]`` float.
        weight: ``[V+1, D]``, the item embeddings; row 0 is padding and takes no part.
        targets: int64 ``[R]`` in 1..V; rows with target 0 are left out.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        A scalar, float32 or wider; 0 if no row counts.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_shape("hidden", hidden, None, None)
    check_shape("weight", weight, None, hidden.shape[1])
    check_index("targets", targets, hidden.shape[0])
    chosen = choose("linear_cross_entropy", backend, hidden.device.type, hidden.dtype)
    if chosen != "reference":
        needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
        return _LinearCrossEntropy.apply(chosen, hidden, weight, targets, needs_grad)
    return reference(hidden, weight, targets)
