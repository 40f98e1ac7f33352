"""`depth_controller`: jagged GRU, mean pool and logits over the depths (Eq. 1, 2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from helpers import Batch, OpCase
from helpers_suite import OpSuite

from adarec_fast.ops import depth_controller


def build(batch: Batch) -> OpCase:
    g = batch.generator()
    size, gru = batch.size, max(batch.size // 2, 3)
    return OpCase(
        function=depth_controller,
        arguments={
            "embeddings": torch.randn(batch.num_tokens, size, generator=g),
            "offsets": batch.offsets(),
            "sequence_bias": torch.randn(batch.num_sequences, 3 * gru, generator=g) / 2,
            "w_ih": torch.randn(3 * gru, size, generator=g) / size**0.5,
            "w_hh": torch.randn(3 * gru, gru, generator=g) / gru**0.5,
            "b_hh": torch.randn(3 * gru, generator=g) / 4,
            "w_out": torch.randn(batch.levels, gru, generator=g) / gru**0.5,
            "b_out": torch.randn(batch.levels, generator=g) / 4,
        },
        differentiable=(
            "embeddings", "sequence_bias", "w_ih", "w_hh", "b_hh", "w_out", "b_out",
        ),
        options={"max_length": 12},
        readable={"embeddings": batch.real()},
        axes={"embeddings": ("token", 0), "sequence_bias": ("sequence", 0)},
        output_axes=(("sequence", 0),),
    )


class TestDepthController(OpSuite):
    op = "depth_controller"
    variants: ClassVar = {"gru": build}


def test_agrees_with_torch_gru() -> None:
    case = build(Batch(lengths=(4, 4, 4), depths=(0, 0, 0), size=6, max_length=4))
    tensors = case.tensors(torch.float64)
    gru = torch.nn.GRU(6, 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        gru.weight_ih_l0.copy_(tensors["w_ih"])
        gru.weight_hh_l0.copy_(tensors["w_hh"])
        gru.bias_hh_l0.copy_(tensors["b_hh"])
        wanted = []
        for row, bias in zip(
            tensors["embeddings"].view(3, 4, 6), tensors["sequence_bias"], strict=True
        ):
            gru.bias_ih_l0.copy_(bias)
            wanted.append(gru(row[None])[0].mean(1))
        wanted = torch.cat(wanted) @ tensors["w_out"].T + tensors["b_out"]
        (logits,) = case.call(tensors, "reference")
    torch.testing.assert_close(logits, wanted, rtol=1e-12, atol=1e-12)
