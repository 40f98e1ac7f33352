"""What the model returns, and what it hands to its losses."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ...ops import Aggregate
from ...ragged import brief
from ..base import LossOutput


class Hierarchy(NamedTuple):
    """A_u for a batch: x0 ``[T+1, N, D]`` of packed tokens; levels k > depth are undefined.

    Example:
        >>> output = model(torch.tensor([[1, 9]]), return_hierarchy=True)
        >>> output.hierarchy.levels.shape  # of T = 2, two tokens and D = 8
        torch.Size([3, 2, 8])
    """

    levels: Tensor
    offsets: Tensor
    depth: Tensor

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {brief(tensor)}" for name, tensor in self._asdict().items())
        return f"Hierarchy({parts})"


class ADARecOutput(NamedTuple):
    """What ``forward`` returns.

    Attributes:
        user: h_u ``[B, D]``, Eq. 11 at the last position; of a read-out by K intents
            ``[B, K, D]``.
        depth: T_u ``[B]`` int64.
        hierarchy: the levels, on demand.
        gates: g_k ``[T+1, B]``, 0 beyond the depth, on demand; of more than two experts, that of
            the fine one.
        losses: on demand, where targets were given.
        expert_gates: of more than two experts ``[N, T+1, B]``, of sum 1 over them up to the depth,
            on demand; the first is the fine one, the last the coarsest.

    Example:
        >>> model(torch.tensor([[1, 9], [4, 2]]))
        ADARecOutput(user float32 [2, 8], depth int64 [2])
    """

    user: Tensor
    depth: Tensor
    hierarchy: Hierarchy | None = None
    gates: Tensor | None = None
    losses: LossOutput | None = None
    expert_gates: Tensor | None = None

    def __repr__(self) -> str:
        there = {name: part for name, part in self._asdict().items() if part is not None}
        return f"ADARecOutput({', '.join(f'{name} {brief(part)}' for name, part in there.items())})"


class Parsed(NamedTuple):
    """One pass from item ids to h, with everything that the losses need."""

    user: Tensor  # [R, D]; of a read-out by K intents [R, K, D]
    depth: Tensor  # [B]
    computed: Tensor  # [B], levels computed: the depth, or T under depth_gradient="full"
    logits: Tensor | None  # [B, T+1]
    levels: Tensor | None  # [T+1, N, D]; None where the fused trajectory ran
    error: Tensor | None  # [N]
    contrast: Tensor | None  # [T+1, B, D], what Eq. 6 compares; of N > 2 [N-1, T+1, B, D]
    aggregate: Aggregate | None
    row_depth: Tensor  # [R]
    embeddings: Tensor  # E [N, D]
    table: Tensor | None = None  # [V+1, D], for the loss where not the parameter itself
    expert_gates: Tensor | None = None  # [N, T+1, R] of more than two experts
