"""``mlp_expert_pooled``: the coarse expert, and the means over tokens that the rest asks for.

Read out at last positions only, of the coarse expert's levels their last rows and, for Eq. 6, their
means over tokens are wanted; the router wants the means of the expert's input. As ops of their own
these make gradients of every token at every level, one each, which are then added up. Here they are
parts of one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ragged, rng
from ._autocast import Autocast
from ._library import check_index, check_seed, check_shape, choose, define, keeps, run
from .level_pool import level_pool
from .mlp_expert import kept_shape, mlp_expert

_INPUTS = (
    "Tensor x, Tensor offsets, Tensor depth, Tensor w1, Tensor b1, Tensor w2, Tensor b2, "
    "Tensor ln_w, Tensor ln_b, float eps, float hidden_dropout, Tensor? seed, int stream, "
    "bool residual, bool content"
)


class PooledLevels(NamedTuple):
    """Each ``[K, B, D]``, not written beyond a depth: the expert's result at last tokens, its mean
    over tokens, and the mean of its input, which is empty if nobody asked for it.
    """

    last: Tensor
    pooled: Tensor
    content: Tensor


def _fake_forward(x: Tensor, offsets: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape = (x.shape[0], offsets.shape[0] - 1, x.shape[2])
    return x.new_empty(shape), x.new_empty(shape), x.new_empty(shape if rest[-2] else (0,))


def _fake_backward(d_last: Tensor, d_pooled: Tensor, d_content: Tensor, x: Tensor, offsets: Tensor,
                   depth: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in (x, *rest[:6]))


def _fake_kept(x: Tensor, offsets: Tensor, depth: Tensor, w1: Tensor, *_: Any) -> Tensor:
    return x.new_empty(kept_shape(x, offsets, w1, False), dtype=torch.float32)


define(
    "mlp_expert_pooled",
    f"({_INPUTS}) -> (Tensor, Tensor, Tensor)",
    f"(Tensor d_last, Tensor d_pooled, Tensor d_content, {_INPUTS}) -> ("
    + ", ".join(["Tensor"] * 7) + ")",
    _fake_forward,
    _fake_backward,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
    note="mlp_expert and level_pool in one, where last positions alone are read out",
    fake_kept=_fake_kept,
)


class _MLPExpertPooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, *inputs: Any) -> tuple[Tensor, ...]:
        ctx.backend, ctx.autocast = backend, Autocast.current(inputs[0])
        ctx.scalars = (*inputs[9:11], *inputs[12:])
        tensors = (*inputs[:9], inputs[11])
        rows, columns = kept_shape(inputs[0], inputs[1], inputs[3], False)
        ctx.kept = keeps(backend, rows * columns)
        if not ctx.kept:
            ctx.save_for_backward(*tensors)
            return torch.ops.adarec_fast.mlp_expert_pooled_fwd(*inputs, backend)
        *results, kept = torch.ops.adarec_fast.mlp_expert_pooled_keep(*inputs, backend)
        ctx.save_for_backward(kept, *tensors)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *tensors, seed = ctx.saved_tensors
        with ctx.autocast.restored():
            run = torch.ops.adarec_fast.mlp_expert_pooled_bwd
            if ctx.kept:
                run = torch.ops.adarec_fast.mlp_expert_pooled_resume
            d_x, *d_weights = run(
                *(grad.contiguous() for grad in grads), *tensors, *ctx.scalars[:2], seed,
                *ctx.scalars[2:], ctx.backend,
            )
        return None, d_x, None, None, *d_weights, *([None] * 6)


def mlp_expert_pooled(
    x: Tensor,
    offsets: Tensor,
    depth: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    ln_w: Tensor,
    ln_b: Tensor,
    *,
    eps: float,
    hidden_dropout: float = 0.0,
    seed: Tensor | None = None,
    stream: int = rng.STREAM_COARSE_MLP,
    residual: bool = False,
    content: bool = True,
    max_length: int,
    backend: str = "auto",
) -> PooledLevels:
    """:func:`mlp_expert` of all tokens, of which last rows and :func:`level_pool` are kept.

    Args:
        x: ``[K, N, D]`` float.
        offsets: int64 ``[B+1]``; no sequence is empty.
        depth: int64 ``[B]``.
        w1, b1, w2, b2: ``[H, D]``, ``[H]``, ``[D, H]``, ``[D]``; ln_w, ln_b: ``[D]``.
        eps: LayerNorm's.
        hidden_dropout: probability, applied only if ``seed`` (int64 ``[1]`` or ``[3]``) is given.
        stream: dropout's stream.
        residual: as in :func:`mlp_expert`.
        content: give the mean of x, too.
        max_length: no sequence is longer.
        backend: see :mod:`adarec_fast.ops`.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_shape("x", x, None, None, None)
    size = x.shape[2]
    check_index("offsets", offsets)
    check_index("depth", depth, offsets.shape[0] - 1)
    check_shape("w1", w1, None, size)
    check_shape("b1", b1, w1.shape[0])
    check_shape("w2", w2, size, w1.shape[0])
    for name, vector in (("b2", b2), ("ln_w", ln_w), ("ln_b", ln_b)):
        check_shape(name, vector, size)
    if seed is not None:
        seed = check_seed(seed)
    if hidden_dropout == 0.0:
        seed = None
    chosen = choose("mlp_expert_pooled", backend, x.device.type, x.dtype)
    if chosen != "reference":
        return PooledLevels(*run(
            _MLPExpertPooled, "mlp_expert_pooled", chosen, x, offsets, depth, w1, b1, w2, b2, ln_w,
            ln_b, eps, hidden_dropout, seed, stream, residual, content,
        ))
    shared: dict[str, Any] = {"max_length": max_length, "backend": "reference"}
    y = mlp_expert(
        x, offsets, depth, w1, b1, w2, b2, ln_w, ln_b, eps=eps, hidden_dropout=hidden_dropout,
        seed=seed, stream=stream, residual=residual, **shared,
    )
    pooled = level_pool(y, offsets, depth, **shared)
    mean = level_pool(x, offsets, depth, **shared) if content else x.new_zeros(0)
    return PooledLevels(y[:, ragged.last_tokens(offsets)], pooled, mean)
