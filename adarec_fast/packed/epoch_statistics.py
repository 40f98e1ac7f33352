"""A step's numbers added to an epoch's; nothing here is ragged, so it is the reference's code."""

from __future__ import annotations

from torch import Tensor

from ..reference.epoch_statistics import epoch_statistics


def fwd(
    sums: Tensor, bad_step: Tensor, bad_parts: Tensor, rec: Tensor, deno: Tensor, cont: Tensor,
    expl: Tensor, total: Tensor, norm: Tensor, entropy: Tensor, error: Tensor, depth: Tensor,
    gate: Tensor, step: Tensor | None, number: int,
) -> Tensor:
    """``epoch_statistics_fwd`` of the op's schema."""
    values = rec, deno, cont, expl, total, norm, entropy, error
    return epoch_statistics(
        sums, bad_step, bad_parts, values, depth, gate, number if step is None else step
    )
