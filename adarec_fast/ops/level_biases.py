"""``level_biases``: what a level's embedding adds in the denoiser and the router (Eq. 5, 7)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.level_biases import level_biases as reference
from ._autocast import Autocast
from ._library import check_shape, choose, define, run

_INPUTS = "Tensor table, Tensor denoiser_w, Tensor denoiser_b, Tensor router_w, Tensor router_b"


def _fake_forward(table: Tensor, denoiser_w: Tensor, denoiser_b: Tensor, router_w: Tensor,
                  router_b: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    levels = table.shape[0]
    return (
        denoiser_w.new_empty(levels - 1, denoiser_w.shape[0]),
        router_w.new_empty(levels, router_w.shape[0]),
    )


def _fake_backward(d_denoiser: Tensor, d_router: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in rest[:5])


define(
    "level_biases",
    f"({_INPUTS}) -> (Tensor, Tensor)",
    f"(Tensor d_denoiser, Tensor d_router, {_INPUTS}) -> ("
    + ", ".join(["Tensor"] * 5) + ")",
    _fake_forward,
    _fake_backward,
    cuda=("triton", "packed"),
    note="both layers in one, on CUDA; elsewhere each where it is used",
    waits=False,
)


class _LevelBiases(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.backend, ctx.autocast = backend, Autocast.current(inputs[0])
        ctx.save_for_backward(*inputs)
        return torch.ops.adarec_fast.level_biases_fwd(*inputs, backend)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        with ctx.autocast.restored():
            found = torch.ops.adarec_fast.level_biases_bwd(
                *(grad.contiguous() for grad in grads), *ctx.saved_tensors, ctx.backend
            )
        return None, *found


def level_biases(
    table: Tensor,
    denoiser_w: Tensor,
    denoiser_b: Tensor,
    router_w: Tensor,
    router_b: Tensor,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """W emb(k) + b of the denoiser for k = 1..T and of the router for k = 0..T.

    Args:
        table: ``[T+1, D]`` float, the levels' embeddings.
        denoiser_w, denoiser_b: ``[H, D]``, ``[H]``.
        router_w, router_b: ``[R, D]``, ``[R]``.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        ``[T, H]`` and ``[T+1, R]``, of the weights' dtypes.

    Raises:
        ValueError: a shape that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_shape("table", table, None, None)
    size = table.shape[1]
    check_shape("denoiser_w", denoiser_w, None, size)
    check_shape("denoiser_b", denoiser_b, denoiser_w.shape[0])
    check_shape("router_w", router_w, None, size)
    check_shape("router_b", router_b, router_w.shape[0])
    chosen = choose("level_biases", backend, table.device.type, table.dtype)
    inputs = (table, denoiser_w, denoiser_b, router_w, router_b)
    if chosen != "reference":
        denoiser, router = run(_LevelBiases, "level_biases", chosen, *inputs)
        return denoiser, router
    denoiser, router = reference(*inputs)
    return denoiser.to(denoiser_w.dtype), router.to(router_w.dtype)
