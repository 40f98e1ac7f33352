"""``fused_trajectory``: from E to h, Eq. 4, 5 and 7 to 11, with no level of it kept in memory.

What :mod:`hda_trajectory`, the two experts, :mod:`level_pool` and :mod:`moe_aggregate` compute one
after the other. The backward pass runs those again on a part of the tokens at a time, so that the
memory of a training step grows with N D and not with N T D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ragged, rng
from ..reference.fused_trajectory import Trajectory, TrajectoryInputs, row_depths
from ._autocast import Autocast
from ._library import check_index, check_seed, check_shape, choose, define, require, run
from .encoder_layer import LayerWeights, encoder_layer
from .hda_trajectory import hda_trajectory
from .level_pool import level_pool
from .mlp_expert import mlp_expert
from .moe_aggregate import moe_aggregate

_OPTIONAL = ("noise_seed", "noise", "seed")
_SCALARS = {
    "heads": "int", "eps": "float", "attention_dropout": "float", "hidden_dropout": "float",
    "bounded": "bool", "residual": "bool",
    "content": "bool", "contrast": "bool", "last_only": "bool", "max_length": "int",
}  # fmt: skip
_INPUTS = ", ".join(
    f"{_SCALARS.get(name, 'Tensor? ' if name in _OPTIONAL else 'Tensor')} {name}"
    for name in TrajectoryInputs._fields
)
_TENSORS = len(TrajectoryInputs._fields) - len(_SCALARS)
# Positions that receive a gradient: all float tensors but the schedule and the noise.
DIFFERENTIABLE = (0, 3, *range(5, 33))


def _fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
    i = TrajectoryInputs(*arguments[:-1])
    e = i.embeddings
    wide = torch.promote_types(e.dtype, torch.float32)
    (levels, rows), size = i.level_mass.shape, e.shape[1]
    pooled = (levels, i.offsets.shape[0] - 1, size) if i.contrast else (0,)
    return (
        e.new_empty(rows, size),
        e.new_empty(e.shape[0], dtype=wide),
        e.new_empty(levels, rows, dtype=wide),
        e.new_empty(rows, size, dtype=wide),
        e.new_empty(rows, size, dtype=wide),
        e.new_empty(pooled),
    )


def _fake_backward(grad_user: Tensor, grad_error: Tensor, grad_pooled: Tensor,
                   *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(arguments[position]) for position in DIFFERENTIABLE)


define(
    "fused_trajectory",
    f"({_INPUTS}) -> ({', '.join(['Tensor'] * len(Trajectory._fields))})",
    f"(Tensor grad_user, Tensor grad_error, Tensor grad_pooled, {_INPUTS}) -> ("
    + ", ".join(["Tensor"] * len(DIFFERENTIABLE)) + ")",
    _fake_forward,
    _fake_backward,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
    note="runs only with fused_trajectory=True, being not yet timed on a GPU",
)


class _FusedTrajectory(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, *inputs: Any) -> tuple[Tensor, ...]:
        ctx.backend, ctx.autocast = backend, Autocast.current(inputs[0])
        ctx.save_for_backward(*inputs[:_TENSORS])
        ctx.scalars = inputs[_TENSORS:]
        found = torch.ops.adarec_fast.fused_trajectory_fwd(*inputs, backend)
        result = Trajectory(*found)
        silent = [result.gates, result.fine, result.coarse]
        ctx.mark_non_differentiable(*silent)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        by_name = Trajectory(*grads)
        with ctx.autocast.restored():
            found = torch.ops.adarec_fast.fused_trajectory_bwd(
                *(g.contiguous() for g in (by_name.user, by_name.error, by_name.pooled)),
                *ctx.saved_tensors, *ctx.scalars, ctx.backend,
            )
        gradients: list[Tensor | None] = [None] * len(TrajectoryInputs._fields)
        for position, gradient in zip(DIFFERENTIABLE, found, strict=True):
            gradients[position] = gradient
        return None, *gradients


def fused_trajectory(
    embeddings: Tensor,
    offsets: Tensor,
    depth: Tensor,
    level_mass: Tensor,
    alpha_bar: Tensor,
    denoiser: Sequence[Tensor],
    fine: LayerWeights,
    coarse: Sequence[Tensor],
    router: Sequence[Tensor],
    *,
    heads: int,
    eps: float,
    attention_dropout: float = 0.0,
    hidden_dropout: float = 0.0,
    seed: Tensor | None = None,
    noise_seed: Tensor | None = None,
    noise: Tensor | None = None,
    bounded: bool = False,
    residual: bool = False,
    content: bool = True,
    contrast: bool = False,
    last_only: bool = True,
    max_length: int,
    backend: str = "auto",
) -> Trajectory:
    """h of every read-out, and what the losses need, straight from E.

    K = T + 1 levels; R read-outs: the B sequences if ``last_only``, else the N tokens.

    Args:
        embeddings: ``[N, D]`` float, E of the packed tokens.
        offsets: int64 ``[B+1]``.
        depth: int64 ``[B]`` in 0..T, the deepest level computed for each sequence.
        level_mass: ``[K, R]``, m_k, which multiplies g_k and 1 - g_k in Eq. 8 and 9.
        alpha_bar: float32 ``[K]``, cumulative schedule.
        denoiser: w1, level_bias, w2, b2 as in :func:`ops.hda_trajectory`.
        fine: the fine expert, as in :func:`ops.encoder_layer`.
        coarse: w1, b1, w2, b2, ln_w, ln_b as in :func:`ops.mlp_expert`.
        router: router_w1, router_level_bias, router_w2, router_b2, gate_w, gate_b as in
            :func:`ops.moe_aggregate`.
        heads: of the fine expert, divides D.
        eps: both experts' LayerNorms'.
        attention_dropout, hidden_dropout: of the experts, applied only if ``seed`` is given.
        seed: int64 ``[1]`` or ``[3]`` (:mod:`adarec_fast.rng`), of the dropout masks, or None.
        noise_seed: the same, of the diffusion noise; None means epsilon = 0.
        noise: explicit epsilon ``[T, N, D]`` instead of ``noise_seed``.
        bounded: the form of eps_theta, as in :func:`ops.hda_trajectory`.
        residual: the coarse expert's, as in :func:`ops.mlp_expert`.
        content: the router sees Pool of every level, not the level's embedding alone.
        contrast: also give the mean over tokens of the coarse output, for Eq. 6.
        last_only: read out the last token of each sequence only.
        max_length: no sequence is longer.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        user ``[R, D]``, h; error ``[N]``, as in :func:`ops.hda_trajectory`; pooled ``[K, B, D]``,
        not written beyond a depth, or empty without ``contrast``; and without gradient gates
        ``[K, R]``, 0 beyond a depth, fine and coarse ``[R, D]``, z_fin and z_coar. User, gates,
        fine and coarse are 0 at capacity.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    if seed is not None:
        seed = check_seed(seed)
    if noise_seed is not None:
        noise_seed = check_seed(noise_seed, "noise_seed")
    if attention_dropout == 0.0 and hidden_dropout == 0.0:
        seed = None
    given: list[Any] = [
        embeddings, offsets, depth, level_mass, alpha_bar, *denoiser, *fine, *coarse, *router,
        noise_seed, noise, seed, heads, eps, attention_dropout, hidden_dropout, bounded, residual,
        content, contrast, last_only, max_length,
    ]  # fmt: skip
    inputs = TrajectoryInputs(*given)
    _check(inputs)
    chosen = choose("fused_trajectory", backend, embeddings.device.type, embeddings.dtype)
    if chosen == "reference":
        return separate(inputs, "reference")
    return Trajectory(*run(_FusedTrajectory, "fused_trajectory", chosen, *inputs))


