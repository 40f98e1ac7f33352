"""The adaptive depth controller: jagged GRU, mean pool and logits (Eq. 1, 2)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from adarec_fast import ops
from adarec_fast.reference.depth_controller import depth_controller as reference

from .baselines import library_gru, packed
from .baselines.padded import GRU_NOT_COMPILED
from .cell import Cell
from .op_case import Axis, OpCase, Tensors, normal
from .workloads import Histories

_WEIGHTS = ("w_ih", "w_hh", "b_hh", "w_out", "b_out")


def _weights(t: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return t["w_ih"], t["w_hh"], t["b_hh"], t["w_out"], t["b_out"]


class DepthController(OpCase):
    name = "depth_controller"
    differentiable = ("embeddings", "sequence_bias", *_WEIGHTS)
    axes: ClassVar[dict[str, Axis]] = {"embeddings": ("token", 0), "sequence_bias": ("sequence", 0)}
    output_axes = (("sequence", 0),)
    not_compiled = GRU_NOT_COMPILED

    def make(self, generator: torch.Generator) -> Tensors:
        size = self.size
        return {
            "embeddings": normal(generator, self.batch.tokens, size),
            "sequence_bias": normal(generator, self.batch.batch, 3 * size),
            "w_ih": normal(generator, 3 * size, size, fan_in=size),
            "w_hh": normal(generator, 3 * size, size, fan_in=size),
            "b_hh": normal(generator, 3 * size),
            "w_out": normal(generator, self.levels, size, fan_in=size),
            "b_out": normal(generator, self.levels),
        }

    def public(self, t: Tensors, batch: Histories, backend: str, seed: Tensor | None) -> Any:
        return ops.depth_controller(
            t["embeddings"], batch.offsets, t["sequence_bias"], *_weights(t),
            max_length=self.max_length, backend=backend,
        )

    def packed(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        return packed.depth_controller._forward(
            t["embeddings"], batch.offsets, t["sequence_bias"], *_weights(t),
            self.max_length,
        )[0]

    def padded(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        function = library_gru.depth_controller if self.device == "cuda" else reference
        return function(
            t["embeddings"], self.valid(batch), t["sequence_bias"], *_weights(t)
        )[0]

    def padded_floats(self) -> int:
        held = 20 if self.backward else 8
        return held * self.batch.batch * self.max_length * self.size

    def flops(self) -> int:
        logits = 2 * self.batch.batch * self.levels * self.size
        return self.passes * (self.batch.tokens * 12 * self.size**2 + logits)

    def bytes(self) -> int:
        # The hidden states are kept for the backward pass.
        moved = self.batch.tokens * self.size * (4 if self.backward else 1)
        sequences = self.batch.batch * (3 * self.size + self.levels)
        return 4 * (moved + (2 if self.backward else 1) * (sequences + 6 * self.size**2))


CASES = (DepthController,)


def test_depth_controller(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
