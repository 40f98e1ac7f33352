"""`hda_trajectory`: Eq. 4 and 5 for every level of ragged depth."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from helpers import Batch, OpCase
from helpers_suite import OpSuite

from adarec_fast import rng
from adarec_fast.ops import hda_trajectory


def build(batch: Batch, *, noise: str, bounded: bool = False) -> OpCase:
    """A case; ``noise`` is "explicit", "seed" or "none"."""
    g = batch.generator()
    size, hidden, levels = batch.size, 2 * batch.size, batch.levels
    schedule = torch.linspace(1.0, 0.08, levels)
    explicit = torch.randn(levels - 1, batch.num_tokens, size, generator=g)
    computed = batch.computed()
    case_noise = explicit if noise == "explicit" else None
    return OpCase(
        function=hda_trajectory,
        arguments={
            "embeddings": torch.randn(batch.num_tokens, size, generator=g),
            "offsets": batch.offsets(),
            "depth": batch.depth(),
            "alpha_bar": schedule,
            "w1": torch.randn(hidden, size, generator=g) / size**0.5,
            "level_bias": torch.randn(levels - 1, hidden, generator=g) / 2,
            "w2": torch.randn(size, hidden, generator=g) / hidden**0.5,
            "b2": torch.randn(size, generator=g) / 2,
            "seed": rng.as_seed(batch.seed - 50) if noise == "seed" else None,
            "noise": case_noise,
        },
        differentiable=("embeddings", "w1", "level_bias", "w2", "b2"),
        options={"max_length": 12, "bounded": bounded},
        readable={"embeddings": batch.real(), "noise": computed[1:]},
        written=(computed, batch.real()),
        axes={
            "embeddings": ("token", 0),
            "depth": ("sequence", 0),
            "noise": ("token", 1),
        },
        output_axes=(("token", 1), ("token", 0)),
        fixed=("alpha_bar",),
    )


class TestHdaTrajectory(OpSuite):
    op = "hda_trajectory"
    variants: ClassVar = {
        "explicit": partial(build, noise="explicit"),
        "seed": partial(build, noise="seed"),
        "none": partial(build, noise="none"),
        "bounded": partial(build, noise="seed", bounded=True),
        "bounded-none": partial(build, noise="none", bounded=True),
    }
    noisy = ("seed", "bounded")
    fullest = ("seed",)
