"""Element-wise dropout of packed tokens."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from adarec_fast import ops, rng

from .cell import Cell
from .op_case import Axis, OpCase, Tensors, normal
from .workloads import Histories

_DROPOUT = 0.5


class Dropout(OpCase):
    name = "dropout"
    training_only = True
    stochastic = True
    differentiable = ("x",)
    axes: ClassVar[dict[str, Axis]] = {"x": ("token", 0)}
    output_axes = (("token", 0),)

    def make(self, generator: torch.Generator) -> Tensors:
        return {"x": normal(generator, self.batch.tokens, self.size)}

    def public(self, t: Tensors, batch: Histories, backend: str, seed: Tensor | None) -> Any:
        if seed is None:
            return t["x"] * 1.0
        return ops.dropout(
            t["x"], p=_DROPOUT, seed=seed, stream=rng.STREAM_EMBEDDING, backend=backend
        )

    def packed(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        # torch's own function; switched off for the comparison, it must leave x alone.
        return F.dropout(t["x"] * 1.0 if not drawn else t["x"], _DROPOUT, drawn)

    padded = packed

    def padded_floats(self) -> int:
        return 4 * self.batch.batch * self.max_length * self.size

    def flops(self) -> int:
        return (2 if self.backward else 1) * self.batch.tokens * self.size

    def bytes(self) -> int:
        return 4 * self.batch.tokens * self.size * (4 if self.backward else 2)


CASES = (Dropout,)


def test_dropout(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
