"""`moe_aggregate`: routing and gated fusion over ragged levels (Eq. 7 to 11)."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from helpers import Batch, OpCase
from helpers_suite import OpSuite

from adarec_fast.ops import moe_aggregate


def build(batch: Batch, *, content: bool = True, soft: bool = False) -> OpCase:
    """A case with one read-out a sequence; ``soft`` masses are not all 1."""
    g = batch.generator()
    size, hidden, rows, levels = batch.size, batch.size, batch.num_sequences, batch.levels
    reached = batch.reached()

    def plane() -> torch.Tensor:
        return torch.randn(levels, rows, size, generator=g)

    mass = torch.rand(levels, rows, generator=g) + 0.1 if soft else torch.ones(levels, rows)
    return OpCase(
        function=moe_aggregate,
        arguments={
            "fine": plane(),
            "coarse": plane(),
            "pooled": plane() if content else None,
            "depth": batch.depth(),
            "level_mass": mass,
            "router_w1": torch.randn(hidden, size, generator=g) / size**0.5,
            "router_level_bias": torch.randn(levels, hidden, generator=g) / 2,
            "router_w2": torch.randn(hidden, generator=g) / hidden**0.5,
            "router_b2": torch.randn(1, generator=g) / 4,
            "gate_w": torch.randn(size, size, generator=g) / size**0.5,
            "gate_b": torch.randn(size, generator=g) / 4,
        },
        differentiable=(
            "fine", "coarse", *(("pooled",) if content else ()), "level_mass",
            *(("router_w1",) if content else ()), "router_level_bias", "router_w2", "router_b2",
            "gate_w", "gate_b",
        ),
        readable=dict.fromkeys(("fine", "coarse", "pooled", "level_mass"), reached),
        written=(None, None, None, None),
        axes={
            "fine": ("sequence", 1),
            "coarse": ("sequence", 1),
            "pooled": ("sequence", 1),
            "depth": ("sequence", 0),
            "level_mass": ("sequence", 1),
        },
        # Gradients of gates are sums of dot products over D; at depth 0 they cancel.
        scale=4 * size**0.5,
        output_axes=(("sequence", 0), ("sequence", 1), ("sequence", 0), ("sequence", 0)),
    )


class TestMoEAggregate(OpSuite):
    op = "moe_aggregate"
    variants: ClassVar = {
        "content": build,
        "level-only": partial(build, content=False),
        "soft-mass": partial(build, soft=True),
    }
