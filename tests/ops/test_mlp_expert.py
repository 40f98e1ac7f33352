"""`mlp_expert`: the token-wise coarse expert over levels of ragged depth."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from helpers import Batch, OpCase
from helpers_suite import OpSuite

from adarec_fast import rng
from adarec_fast.ops import mlp_expert


def build(
    batch: Batch,
    *,
    depth: bool = True,
    dropout: float = 0.0,
    residual: bool = False,
    last_only: bool = False,
) -> OpCase:
    g = batch.generator()
    size, hidden = batch.size, 2 * batch.size
    computed, reached = batch.computed(), batch.reached()
    if not depth:
        computed, reached = batch.real().expand_as(computed), torch.ones_like(reached)
    return OpCase(
        function=mlp_expert,
        arguments={
            "x": torch.randn(batch.levels, batch.num_tokens, size, generator=g),
            "offsets": batch.offsets(),
            "depth": batch.depth() if depth else None,
            "w1": torch.randn(hidden, size, generator=g) / size**0.5,
            "b1": torch.randn(hidden, generator=g) / 4,
            "w2": torch.randn(size, hidden, generator=g) / hidden**0.5,
            "b2": torch.randn(size, generator=g) / 4,
            "ln_w": 1 + torch.randn(size, generator=g) / 4,
            "ln_b": torch.randn(size, generator=g) / 4,
            "seed": rng.as_seed(batch.seed) if dropout else None,
        },
        differentiable=("x", "w1", "b1", "w2", "b2", "ln_w", "ln_b"),
        options={
            "eps": 1e-5,
            "hidden_dropout": dropout,
            "residual": residual,
            "last_only": last_only,
            "max_length": 12,
        },
        readable={"x": computed},
        written=(reached if last_only else computed,),
        axes={"x": ("token", 1), "depth": ("sequence", 0)},
        output_axes=(("sequence" if last_only else "token", 1),),
    )


class TestMLPExpert(OpSuite):
    op = "mlp_expert"
    variants: ClassVar = {
        "plain": build,
        "last": partial(build, last_only=True),
        "no-depth": partial(build, depth=False),
        "dropout": partial(build, dropout=0.5),
        "last-dropout": partial(build, dropout=0.3, last_only=True),
        "residual": partial(build, dropout=0.5, residual=True),
    }
    # With no depth, nothing else has a sequence axis.
    free = ("offsets",)
    noisy = ("dropout", "last-dropout", "residual")
    fullest = ("dropout", "last-dropout")
