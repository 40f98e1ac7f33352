"""What the model returns, and what it hands to its losses."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .ops import Aggregate


class Hierarchy(NamedTuple):
    """A_u for a batch: x0 ``[T+1, N, D]`` of packed tokens; levels k > depth are undefined."""

    levels: Tensor
    offsets: Tensor
    depth: Tensor


class LossOutput(NamedTuple):
    """A batch's losses and what the training log shows of them. All but ``total`` is detached.

    Attributes:
        total: L_tot of Eq. 12, a scalar with gradient.
        parts: ``rec``, ``deno``, ``cont``, ``expl``: scalars before their weights.
        depth: ``[B]`` int64, T_u.
        gate: ``[T+1]``, mean g_k over the examples that reach level k; nan where none does.
        depth_entropy: entropy of the noise-free depth softmax, nats.
        denoising_error: mean (eps_theta - eps)^2, the same number as ``parts["deno"]``.
        examples: of a worker's share of a batch: B of the whole batch, whose means all values
            are but ``depth``; the gradient of ``total`` is the share's part of it.
    """

    total: Tensor
    parts: dict[str, Tensor]
    depth: Tensor
    gate: Tensor
    depth_entropy: Tensor
    denoising_error: Tensor
    examples: int | None = None


class ADARecOutput(NamedTuple):
    """What ``forward`` returns.

    Attributes:
        user: h_u ``[B, D]``, Eq. 11 at the last position.
        depth: T_u ``[B]`` int64.
        hierarchy: the levels, on demand.
        gates: g_k ``[T+1, B]``, 0 beyond the depth, on demand.
        losses: on demand, where targets were given.
    """

    user: Tensor
    depth: Tensor
    hierarchy: Hierarchy | None = None
    gates: Tensor | None = None
    losses: LossOutput | None = None


class Parsed(NamedTuple):
    """One pass from item ids to h, with everything that the losses need."""

    user: Tensor  # [R, D]
    depth: Tensor  # [B]
    computed: Tensor  # [B], levels computed: the depth, or T under depth_gradient="full"
    logits: Tensor | None  # [B, T+1]
    levels: Tensor | None  # [T+1, N, D]; None where the fused trajectory ran
    error: Tensor | None  # [N]
    contrast: Tensor | None  # [T+1, B, D], what Eq. 6 compares
    aggregate: Aggregate | None
    row_depth: Tensor  # [R]
    table: Tensor | None = None  # [V+1, D], for the loss where not the parameter itself
