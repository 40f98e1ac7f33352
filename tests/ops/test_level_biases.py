"""`level_biases`: the levels' embeddings through the denoiser's and the router's first layers."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from helpers import Batch, OpCase
from helpers_suite import OpSuite

from adarec_fast.ops import level_biases


def build(batch: Batch, *, hidden: int = 2, routed: int = 1, levels: int | None = None) -> OpCase:
    g, size = batch.generator(), batch.size
    levels = levels or batch.levels
    wide, narrow = hidden * size, routed * size
    return OpCase(
        function=level_biases,
        arguments={
            "table": torch.randn(levels, size, generator=g),
            "denoiser_w": torch.randn(wide, size, generator=g) / size**0.5,
            "denoiser_b": torch.randn(wide, generator=g),
            "router_w": torch.randn(narrow, size, generator=g) / size**0.5,
            "router_b": torch.randn(narrow, generator=g),
        },
        differentiable=("table", "denoiser_w", "denoiser_b", "router_w", "router_b"),
        written=(None, None),
        output_axes=(None, None),
    )


class TestLevelBiases(OpSuite):
    op = "level_biases"
    variants: ClassVar = {
        "plain": build,
        "wide": partial(build, hidden=3, routed=2),
        "one-level": partial(build, levels=2),
        "deepest": partial(build, levels=65),
    }
