"""`level_pool`: the mean of a sequence's tokens at every level, or the causal running mean."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from helpers import Batch, OpCase
from helpers_suite import OpSuite

from adarec_fast.ops import level_pool


def build(batch: Batch, *, depth: bool = True, causal: bool = False) -> OpCase:
    computed, reached = batch.computed(), batch.reached()
    if not depth:
        computed, reached = batch.real().expand_as(computed), torch.ones_like(reached)
    shape = (batch.levels, batch.num_tokens, batch.size)
    return OpCase(
        function=level_pool,
        arguments={
            "x": torch.randn(shape, generator=batch.generator()),
            "offsets": batch.offsets(),
            "depth": batch.depth() if depth else None,
        },
        differentiable=("x",),
        options={"causal": causal, "max_length": 12},
        readable={"x": computed},
        written=(computed if causal else reached,),
        axes={"x": ("token", 1), "depth": ("sequence", 0)},
        output_axes=(("token" if causal else "sequence", 1),),
    )


class TestLevelPool(OpSuite):
    op = "level_pool"
    free = ("x", "offsets")
    fullest = ("mean", "running")
    variants: ClassVar = {
        "mean": build,
        "running": partial(build, causal=True),
        "mean-no-depth": partial(build, depth=False),
        "running-no-depth": partial(build, causal=True, depth=False),
    }
