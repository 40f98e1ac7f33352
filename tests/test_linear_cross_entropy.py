"""`linear_cross_entropy`: Eq. 13 over the whole catalogue."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from helpers import Batch, OpCase
from helpers_suite import OpSuite

from adarec_fast.ops import linear_cross_entropy


def build(batch: Batch, *, items: int = 40, left_out: bool = True) -> OpCase:
    """A row a sequence; with ``left_out`` some of them have target 0."""
    g = batch.generator()
    rows = batch.num_sequences
    return OpCase(
        function=linear_cross_entropy,
        arguments={
            "hidden": torch.randn(rows, batch.size, generator=g),
            "weight": torch.randn(items + 1, batch.size, generator=g) / batch.size**0.25,
            "targets": torch.randint(0 if left_out else 1, items + 1, (rows,), generator=g),
        },
        differentiable=("hidden", "weight"),
        # The slope of a softmax errs by the rounding of its scores.
        scale=batch.size**0.5 / items,
        axes={"hidden": ("sequence", 0), "targets": ("sequence", 0)},
    )


class TestLinearCrossEntropy(OpSuite):
    op = "linear_cross_entropy"
    variants: ClassVar = {
        "plain": partial(build, left_out=False),
        "rows-left-out": build,
        "one-item": partial(build, items=1),
        "large-catalogue": partial(build, items=3000),
    }
    # The loss is the mean over the batch.
    test_a_sequence_does_not_depend_on_its_batch = None
