"""``pool_and_last``: both things that are read of a level over all tokens, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ragged
from ..reference.pool_and_last import pool_and_last as reference
from ._library import check_index, check_shape, choose, define, run


def _fake_forward(x: Tensor, offsets: Tensor, depth: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    shape = x.shape[0], offsets.shape[0] - 1, x.shape[2]
    return x.new_empty(shape), x.new_empty(shape)


def _fake_backward(d_mean: Tensor, d_last: Tensor, offsets: Tensor, depth: Tensor, tokens: int,
                   backend: str) -> Tensor:
    return d_mean.new_empty(d_mean.shape[0], tokens, d_mean.shape[2])


define(
    "pool_and_last",
    "(Tensor x, Tensor offsets, Tensor depth) -> (Tensor, Tensor)",
    "(Tensor d_mean, Tensor d_last, Tensor offsets, Tensor depth, SymInt tokens) -> Tensor",
    _fake_forward,
    _fake_backward,
    cuda=("triton", "packed"),
    note="the model calls it where a kernel runs it, and its parts elsewhere",
)


class _PoolAndLast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backend: str, x: Tensor, offsets: Tensor, depth: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.backend, ctx.tokens = backend, x.shape[1]
        ctx.save_for_backward(offsets, depth)
        mean, last = torch.ops.adarec_fast.pool_and_last_fwd(x, offsets, depth, backend)
        return mean, last

    @staticmethod
    def backward(ctx: Any, d_mean: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_x = torch.ops.adarec_fast.pool_and_last_bwd(
            d_mean.contiguous(), d_last.contiguous(), *ctx.saved_tensors, ctx.tokens, ctx.backend
        )
        return None, d_x, None, None


def pool_and_last(
    x: Tensor, offsets: Tensor, depth: Tensor, *, max_length: int, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """A sequence's mean over its tokens and its last token, at every computed level.

    Eq. 6 compares the former of the coarse expert's output, and Eq. 9 at the last position reads
    the latter. Taken apart, x's gradient is two tensors of its size, one of them mostly zero.

    Args:
        x: ``[K, N, D]`` float.
        offsets: int64 ``[B+1]``; every sequence has at least one token.
        depth: int64 ``[B]``.
        max_length: no sequence is longer.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        Two ``[K, B, D]``; levels beyond a depth are not written.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_shape("x", x, None, None, None)
    check_index("offsets", offsets)
    check_index("depth", depth, offsets.shape[0] - 1)
    chosen = choose("pool_and_last", backend, x.device.type, x.dtype)
    if chosen != "reference":
        mean, last = run(_PoolAndLast, "pool_and_last", chosen, x, offsets, depth)
        return mean, last
    padded = ragged.to_padded(ragged.mask_levels(x, offsets, depth), offsets, max_length, dim=1)
    return reference(padded, ragged.padding_mask(offsets, max_length))
