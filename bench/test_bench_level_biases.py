"""The levels' embeddings through the denoiser's and the router's first layers."""

from __future__ import annotations

from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from adarec_fast import ops
from adarec_fast.reference.level_biases import level_biases as reference

from .cell import Cell
from .op_case import OpCase, Tensors, normal
from .workloads import Histories

_NAMES = ("table", "denoiser_w", "denoiser_b", "router_w", "router_b")


class LevelBiases(OpCase):
    name = "level_biases"
    differentiable = _NAMES
    output_axes = (None, None)
    chunkable = False

    def make(self, generator: Any) -> Tensors:
        size = self.size
        return {
            "table": normal(generator, self.levels, size),
            "denoiser_w": normal(generator, 2 * size, size, fan_in=size),
            "denoiser_b": normal(generator, 2 * size),
            "router_w": normal(generator, size, size, fan_in=size),
            "router_b": normal(generator, size),
        }

    def public(self, t: Tensors, batch: Histories, backend: str, seed: Tensor | None) -> Any:
        return ops.level_biases(*(t[name] for name in _NAMES), backend=backend)

    def packed(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        return reference(*(t[name] for name in _NAMES))

    padded = packed

    def padded_floats(self) -> int:
        return 6 * self.levels * self.size

    def flops(self) -> int:
        return self.passes * 2 * self.levels * 3 * self.size**2

    def bytes(self) -> int:
        moved = 3 * self.size**2 + 4 * self.levels * self.size
        return 4 * moved * (2 if self.backward else 1)


CASES = (LevelBiases,)


def test_level_biases(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
