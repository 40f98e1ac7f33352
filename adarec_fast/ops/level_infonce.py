"""``level_infonce``: the contrastive loss of Eq. 6 between neighbouring coarse levels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.level_infonce import level_infonce as reference
from ._library import check_index, check_shape, choose, define, require, run

_INPUTS = "Tensor z, Tensor depth, Tensor targets, float temperature"


def _fake_forward(z: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(z.dtype, torch.float32)
    return z.new_empty((), dtype=wide), z.new_empty(z.shape[0] - 1, z.shape[1], dtype=wide)


def _fake_backward(grad_loss: Tensor, lse: Tensor, z: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(z)


define(
    "level_infonce",
    f"({_INPUTS}) -> (Tensor, Tensor)",
    f"(Tensor grad_loss, Tensor lse, {_INPUTS}) -> Tensor",
    _fake_forward,
    _fake_backward,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
)


class _LevelInfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, z: Tensor, depth: Tensor, targets: Tensor,
                temperature: float) -> tuple[Tensor, Tensor]:
        ctx.backend, ctx.temperature = backend, temperature
        loss, lse = torch.ops.adarec_fast.level_infonce_fwd(
            z, depth, targets, temperature, backend
        )
        ctx.save_for_backward(lse, z, depth, targets)
        ctx.mark_non_differentiable(lse)
        return loss, lse

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_z = torch.ops.adarec_fast.level_infonce_bwd(
            grad_loss, *ctx.saved_tensors, ctx.temperature, ctx.backend
        )
        return None, d_z, None, None, None


def level_infonce(
    z: Tensor, depth: Tensor, targets: Tensor, temperature: float, *, backend: str = "auto"
) -> Tensor:
    """Eq. 6 without a [levels, B, B] tensor in memory; definition in the reference.

    Args:
        z: ``[K, B, D]`` float, pooled coarse outputs, not normalised; levels k > depth unread.
        depth: int64 ``[B]``.
        targets: int64 ``[B]``; users who share a target are not each other's negatives.
        temperature: tau > 0.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        The mean over all pairs, a scalar, float32 or wider; 0 if there is no pair.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_shape("z", z, None, None, None)
    check_index("depth", depth, z.shape[1])
    check_index("targets", targets, z.shape[1])
    require(temperature > 0, lambda: f"temperature={temperature} must be greater than 0")
    chosen = choose("level_infonce", backend, z.device.type, z.dtype)
    if chosen != "reference":
        return run(_LevelInfoNCE, "level_infonce", chosen, z, depth, targets, temperature)[0]
    return reference(z, depth, targets, temperature)
