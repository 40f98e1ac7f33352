"""What the model returns, and what it hands to its losses."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ...ops import Aggregate
from ..base import LossOutput


class Hierarchy(NamedTuple):
    """A_u for a batch: x0 ``[T+1, N, D]`` of packed tokens; levels k > depth are undefined."""

    levels: Tensor
    offsets: Tensor
    depth: Tensor


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
    embeddings: Tensor  # E [N, D]
    table: Tensor | None = None  # [V+1, D], for the loss where not the parameter itself
