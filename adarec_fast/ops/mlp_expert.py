"""``mlp_expert``: the token-wise coarse expert over levels of ragged depth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ragged, rng
from ..reference.mlp_expert import mlp_expert as reference
from ._autocast import Autocast
from ._library import check_index, check_seed, check_shape, choose, define, keeps, run

_INPUTS = (
    "Tensor x, Tensor offsets, Tensor? depth, Tensor w1, Tensor b1, Tensor w2, Tensor b2, "
    "Tensor ln_w, Tensor ln_b, float eps, float hidden_dropout, Tensor? seed, int stream, "
    "bool residual, bool last_only"
)


def _fake_forward(x: Tensor, offsets: Tensor, *rest: Any) -> Tensor:
    levels, tokens, size = x.shape
    return x.new_empty(levels, offsets.shape[0] - 1 if rest[-2] else tokens, size)


def _fake_backward(grad_y: Tensor, x: Tensor, offsets: Tensor, depth: Tensor | None,
                   *rest: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in (x, *rest[:6]))


def kept_shape(x: Tensor, offsets: Tensor, w1: Tensor, last_only: bool) -> tuple[int, int]:
    """Of what the C++ forward leaves: ``mlp_expert_kept`` in ``csrc/cpu/mlp_expert.cpp``."""
    levels, tokens, size = x.shape
    columns = w1.shape[0] + size + 1 + (size + 31) // 32
    return levels * (offsets.shape[0] - 1 if last_only else tokens), columns


def _fake_kept(x: Tensor, offsets: Tensor, depth: Tensor | None, w1: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(kept_shape(x, offsets, w1, rest[-2]), dtype=torch.float32)


define(
    "mlp_expert",
    f"({_INPUTS}) -> Tensor",
    f"(Tensor grad_y, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_forward,
    _fake_backward,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
    fake_kept=_fake_kept,
)


class _MLPExpert(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, *inputs: Any) -> Tensor:
        ctx.backend, ctx.autocast = backend, Autocast.current(inputs[0])
        ctx.scalars = (*inputs[9:11], *inputs[12:])
        tensors = (*inputs[:9], inputs[11])
        rows, columns = kept_shape(inputs[0], inputs[1], inputs[3], inputs[14])
        ctx.kept = keeps(backend, rows * columns)
        if not ctx.kept:
            ctx.save_for_backward(*tensors)
            return torch.ops.adarec_fast.mlp_expert_fwd(*inputs, backend)
        y, kept = torch.ops.adarec_fast.mlp_expert_keep(*inputs, backend)
        ctx.save_for_backward(kept, *tensors)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *tensors, seed = ctx.saved_tensors
        with ctx.autocast.restored():
            run = torch.ops.adarec_fast.mlp_expert_bwd
            if ctx.kept:
                run = torch.ops.adarec_fast.mlp_expert_resume
            d_x, *d_weights = run(
                grad_y.contiguous(), *tensors, *ctx.scalars[:2], seed, *ctx.scalars[2:], ctx.backend
            )
        return None, d_x, None, None, *d_weights, *([None] * 6)


def mlp_expert(
    x: Tensor,
    offsets: Tensor,
    depth: Tensor | None,
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
    last_only: bool = False,
    max_length: int,
    backend: str = "auto",
) -> Tensor:
    """LN(dropout(W2 GELU(W1 x + b1) + b2)) of every token at every computed level.

    Args:
        x: ``[K, N, D]`` float.
        offsets: int64 ``[B+1]``.
        depth: int64 ``[B]``, or None where all K levels of every sequence exist.
        w1, b1, w2, b2: ``[H, D]``, ``[H]``, ``[D, H]``, ``[D]``; ln_w, ln_b: ``[D]``.
        eps: LayerNorm's.
        hidden_dropout: probability, applied only if ``seed`` (int64 ``[1]`` or ``[3]``) is given.
        stream: dropout's stream.
        residual: LN(x + dropout(...)), a path around the MLP.
        last_only: compute the last token of each sequence only.
        max_length: no sequence is longer.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        ``[K, N, D]``, or ``[K, B, D]`` if ``last_only``; levels beyond a depth are not written.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_shape("x", x, None, None, None)
    levels, tokens, size = x.shape
    check_index("offsets", offsets)
    if depth is not None:
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
    chosen = choose("mlp_expert", backend, x.device.type, x.dtype)
    if chosen != "reference":
        return run(
            _MLPExpert, "mlp_expert", chosen, x, offsets, depth, w1, b1, w2, b2, ln_w, ln_b, eps,
            hidden_dropout, seed, stream, residual, last_only,
        )
    x = ragged.to_padded(ragged.mask_levels(x, offsets, depth), offsets, max_length, dim=1)
    keep = None
    if seed is not None:
        mask = rng.keep_levels(
            seed, rng.element_index(tokens, size, seed), stream, levels, hidden_dropout
        )
        keep = ragged.to_padded(mask, offsets, max_length, dim=1)
    y = reference(x, w1, b1, w2, b2, ln_w, ln_b, eps, hidden_dropout, keep, residual)
    y = ragged.from_padded(y, offsets, tokens, dim=1)
    return y[:, ragged.last_tokens(offsets)] if last_only else y
