"""``dropout``: element-wise dropout of packed tokens with a mask of the noise contract."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import rng
from ..reference.encoder_layer import drop
from ._library import check_seed, check_shape, choose, define, require


def _fake_forward(x: Tensor, seed: Tensor, p: float, stream: int, backend: str) -> Tensor:
    return torch.empty_like(x)


define(
    "dropout",
    "(Tensor x, Tensor seed, float p, int stream) -> Tensor",
    None,
    _fake_forward,
    None,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, x: Tensor, seed: Tensor, p: float, stream: int) -> Tensor:
        ctx.arguments = (p, stream, backend)
        ctx.save_for_backward(seed)
        return torch.ops.adarec_fast.dropout_fwd(x, seed, p, stream, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # A mask times a constant is its own transpose: the gradient is dropped out alike.
        (seed,) = ctx.saved_tensors
        d_x = torch.ops.adarec_fast.dropout_fwd(grad.contiguous(), seed, *ctx.arguments)
        return None, d_x, None, None, None


def dropout(
    x: Tensor, *, p: float, seed: Tensor | None, stream: int, backend: str = "auto"
) -> Tensor:
    """x / (1 - p) where the contract keeps the element (token * D + dimension), else 0.

    Args:
        x: ``[N, D]`` float.
        p: 0 <= p < 1.
        seed: int64 ``[1]`` or ``[3]`` (:mod:`adarec_fast.rng`), or None for no dropout.
        stream: the site's stream.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        ``[N, D]``.

    Raises:
        ValueError: a shape or p that does not fit.
        BackendError: the backend cannot run here.
    """
    check_shape("x", x, None, None)
    require(0.0 <= p < 1.0, lambda: f"p={p} must lie in [0, 1)")
    if seed is None or p == 0.0:
        return x
    seed = check_seed(seed)
    chosen = choose("dropout", backend, x.device.type, x.dtype)
    if chosen != "reference":
        return _Dropout.apply(chosen, x, seed, p, stream)
    keep = rng.keep_mask(seed, rng.element_index(x.shape[0], x.shape[1], seed), stream, 0, p)
    return drop(x, keep, p)
