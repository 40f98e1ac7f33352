"""``linear_cross_entropy``: Eq. 13 over the whole catalogue, gradients in the same pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference.linear_cross_entropy import linear_cross_entropy as reference
from ._autocast import Autocast
from ._library import check_index, check_shape, choose, define, require
from ._ownership import give_away


def _fake_forward(hidden: Tensor, weight: Tensor, targets: Tensor, needs_grad: bool,
                  backend: str) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    loss = hidden.new_empty((), dtype=wide)
    if backend == "triton":
        state = hidden.new_empty(2 * hidden.shape[0] + 1 if needs_grad else 0, dtype=wide)
        return loss, hidden.new_empty(hidden.shape if needs_grad else 0), state
    if not needs_grad:
        return loss, hidden.new_empty(0), weight.new_empty(0)
    return loss, torch.empty_like(hidden), torch.empty_like(weight)


def _fake_backward(grad: Tensor, d_hidden: Tensor, state: Tensor, hidden: Tensor, weight: Tensor,
                   targets: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)


# Forward gives the loss, d_hidden for a gradient of 1, and what else the backward pass needs: of
# packed and cpp d_weight for a gradient of 1, of triton the softmax's normalisers, from which its
# backward makes d_weight.
define(
    "linear_cross_entropy",
    "(Tensor hidden, Tensor weight, Tensor targets, bool needs_grad) -> (Tensor, Tensor, Tensor)",
    "(Tensor grad, Tensor d_hidden, Tensor state, Tensor hidden, Tensor weight, Tensor targets) "
    "-> (Tensor, Tensor)",
    _fake_forward,
    _fake_backward,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
    waits=False,
)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, hidden: Tensor, weight: Tensor, targets: Tensor,
                needs_grad: bool) -> Tensor:
        loss, d_hidden, state = torch.ops.adarec_fast.linear_cross_entropy_fwd(
            hidden, weight, targets, needs_grad, backend
        )
        ctx.later = backend == "triton"
        if ctx.later:
            ctx.autocast = Autocast.current(hidden)
            ctx.save_for_backward(d_hidden, state, hidden, weight, targets)
        else:
            ctx.save_for_backward(d_hidden, state)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.later:
            with ctx.autocast.restored():
                d_hidden, d_weight = torch.ops.adarec_fast.linear_cross_entropy_bwd(
                    grad, *ctx.saved_tensors, "triton"
                )
        else:
            d_hidden, d_weight = (found * grad for found in ctx.saved_tensors)
        return None, d_hidden, give_away(d_weight), None, None


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Mean of -log softmax(h W^T)[target], no [rows, items] tensor kept.

    With smoothing s the target has a share 1 - s, and every item s / V (Szegedy et al. 2016).

    Args:
        hidden: ``[R, D]`` float.
        weight: ``[V+1, D]``, the item embeddings; row 0 is padding and takes no part.
        targets: int64 ``[R]`` in 1..V; rows with target 0 are left out.
        label_smoothing: s, 0 <= s < 1.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        A scalar, float32 or wider; 0 if no row counts.

    Raises:
        ValueError: a shape, a dtype or s that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_shape("hidden", hidden, None, None)
    check_shape("weight", weight, None, hidden.shape[1])
    check_index("targets", targets, hidden.shape[0])
    require(
        0.0 <= label_smoothing < 1.0,
        lambda: f"label_smoothing={label_smoothing} must lie in [0, 1)",
    )
    chosen = choose("linear_cross_entropy", backend, hidden.device.type, hidden.dtype)
    if chosen == "reference":
        return reference(hidden, weight, targets, label_smoothing)
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss: Tensor = _LinearCrossEntropy.apply(chosen, hidden, weight, targets, needs_grad)
    if not label_smoothing:
        return loss
    # Padding has no gradient; a row that is left out takes item 1 with a weight of 0.
    wanted = F.embedding(targets.clamp(min=1), weight)
    return loss + label_smoothing * target_lead(hidden, wanted, weight[1:].mean(0), targets)


def target_lead(hidden: Tensor, wanted: Tensor, mean: Tensor, targets: Tensor) -> Tensor:
    """How far the target's logit is above a mean of others, h e_t - h m, the mean over the rows.

    A smoothed cross entropy is the plain one plus s times this. Products and sums are float32 or
    wider, whatever autocast says: nothing here is large enough for tensor cores.

    Args:
        hidden: ``[R, D]``; rows whose target is 0 may hold anything.
        wanted: ``[R, D]``, finite, the embedding of each target.
        mean: m, ``[D]`` for all rows or ``[R, D]``, finite, such as the mean of all items.
        targets: int64 ``[R]``; rows of target 0 are left out.

    Returns:
        A scalar; 0 if no row counts.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    counted = targets > 0
    rows = torch.where(counted[:, None], hidden.to(wide), 0.0)
    above = rows.sum(0) if mean.dim() == 1 else rows
    total = (rows * wanted.to(wide)).sum() - (above * mean.to(wide)).sum()
    return total / counted.sum().clamp(min=1)
