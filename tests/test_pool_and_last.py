"""`pool_and_last`: a level's mean over a sequence's tokens, and its last token."""

from __future__ import annotations

from typing import ClassVar

import torch
from helpers import Batch, OpCase
from helpers_suite import OpSuite

from adarec_fast.ops import pool_and_last


def build(batch: Batch) -> OpCase:
    shape = (batch.levels, batch.num_tokens, batch.size)
    return OpCase(
        function=pool_and_last,
        arguments={
            "x": torch.randn(shape, generator=batch.generator()),
            "offsets": batch.offsets(),
            "depth": batch.depth(),
        },
        differentiable=("x",),
        options={"max_length": 12},
        readable={"x": batch.computed()},
        written=(batch.reached(), batch.reached()),
        axes={"x": ("token", 1), "depth": ("sequence", 0)},
        output_axes=(("sequence", 1), ("sequence", 1)),
    )


class TestPoolAndLast(OpSuite):
    op = "pool_and_last"
    free = ("x", "offsets")
    variants: ClassVar = {"both": build}