def separate(inputs: TrajectoryInputs, backend: str) -> Trajectory:
    """The separate ops of a backend, one after the other, each level of each stage in memory."""
    i = inputs
    tokens, last = i.embeddings.shape[0], i.last_only
    shared: dict[str, Any] = {"max_length": i.max_length, "backend": backend}
    x0, error = hda_trajectory(
        i.embeddings, i.offsets, i.depth, i.alpha_bar, *i.denoiser, seed=i.noise_seed,
        noise=i.noise, bounded=i.bounded, **shared,
    )
    fine = encoder_layer(
        x0, i.offsets, i.depth, LayerWeights(*i.fine), heads=i.heads, eps=i.eps,
        attention_dropout=i.attention_dropout, hidden_dropout=i.hidden_dropout, seed=i.seed,
        stream=rng.STREAM_FINE_EXPERT, last_only=last, **shared,
    )
    coarse = mlp_expert(
        x0, i.offsets, i.depth, *i.coarse, eps=i.eps, hidden_dropout=i.hidden_dropout,
        seed=i.seed, residual=i.residual, last_only=last and not i.contrast, **shared,
    )
    pooled = coarse.new_empty(0)
    if i.contrast:
        pooled = level_pool(coarse, i.offsets, i.depth, **shared)
        if last:
            coarse = coarse[:, ragged.last_tokens(i.offsets)]
    content = None
    if i.content:
        content = level_pool(x0, i.offsets, i.depth, causal=not last, **shared)
    aggregate = moe_aggregate(
        fine, coarse, content, row_depths(i.depth, i.offsets, tokens, last), i.level_mass,
        *i.router, backend=backend,
    )
    return Trajectory(aggregate.user, error, *aggregate[1:], pooled)


def _check(inputs: TrajectoryInputs) -> None:
    i = inputs
    check_shape("embeddings", i.embeddings, None, None)
    tokens, size = i.embeddings.shape
    check_index("offsets", i.offsets)
    batch = i.offsets.shape[0] - 1
    check_index("depth", i.depth, batch)
    check_shape("alpha_bar", i.alpha_bar, None)
    levels = i.alpha_bar.shape[0]
    check_shape("level_mass", i.level_mass, levels, batch if i.last_only else tokens)
    require(
        i.heads >= 1 and size % i.heads == 0,
        lambda: f"heads={i.heads} does not divide the size D={size}",
    )
    check_shape("router_w2", i.router_w2, None)
    hidden, inner = i.w1.shape[0], i.ff1_w.shape[0]
    coarse, routed = i.coarse_w1.shape[0], i.router_w2.shape[0]
    shapes = {
        "w1": (hidden, size), "level_bias": (levels - 1, hidden), "w2": (size, hidden),
        "qkv_w": (3 * size, size), "qkv_b": (3 * size,), "out_w": (size, size),
        "ff1_w": (inner, size), "ff1_b": (inner,), "ff2_w": (size, inner),
        "coarse_w1": (coarse, size), "coarse_b1": (coarse,), "coarse_w2": (size, coarse),
        "router_w1": (routed, size), "router_level_bias": (levels, routed),
        "router_w2": (routed,), "router_b2": (1,), "gate_w": (size, size),
    }  # fmt: skip
    for name in TrajectoryInputs._fields[5:33]:
        check_shape(name, getattr(i, name), *shapes.get(name, (size,)))
    if i.noise is not None:
        check_shape("noise", i.noise, levels - 1, tokens, size)
