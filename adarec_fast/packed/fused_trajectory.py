"""From E to h in parts of the tokens: the separate ops of a backend, a part at a time.

No level of more than one part is in memory at once, forward or backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ragged
from ..ops._library import Implementation, implementation
from ..reference.fused_trajectory import TrajectoryInputs, row_depths
from ._parts import Part, parts


class _Ops(NamedTuple):
    """A backend's code for each stage."""

    denoise: Implementation
    fine: Implementation
    coarse: Implementation
    pool: Implementation
    aggregate: Implementation

    @classmethod
    def of(cls, backend: str) -> _Ops:
        names = ("hda_trajectory", "encoder_layer", "mlp_expert", "level_pool", "moe_aggregate")
        return cls(*(implementation(name, backend) for name in names))


class _Stages(NamedTuple):
    """A part's trajectory, every level of it: what backward needs again."""

    x0: Tensor
    fine: Tensor
    coarse: Tensor
    content: Tensor | None
    row_depth: Tensor


def _run(ops: _Ops, part: Part) -> tuple[_Stages, Tensor, Tensor | None]:
    """The stages up to the router, the error, and the pooled coarse output."""
    i = part.inputs
    x0, error = ops.denoise.fwd(
        i.embeddings, i.offsets, i.depth, i.alpha_bar, *i.denoiser, *i.denoiser_options
    )
    fine = ops.fine.fwd(x0, i.offsets, i.depth, *i.fine, *i.fine_options)
    coarse = ops.coarse.fwd(x0, i.offsets, i.depth, *i.coarse, *i.coarse_options)
    pooled = content = None
    if i.contrast:
        pooled = ops.pool.fwd(coarse, i.offsets, i.depth, False)
        if i.last_only:
            coarse = coarse[:, ragged.last_tokens(i.offsets).clamp(min=0)]
    if i.content:
        content = ops.pool.fwd(x0, i.offsets, i.depth, not i.last_only)
    row_depth = row_depths(i.depth, i.offsets, i.embeddings.shape[0], i.last_only)
    return _Stages(x0, fine, coarse, content, row_depth), error, pooled


def forward_in_parts(inputs: TrajectoryInputs, backend: str) -> tuple[Tensor, ...]:
    """``fused_trajectory_fwd`` by the separate ops of ``backend``."""
    i, ops, by_token = inputs, _Ops.of(backend), not inputs.last_only
    e, batch = i.embeddings, i.offsets.shape[0] - 1
    wide = torch.promote_types(e.dtype, torch.float32)
    levels, rows = i.level_mass.shape
    # One row more for what belongs to no sequence.
    spare = rows if by_token else rows + 1
    user = e.new_zeros(spare, e.shape[1])
    gates = e.new_zeros(levels, spare, dtype=wide)
    z_fine, z_coarse = (e.new_zeros(spare, e.shape[1], dtype=wide) for _ in range(2))
    error = e.new_zeros(e.shape[0], dtype=wide)
    pooled = e.new_zeros(levels, batch + 1, e.shape[1]) if i.contrast else e.new_zeros(0)
    for part in parts(i, backend):
        stages, own_error, own_pooled = _run(ops, part)
        found = ops.aggregate.fwd(*stages[1:], part.inputs.level_mass, *i.router)
        for target, value, dim in zip(
            (user, gates, z_fine, z_coarse), found, (0, 1, 0, 0), strict=True
        ):
            part.put(target, value, dim, token=by_token)
        part.put(error, own_error, 0, token=True)
        if own_pooled is not None:
            part.put(pooled, own_pooled, 1, token=False)
    return (
        user[:rows], error, gates[:, :rows].contiguous(), z_fine[:rows], z_coarse[:rows],
        pooled[:, :batch].contiguous() if i.contrast else pooled,
    )  # fmt: skip


