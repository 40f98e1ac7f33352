"""``length_bias``: the length's share of the depth controller's input (Eq. 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ragged
from ..reference.length_bias import length_bias as reference
from ._autocast import Autocast
from ._library import check_index, check_shape, choose, define, run

_INPUTS = (
    "Tensor offsets, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor w_v, Tensor b_ih, "
    "int max_length"
)


def _fake_forward(offsets: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w_v: Tensor,
                  b_ih: Tensor, max_length: int, backend: str) -> tuple[Tensor, Tensor]:
    batch = offsets.shape[0] - 1
    return w1.new_empty(batch, w_v.shape[0]), w1.new_empty(batch, w2.shape[0])


def _fake_backward(grad_bias: Tensor, v: Tensor, offsets: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in rest[:6])


define(
    "length_bias",
    f"({_INPUTS}) -> (Tensor, Tensor)",
    f"(Tensor grad_bias, Tensor v, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_forward,
    _fake_backward,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
    waits=False,
)


class _LengthBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, *inputs: Any) -> tuple[Tensor, Tensor]:
        ctx.backend, ctx.autocast, ctx.max_length = backend, Autocast.current(inputs[1]), inputs[7]
        bias, v = torch.ops.adarec_fast.length_bias_fwd(*inputs, backend)
        ctx.save_for_backward(v, *inputs[:7])
        ctx.mark_non_differentiable(v)
        ctx.set_materialize_grads(False)
        return bias, v

    @staticmethod
    def backward(ctx: Any, grad_bias: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_bias is None:
            return (None,) * 9
        with ctx.autocast.restored():
            gradients = torch.ops.adarec_fast.length_bias_bwd(
                grad_bias.contiguous(), *ctx.saved_tensors, ctx.max_length, ctx.backend
            )
        return None, None, *gradients, None


def length_bias(
    offsets: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    w_v: Tensor,
    b_ih: Tensor,
    *,
    max_length: int,
    backend: str = "auto",
) -> Tensor:
    """W_v v + b_ih of every sequence, v = W2 SiLU(W1 length / max_length + b1) + b2.

    Args:
        offsets: int64 ``[B+1]``.
        w1, b1, w2, b2: the length's MLP, ``[D, 1]``, ``[D]``, ``[D, D]``, ``[D]``.
        w_v, b_ih: ``[3G, D]``, ``[3G]``.
        max_length: what a length is divided by.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        ``[B, 3G]``, ``sequence_bias`` of :func:`depth_controller`.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_index("offsets", offsets)
    check_shape("b1", b1, None)
    size = b1.shape[0]
    check_shape("w1", w1, size, 1)
    check_shape("w2", w2, size, size)
    check_shape("b2", b2, size)
    check_shape("b_ih", b_ih, None)
    check_shape("w_v", w_v, b_ih.shape[0], size)
    chosen = choose("length_bias", backend, w1.device.type, w1.dtype)
    if chosen != "reference":
        return run(
            _LengthBias, "length_bias", chosen, offsets, w1, b1, w2, b2, w_v, b_ih, max_length
        )[0]
    share = ragged.lengths(offsets)[:, None].to(w1.dtype) / max_length
    return reference(share, w1, b1, w2, b2, w_v, b_ih)[0].to(w1.dtype)
