"""`length_bias`: the length's share of the depth controller's input (Eq. 1)."""

from __future__ import annotations

from typing import ClassVar

import torch
from helpers import Batch, OpCase, random_batch
from helpers_suite import OpSuite

from adarec_fast.ops import length_bias


def build(batch: Batch) -> OpCase:
    g = batch.generator()
    size, outputs = batch.size, 3 * max(batch.size // 2, 3)
    return OpCase(
        function=length_bias,
        arguments={
            "offsets": batch.offsets(),
            "w1": torch.randn(size, 1, generator=g),
            "b1": torch.randn(size, generator=g) / 2,
            "w2": torch.randn(size, size, generator=g) / size**0.5,
            "b2": torch.randn(size, generator=g) / 4,
            "w_v": torch.randn(outputs, size, generator=g) / size**0.5,
            "b_ih": torch.randn(outputs, generator=g) / 4,
        },
        differentiable=("w1", "b1", "w2", "b2", "w_v", "b_ih"),
        options={"max_length": 12},
        output_axes=(("sequence", 0),),
    )


class TestLengthBias(OpSuite):
    op = "length_bias"
    variants: ClassVar = {"mlp": build}
    free = ("offsets",)


def test_packed_has_autograds_bits() -> None:
    for autocast in (False, True):
        case = build(random_batch(50, size=24))
        results = []
        for backend in ("reference", "packed"):
            tensors = case.tensors(torch.float32)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                (bias,) = case.call(tensors, backend)
            weight = torch.randn(bias.shape, generator=torch.Generator().manual_seed(0))
            inputs = [tensors[name] for name in case.differentiable]
            results.append([bias, *torch.autograd.grad(bias, inputs, weight)])
        for ours, theirs in zip(*results, strict=True):
            assert torch.equal(ours, theirs)
