"""`level_infonce`: the contrastive loss between neighbouring coarse levels (Eq. 6)."""

from __future__ import annotations

from typing import ClassVar

import torch
from helpers import Batch, OpCase
from helpers_suite import OpSuite

from adarec_fast.ops import level_infonce


def build(batch: Batch) -> OpCase:
    g = batch.generator()
    rows = batch.num_sequences
    return OpCase(
        function=level_infonce,
        arguments={
            "z": torch.randn(batch.levels, rows, batch.size, generator=g),
            "depth": batch.depth(),
            # Few enough targets that some users share one.
            "targets": torch.randint(1, max(2, rows) + 1, (rows,), generator=g),
        },
        differentiable=("z",),
        options={"temperature": 0.07},
        readable={"z": batch.reached()},
        scale=1 / max(rows, 1),
        axes={"z": ("sequence", 1), "depth": ("sequence", 0), "targets": ("sequence", 0)},
    )


class TestLevelInfoNCE(OpSuite):
    op = "level_infonce"
    variants: ClassVar = {"shared-targets": build}
    free = ("z",)
    # The reference holds [levels, B, B].
    many = 2000
    # The users of a batch are each other's negatives.
    test_a_sequence_does_not_depend_on_its_batch = None
