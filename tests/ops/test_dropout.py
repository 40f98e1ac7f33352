"""`dropout`: element-wise dropout of packed tokens by the noise contract."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from helpers import Batch, OpCase
from helpers_suite import OpSuite

from adarec_fast import rng
from adarec_fast.ops import dropout


def build(batch: Batch, *, p: float = 0.5) -> OpCase:
    return OpCase(
        function=dropout,
        arguments={
            "x": torch.randn(batch.num_tokens, batch.size, generator=batch.generator()),
            "seed": rng.as_seed(batch.seed),
        },
        differentiable=("x",),
        options={"p": p, "stream": rng.STREAM_EMBEDDING},
        readable={"x": batch.real()},
        written=(batch.real(),),
        axes={"x": ("token", 0)},
        output_axes=(("token", 0),),
    )


class TestDropout(OpSuite):
    op = "dropout"
    variants: ClassVar = {
        "half": build,
        "tenth": partial(build, p=0.1),
        "most": partial(build, p=0.95),
    }
    free = ("x",)
    # The mask follows the place of a token in the batch.
    test_permuted_sequences_give_permuted_results = None
    test_a_sequence_does_not_depend_on_its_batch = None