def backward_in_parts(
    grad_user: Tensor, grad_error: Tensor, grad_pooled: Tensor, inputs: TrajectoryInputs,
    backend: str,
) -> tuple[Tensor, ...]:
    """``fused_trajectory_bwd`` by the separate ops of ``backend``, which run forward again."""
    i, ops, by_token = inputs, _Ops.of(backend), not inputs.last_only
    levels, rows = i.level_mass.shape
    d_e = torch.zeros_like(i.embeddings)
    d_mass = i.level_mass.new_zeros(levels, rows if by_token else rows + 1)
    weights = (*i.denoiser, *i.fine, *i.coarse, *i.router)
    d_weights = [
        torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32)) for w in weights
    ]
    for part in parts(i, backend):
        own_e, own_mass, *own_weights = _backward(
            ops, part, part.take(grad_user, 0, token=by_token),
            part.take(grad_error, 0, token=True),
            part.take(grad_pooled, 1, token=False) if i.contrast else None,
        )
        part.put(d_e, own_e, 0, token=True)
        part.put(d_mass, own_mass, 1, token=by_token)
        for total, own in zip(d_weights, own_weights, strict=True):
            total += own
    return (
        d_e, d_mass[:, :rows].contiguous(),
        *(total.to(w.dtype) for total, w in zip(d_weights, weights, strict=True)),
    )  # fmt: skip


def _backward(
    ops: _Ops, part: Part, grad_user: Tensor, grad_error: Tensor, grad_pooled: Tensor | None
) -> tuple[Tensor, ...]:
    """A part's gradients of E, of the level mass and of all weights."""
    i = part.inputs
    stages, _, _ = _run(ops, part)
    x0, fine, coarse, content, row_depth = stages
    aggregated = (fine, coarse, content, row_depth, i.level_mass, *i.router)
    _, gates, z_fine, z_coarse = ops.aggregate.fwd(*aggregated)
    d_fine, d_coarse, d_content, d_mass, *d_router = ops.aggregate.bwd(
        grad_user.contiguous(), gates, z_fine, z_coarse, *aggregated
    )
    tokens = x0.shape[1]
    if grad_pooled is not None:
        d_coarse = _join(
            ops.pool.bwd(grad_pooled.contiguous(), i.offsets, i.depth, False, tokens), d_coarse, i
        )
    d_x0, *d_coarse_weights = ops.coarse.bwd(
        d_coarse, x0, i.offsets, i.depth, *i.coarse, *i.coarse_options
    )
    d_through, *d_fine_weights = ops.fine.bwd(
        d_fine, x0, i.offsets, i.depth, *i.fine, *i.fine_options
    )
    d_x0 += d_through
    if content is not None:
        d_x0 += ops.pool.bwd(d_content, i.offsets, i.depth, not i.last_only, tokens)
    d_e, *d_denoiser = ops.denoise.bwd(
        d_x0, grad_error.contiguous(), i.embeddings, i.offsets, i.depth, i.alpha_bar,
        *i.denoiser, *i.denoiser_options,
    )
    return d_e, d_mass, *d_denoiser, *d_fine_weights, *d_coarse_weights, *d_router


def _join(everywhere: Tensor, rows: Tensor, inputs: TrajectoryInputs) -> Tensor:
    """The gradient of all tokens' coarse output and that of the read-outs, added."""
    if not inputs.last_only:
        return everywhere + rows
    # Gathered and not scattered, so that no sequence that does not exist writes anywhere.
    tokens = everywhere.shape[1]
    owner = ragged.sequence_ids(inputs.offsets, tokens).clamp(max=rows.shape[1] - 1)
    place = torch.arange(tokens, device=owner.device)
    is_last = place == ragged.last_tokens(inputs.offsets)[owner]
    return torch.where(is_last[:, None], everywhere + rows[:, owner], everywhere)


def in_parts(backend: str) -> Implementation:
    """``fused_trajectory_fwd`` and ``_bwd`` of the op's schema, by the separate ops of a backend.

    The second gives gradients of E, the level mass and every parameter.
    """

    def fwd(*inputs: Any) -> tuple[Tensor, ...]:
        return forward_in_parts(TrajectoryInputs(*inputs), backend)

    def bwd(
        grad_user: Tensor, grad_error: Tensor, grad_pooled: Tensor, *inputs: Any
    ) -> tuple[Tensor, ...]:
        return backward_in_parts(
            grad_user, grad_error, grad_pooled, TrajectoryInputs(*inputs), backend
        )

    return Implementation(fwd, bwd)


fwd, bwd, *_ = in_parts("packed")
