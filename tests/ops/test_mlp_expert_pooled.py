"""`mlp_expert_pooled`: the coarse expert with last rows and means over tokens."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import test_mlp_expert
from helpers import Batch, OpCase
from helpers_suite import OpSuite

from adarec_fast.ops import mlp_expert_pooled


def build(
    batch: Batch, *, content: bool = True, dropout: float = 0.0, residual: bool = False
) -> OpCase:
    whole = test_mlp_expert.build(batch, dropout=dropout, residual=residual)
    options: dict[str, Any] = {**whole.options, "content": content}
    del options["last_only"]
    reached = batch.reached()
    return OpCase(
        function=mlp_expert_pooled,
        arguments=whole.arguments,
        differentiable=whole.differentiable,
        options=options,
        readable=whole.readable,
        written=(reached, reached, reached if content else None),
        axes=whole.axes,
        output_axes=(("sequence", 1), ("sequence", 1), ("sequence", 1) if content else None),
    )


class TestMLPExpertPooled(OpSuite):
    op = "mlp_expert_pooled"
    variants: ClassVar = {
        "plain": build,
        "no-content": partial(build, content=False),
        "dropout": partial(build, dropout=0.5),
        "residual": partial(build, dropout=0.5, residual=True),
    }
    noisy = ("dropout", "residual")
    fullest = ("dropout",)
