"""``level_pool``: Pool of Eq. 7 for every level, over jagged sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ragged
from ..reference.level_pool import level_pool as reference
from ._library import check_index, check_shape, choose, define, run

_INPUTS = "Tensor offsets, Tensor? depth, bool causal"


def _fake_forward(x: Tensor, offsets: Tensor, depth: Tensor | None, causal: bool,
                  backend: str) -> Tensor:
    levels, tokens, size = x.shape
    return x.new_empty(levels, tokens if causal else offsets.shape[0] - 1, size)


def _fake_backward(grad: Tensor, offsets: Tensor, depth: Tensor | None, causal: bool, tokens: int,
                   backend: str) -> Tensor:
    return grad.new_empty(grad.shape[0], tokens, grad.shape[2])


define(
    "level_pool",
    f"(Tensor x, {_INPUTS}) -> Tensor",
    f"(Tensor grad, {_INPUTS}, SymInt tokens) -> Tensor",
    _fake_forward,
    _fake_backward,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
)


class _LevelPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, x: Tensor, offsets: Tensor, depth: Tensor | None,
                causal: bool) -> Tensor:
        ctx.backend, ctx.causal, ctx.tokens = backend, causal, x.shape[1]
        ctx.save_for_backward(offsets, depth)
        return torch.ops.adarec_fast.level_pool_fwd(x, offsets, depth, causal, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_x = torch.ops.adarec_fast.level_pool_bwd(
            grad.contiguous(), *ctx.saved_tensors, ctx.causal, ctx.tokens, ctx.backend
        )
        return None, d_x, None, None, None


def level_pool(
    x: Tensor,
    offsets: Tensor,
    depth: Tensor | None,
    *,
    causal: bool = False,
    max_length: int,
    backend: str = "auto",
) -> Tensor:
    """Mean over a sequence's tokens at every computed level, or the causal running mean.

    Args:
        x: ``[K, N, D]`` float.
        offsets: int64 ``[B+1]``.
        depth: int64 ``[B]``, or None where all K levels of every sequence exist.
        causal: give every token the mean of its sequence up to itself.
        max_length: no sequence is longer.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        ``[K, B, D]``, or ``[K, N, D]`` if causal; levels beyond a depth are not written.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_shape("x", x, None, None, None)
    check_index("offsets", offsets)
    if depth is not None:
        check_index("depth", depth, offsets.shape[0] - 1)
    chosen = choose("level_pool", backend, x.device.type, x.dtype)
    if chosen != "reference":
        return run(_LevelPool, "level_pool", chosen, x, offsets, depth, causal)
    tokens = x.shape[1]
    padded = ragged.to_padded(ragged.mask_levels(x, offsets, depth), offsets, max_length, dim=1)
    pooled = reference(padded, ragged.padding_mask(offsets, max_length), causal)
    return ragged.from_padded(pooled, offsets, tokens, dim=1) if causal else pooled
