"""``moe_aggregate``: routing and gated fusion of both experts over ragged levels (Eq. 7-11)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ragged
from ..reference.moe_aggregate import moe_aggregate as reference
from ._autocast import Autocast
from ._library import check_index, check_shape, choose, define, keeps, run

_INPUTS = (
    "Tensor fine, Tensor coarse, Tensor? pooled, Tensor depth, Tensor level_mass, "
    "Tensor router_w1, Tensor router_level_bias, Tensor router_w2, Tensor router_b2, "
    "Tensor gate_w, Tensor gate_b"
)


class Aggregate(NamedTuple):
    """h ``[R, D]`` and, without gradient, g ``[K, R]``, z_fin and z_coar ``[R, D]``."""

    user: Tensor
    gates: Tensor
    fine: Tensor
    coarse: Tensor


def _fake_forward(fine: Tensor, coarse: Tensor, *_: Any) -> tuple[Tensor, ...]:
    levels, rows, size = fine.shape
    wide = torch.promote_types(fine.dtype, torch.float32)
    return (
        fine.new_empty(rows, size),
        fine.new_empty(levels, rows, dtype=wide),
        fine.new_empty(rows, size, dtype=wide),
        fine.new_empty(rows, size, dtype=wide),
    )


def _fake_backward(grad_user: Tensor, gates: Tensor, z_fine: Tensor, z_coarse: Tensor,
                   fine: Tensor, coarse: Tensor, pooled: Tensor | None, depth: Tensor,
                   *rest: Any) -> tuple[Tensor, ...]:
    d_pooled = fine.new_empty(0) if pooled is None else torch.empty_like(pooled)
    return (torch.empty_like(fine), torch.empty_like(coarse), d_pooled,
            *(torch.empty_like(t) for t in rest[:7]))


def _kept_floats(fine: Tensor, pooled: Tensor | None, router_w2: Tensor) -> int:
    """Of what the C++ forward leaves: ``moe_aggregate_kept`` in ``csrc/cpu/moe_aggregate.h``."""
    levels, rows, size = fine.shape
    return rows * size + (0 if pooled is None else 2 * levels * rows * router_w2.shape[0])


def _fake_kept(fine: Tensor, coarse: Tensor, pooled: Tensor | None, *rest: Any) -> Tensor:
    return fine.new_empty(1, _kept_floats(fine, pooled, rest[4]), dtype=torch.float32)


define(
    "moe_aggregate",
    f"({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
    f"(Tensor grad_user, Tensor gates, Tensor z_fine, Tensor z_coarse, {_INPUTS}) -> ("
    + ", ".join(["Tensor"] * 10) + ")",
    _fake_forward,
    _fake_backward,
    cpu=("cpp", "packed"),
    cuda=("cuda", "triton", "packed"),
    fake_kept=_fake_kept,
)


class _MoEAggregate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, *inputs: Any) -> tuple[Tensor, ...]:
        ctx.backend, ctx.autocast = backend, Autocast.current(inputs[0])
        ctx.kept = keeps(backend, _kept_floats(inputs[0], inputs[2], inputs[7]))
        run = torch.ops.adarec_fast.moe_aggregate_fwd
        if ctx.kept:
            run = torch.ops.adarec_fast.moe_aggregate_keep
        user, gates, z_fine, z_coarse, *kept = run(*inputs, backend)
        ctx.save_for_backward(gates, z_fine, z_coarse, *kept, *inputs)
        ctx.mark_non_differentiable(gates, z_fine, z_coarse)
        ctx.set_materialize_grads(False)  # zeros for what has no gradient would cost a pass each
        return user, gates, z_fine, z_coarse

    @staticmethod
    def backward(ctx: Any, grad_user: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_user is None:
            return (None,) * 12
        saved = ctx.saved_tensors
        with ctx.autocast.restored():
            run = torch.ops.adarec_fast.moe_aggregate_bwd
            if ctx.kept:
                run = torch.ops.adarec_fast.moe_aggregate_resume
            d_fine, d_coarse, d_pooled, *rest = run(grad_user.contiguous(), *saved, ctx.backend)
        has_content = saved[6 if ctx.kept else 5] is not None
        return None, d_fine, d_coarse, d_pooled if has_content else None, None, *rest


def moe_aggregate(
    fine: Tensor,
    coarse: Tensor,
    pooled: Tensor | None,
    depth: Tensor,
    level_mass: Tensor,
    router_w1: Tensor,
    router_level_bias: Tensor,
    router_w2: Tensor,
    router_b2: Tensor,
    gate_w: Tensor,
    gate_b: Tensor,
    *,
    backend: str = "auto",
) -> Aggregate:
    """Eq. 7 (router), 8 and 9 (averages over levels k <= depth), 10 and 11 (final gate).

    Args:
        fine, coarse: ``[K, R, D]`` float, expert outputs of R read-outs at K levels.
        pooled: ``[K, R, D]``, Pool of every level; None: the router sees the level alone.
        depth: int64 ``[R]`` in -1..K-1, the depth of each read-out; deeper levels are not read. -1
            is capacity: no level exists, and the user vector is 0.
        level_mass: ``[K, R]``, m_k, which multiplies g_k and 1 - g_k in Eq. 8 and 9.
        router_w1: ``[H, D]``; router_level_bias: ``[K, H]`` (emb(k)'s share and the bias);
            router_w2: ``[H]``; router_b2: ``[1]``.
        gate_w, gate_b: ``[D, D]``, ``[D]``.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        :class:`Aggregate`; g is 0 at levels that were not reached.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_shape("fine", fine, None, None, None)
    levels, rows, size = fine.shape
    check_shape("coarse", coarse, levels, rows, size)
    if pooled is not None:
        check_shape("pooled", pooled, levels, rows, size)
    check_index("depth", depth, rows)
    check_shape("level_mass", level_mass, levels, rows)
    check_shape("router_w2", router_w2, None)
    hidden = router_w2.shape[0]
    check_shape("router_w1", router_w1, hidden, size)
    check_shape("router_level_bias", router_level_bias, levels, hidden)
    check_shape("router_b2", router_b2, 1)
    check_shape("gate_w", gate_w, size, size)
    check_shape("gate_b", gate_b, size)
    inputs = (level_mass, router_w1, router_level_bias, router_w2, router_b2, gate_w, gate_b)
    chosen = choose("moe_aggregate", backend, fine.device.type, fine.dtype)
    if chosen == "cpp" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # What _MoEAggregate does, in C++: a seventh of a small call's forward and backward.
        return Aggregate(*torch.ops.adarec_fast_cpp.moe_aggregate(
            fine, coarse, pooled, depth, *inputs,
            keeps(chosen, _kept_floats(fine, pooled, router_w2)),
        ))
    if chosen != "reference":
        return Aggregate(*run(
            _MoEAggregate, "moe_aggregate", chosen, fine, coarse, pooled, depth, *inputs
        ))
    reached = ragged.reached_levels(depth, levels)
    if pooled is not None:
        pooled = torch.where(reached[..., None], pooled, torch.zeros_like(pooled))
    user, gates, z_fine, z_coarse = reference(fine, coarse, pooled, reached, *inputs)
    return Aggregate(user, gates.detach(), z_fine.detach(), z_coarse.detach())
