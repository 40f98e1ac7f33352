"""Pool of Eq. 7: the mean over a sequence's tokens at every level."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from adarec_fast import ops
from adarec_fast.reference.level_pool import level_pool as reference

from .baselines import packed
from .cell import Cell
from .op_case import Axis, OpCase, Tensors, normal
from .workloads import Histories


class LevelPool(OpCase):
    name = "level_pool"
    differentiable = ("x",)
    axes: ClassVar[dict[str, Axis]] = {"x": ("token", 1)}
    output_axes = (("sequence", 1),)

    def make(self, generator: torch.Generator) -> Tensors:
        return {"x": normal(generator, self.levels, self.batch.tokens, self.size)}

    def public(self, t: Tensors, batch: Histories, backend: str, seed: Tensor | None) -> Any:
        return ops.level_pool(
            t["x"], batch.offsets, batch.depth, max_length=self.max_length, backend=backend
        )

    def packed(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        return packed.level_pool._forward(t["x"], batch.offsets, batch.depth, False)

    def padded(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        return reference(t["x"], self.valid(batch), False)

    def padded_floats(self) -> int:
        return 4 * self.levels * self.batch.batch * self.max_length * self.size

    def defined(self, name: str, batch: Histories) -> Tensor | None:
        return self.computed(batch) if name == "x" else self.reached(batch)

    def flops(self) -> int:
        return (2 if self.backward else 1) * self.batch.level_tokens * self.size

    def bytes(self) -> int:
        moved = (self.batch.level_tokens + self.batch.level_sequences) * self.size
        return 4 * moved * (2 if self.backward else 1)


CASES = (LevelPool,)


def test_level_pool(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
