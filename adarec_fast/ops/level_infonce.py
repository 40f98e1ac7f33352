"""``level_infonce``: the contrastive loss of Eq. 6 between neighbouring coarse levels."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference.level_infonce import level_infonce as reference
from ._autocast import Autocast
from ._library import check_index, check_shape, choose, define, keeps, require, run

_INPUTS = "Tensor z, Tensor depth, Tensor targets, float temperature"


class Prepared(NamedTuple):
    """What the kernels' forward makes and their backward needs again, views of one buffer.

    Users are in the order of depth; a place is a user's in that order.

    Attributes:
        targets: int64 ``[B]`` by place.
        user: int32 ``[B]``, who is at a place.
        starts: int32 ``[K+1]``, the first place of depth j or more.
        pairs: int32 ``[1]``, how many there are.
        done: int32 ``[1]``, programs of the forward kernel that have ended.
        unit: float32 ``[K, B, D]`` by place, unit vectors of the levels that exist.
        norm: float32 ``[K, B]`` by place, what they were divided by.
        lse: float32 ``[K-1, B]`` by place, of the anchors.
    """

    targets: Tensor
    user: Tensor
    starts: Tensor
    pairs: Tensor
    done: Tensor
    unit: Tensor
    norm: Tensor
    lse: Tensor

    @staticmethod
    def words(levels: int, users: int, size: int) -> list[int]:
        """Of each, in words of 32 bits; each begins at a multiple of four of them."""
        counts = (
            2 * users, users, levels + 1, 1, 1, levels * users * size, levels * users,
            (levels - 1) * users,
        )  # fmt: skip
        return [(count + 3) // 4 * 4 for count in counts]

    @classmethod
    def of(cls, saved: Tensor, levels: int, users: int, size: int) -> Prepared:
        """The views of a float32 buffer of ``sum(words(levels, users, size))``."""
        parts = saved.split(cls.words(levels, users, size))
        shapes = (
            (users,), (users,), (levels + 1,), (1,), (1,), (levels, users, size), (levels, users),
            (levels - 1, users),
        )  # fmt: skip
        dtypes = (torch.int64, *(torch.int32,) * 4, *(torch.float32,) * 3)
        return cls(*(
            part.view(dtype)[: math.prod(shape)].view(shape)
            for part, shape, dtype in zip(parts, shapes, dtypes, strict=True)
        ))  # fmt: skip


def _fake_forward(
    z: Tensor, depth: Tensor, targets: Tensor, temperature: float, backend: str
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(z.dtype, torch.float32)
    levels, users, size = z.shape
    if backend == "triton":
        saved = z.new_empty(sum(Prepared.words(levels, users, size)), dtype=wide)
    elif backend == "cpp":  # the anchors' greatest similarities, and what is summed below those
        saved = z.new_empty(2, levels - 1, users, dtype=wide)
    else:
        saved = z.new_empty(levels - 1, users, dtype=wide)  # the anchors' log-sum-exps
    return z.new_empty((), dtype=wide), saved


def _fake_backward(grad_loss: Tensor, saved: Tensor, z: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(z)


_MOST_KEPT = 1024  # users; kMostKept in csrc/cpu/level_infonce_plan.h


def _kept_floats(z: Tensor) -> int:
    """Of what the C++ forward leaves: ``level_infonce_kept`` in ``csrc/cpu/level_infonce.cpp``."""
    levels, users, size = z.shape
    columns = users * (levels // 2) + 15 * (levels - 1)
    return levels * users * (size + 1) + users * columns


def _fake_kept(z: Tensor, *_: Any) -> Tensor:
    return z.new_empty(1, _kept_floats(z), dtype=torch.float32)


define(
    "level_infonce",
    f"({_INPUTS}) -> (Tensor, Tensor)",
    f"(Tensor grad_loss, Tensor saved, {_INPUTS}) -> Tensor",
    _fake_forward,
    _fake_backward,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
    fake_kept=_fake_kept,
)


class _LevelInfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, z: Tensor, depth: Tensor, targets: Tensor,
                temperature: float) -> tuple[Tensor, Tensor]:
        ctx.backend, ctx.temperature = backend, temperature
        ctx.autocast = Autocast.current(z)
        inputs = (z, depth, targets, temperature, backend)
        ctx.kept = keeps(backend, _kept_floats(z)) and z.shape[1] <= _MOST_KEPT
        if ctx.kept:
            loss, saved, kept = torch.ops.adarec_fast.level_infonce_keep(*inputs)
            ctx.save_for_backward(saved, kept, *inputs[:3])
        else:
            loss, saved = torch.ops.adarec_fast.level_infonce_fwd(*inputs)
            ctx.save_for_backward(saved, *inputs[:3])
        ctx.mark_non_differentiable(saved)
        ctx.set_materialize_grads(False)
        return loss, saved

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_loss is None:
            return (None,) * 5
        with ctx.autocast.restored():
            run = torch.ops.adarec_fast.level_infonce_bwd
            if ctx.kept:
                run = torch.ops.adarec_fast.level_infonce_resume
            d_z = run(grad_loss, *ctx.saved_tensors, ctx.temperature, ctx.backend)
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
