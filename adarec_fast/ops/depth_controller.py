"""``depth_controller``: jagged GRU, mean pool and logits over the depths (Eq. 1, 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ragged
from ..reference.depth_controller import depth_controller as reference
from ._autocast import Autocast
from ._library import check_index, check_shape, choose, define, keeps, run

_INPUTS = (
    "Tensor embeddings, Tensor offsets, Tensor sequence_bias, Tensor w_ih, Tensor w_hh, "
    "Tensor b_hh, Tensor w_out, Tensor b_out, int max_length"
)


def _fake_forward(embeddings: Tensor, offsets: Tensor, sequence_bias: Tensor, w_ih: Tensor,
                  w_hh: Tensor, b_hh: Tensor, w_out: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return (
        embeddings.new_empty(offsets.shape[0] - 1, w_out.shape[0]),
        embeddings.new_empty(embeddings.shape[0], w_hh.shape[1]),
    )


def _fake_backward(grad_logits: Tensor, hidden: Tensor, embeddings: Tensor, offsets: Tensor,
                   *rest: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in (embeddings, *rest[:6]))


def _kept_shape(embeddings: Tensor, w_hh: Tensor) -> tuple[int, int]:
    """Of what the C++ forward leaves: ``depth_controller_kept`` of ``csrc/cpu``."""
    return embeddings.shape[0], 4 * ((w_hh.shape[1] + 15) // 16 * 16)


def _fake_kept(embeddings: Tensor, offsets: Tensor, sequence_bias: Tensor, w_ih: Tensor,
               w_hh: Tensor, *_: Any) -> Tensor:
    return embeddings.new_empty(_kept_shape(embeddings, w_hh), dtype=torch.float32)


define(
    "depth_controller",
    f"({_INPUTS}) -> (Tensor, Tensor)",
    f"(Tensor grad_logits, Tensor hidden, {_INPUTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_forward,
    _fake_backward,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
    fake_kept=_fake_kept,
)


class _DepthController(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, *inputs: Any) -> tuple[Tensor, Tensor]:
        ctx.backend, ctx.autocast, ctx.max_length = backend, Autocast.current(inputs[0]), inputs[8]
        rows, columns = _kept_shape(inputs[0], inputs[4])
        ctx.kept = keeps(backend, rows * columns)
        if ctx.kept:
            logits, hidden, kept = torch.ops.adarec_fast.depth_controller_keep(*inputs, backend)
            ctx.save_for_backward(hidden, kept, *inputs[:8])
        else:
            logits, hidden = torch.ops.adarec_fast.depth_controller_fwd(*inputs, backend)
            ctx.save_for_backward(hidden, *inputs[:8])
        ctx.mark_non_differentiable(hidden)
        ctx.set_materialize_grads(False)  # zeros for hidden's would cost a pass over its tokens
        return logits, hidden

    @staticmethod
    def backward(ctx: Any, grad_logits: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_logits is None:
            return (None,) * 10
        with ctx.autocast.restored():
            run = torch.ops.adarec_fast.depth_controller_bwd
            if ctx.kept:
                run = torch.ops.adarec_fast.depth_controller_resume
            d_e, *d_weights = run(
                grad_logits.contiguous(), *ctx.saved_tensors, ctx.max_length, ctx.backend
            )
        return None, d_e, None, *d_weights, None


def depth_controller(
    embeddings: Tensor,
    offsets: Tensor,
    sequence_bias: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_hh: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    *,
    max_length: int,
    backend: str = "auto",
) -> Tensor:
    """Logits over the depths 0..T of every sequence.

    Args:
        embeddings: ``[N, D]`` float, E.
        offsets: int64 ``[B+1]``; every sequence has at least one token.
        sequence_bias: ``[B, 3G]``, the length vector's share of the GRU input, W_v v + b_ih.
        w_ih: ``[3G, D]``; w_hh: ``[3G, G]``; b_hh: ``[3G]``: torch.nn.GRU's order (r, z, n).
        w_out, b_out: ``[T+1, G]``, ``[T+1]``.
        max_length: no sequence is longer.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        ``[B, T+1]``.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_shape("embeddings", embeddings, None, None)
    check_index("offsets", offsets)
    check_shape("w_hh", w_hh, None, None)
    gates, size = w_hh.shape
    check_shape("w_hh", w_hh, 3 * size, size)
    check_shape("w_ih", w_ih, gates, embeddings.shape[1])
    check_shape("sequence_bias", sequence_bias, offsets.shape[0] - 1, gates)
    check_shape("b_hh", b_hh, gates)
    check_shape("b_out", b_out, None)
    check_shape("w_out", w_out, b_out.shape[0], size)
    chosen = choose("depth_controller", backend, embeddings.device.type, embeddings.dtype)
    if chosen != "reference":
        return run(
            _DepthController, "depth_controller", chosen, embeddings, offsets, sequence_bias, w_ih,
            w_hh, b_hh, w_out, b_out, max_length,
        )[0]
    padded = ragged.to_padded(embeddings, offsets, max_length)
    valid = ragged.padding_mask(offsets, max_length)
    return reference(padded, valid, sequence_bias, w_ih, w_hh, b_hh, w_out, b_out)[0]
