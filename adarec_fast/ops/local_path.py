"""``local_path``: a causal depthwise convolution with residual and LayerNorm, on packed tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ragged, rng
from ..reference.local_path import local_path as reference
from ._library import check_index, check_seed, check_shape, choose, define, require, run

MAX_TAPS = 16
_INPUTS = (
    "Tensor x, Tensor offsets, Tensor taps, Tensor norm_weight, Tensor norm_bias, float eps, "
    "float p, Tensor? seed, int stream"
)


def _fake_forward(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(grad: Tensor, x: Tensor, offsets: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in (x, *rest[:3]))


define(
    "local_path",
    f"({_INPUTS}) -> Tensor",
    f"(Tensor grad, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_forward,
    _fake_backward,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
    waits=False,
)


class _LocalPath(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, *inputs: Any) -> Tensor:
        ctx.backend, ctx.scalars = backend, (*inputs[5:7], inputs[8])
        ctx.save_for_backward(*inputs[:5], inputs[7])
        return torch.ops.adarec_fast.local_path_fwd(*inputs, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *tensors, seed = ctx.saved_tensors
        eps, p, stream = ctx.scalars
        d_x, *d_weights = torch.ops.adarec_fast.local_path_bwd(
            grad.contiguous(), *tensors, eps, p, seed, stream, ctx.backend
        )
        return None, d_x, None, *d_weights, None, None, None, None


def local_path(
    x: Tensor,
    offsets: Tensor,
    taps: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    eps: float,
    p: float = 0.0,
    seed: Tensor | None = None,
    stream: int = rng.STREAM_BACKBONE + rng.SITE_LOCAL_PATH,
    max_length: int,
    backend: str = "auto",
) -> Tensor:
    """LayerNorm(x_t + dropout(sum_j taps_j * x_{t-j})) of every token t, element-wise in D.

    j runs over 0..k-1, and only over tokens of t's own sequence.

    Args:
        x: ``[N, D]`` float.
        offsets: int64 ``[B+1]``.
        taps: ``[k, D]``, 1 <= k <= 16; row 0 weighs the token itself.
        norm_weight, norm_bias: ``[D]``, LayerNorm's.
        eps: LayerNorm's.
        p: dropout's probability, 0 <= p < 1, applied only if ``seed`` is given.
        seed: int64 ``[1]`` or ``[3]`` (:mod:`adarec_fast.rng`), or None for no dropout.
        stream: dropout's stream, read as :func:`adarec_fast.rng.keep_quarters` does.
        max_length: no sequence is longer.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        ``[N, D]``; rows behind the last token are undefined.

    Raises:
        ValueError: a shape, a dtype, k or p that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_shape("x", x, None, None)
    tokens, size = x.shape
    check_index("offsets", offsets)
    check_shape("taps", taps, None, size)
    require(
        1 <= taps.shape[0] <= MAX_TAPS,
        lambda: f"taps has {taps.shape[0]} rows; it must have 1 to {MAX_TAPS}",
    )
    check_shape("norm_weight", norm_weight, size)
    check_shape("norm_bias", norm_bias, size)
    require(0.0 <= p < 1.0, lambda: f"p={p} must lie in [0, 1)")
    seed = None if seed is None else check_seed(seed)
    seed = None if p == 0.0 else seed
    chosen = choose("local_path", backend, x.device.type, x.dtype)
    if chosen != "reference":
        found: Tensor = run(
            _LocalPath, "local_path", chosen, x, offsets, taps, norm_weight, norm_bias, eps, p,
            seed, stream,
        )  # fmt: skip
        return found
    x = ragged.mask_levels(x[None], offsets, None)[0]
    keep = None
    if seed is not None:
        mask = rng.keep_quarters(seed, tokens, size, stream, p)
        keep = ragged.to_padded(mask, offsets, max_length)
    padded = ragged.to_padded(x, offsets, max_length)
    y = reference(padded, taps, norm_weight, norm_bias, eps, p, keep)
    return ragged.from_padded(y, offsets, tokens)
