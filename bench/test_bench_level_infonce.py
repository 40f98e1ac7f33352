"""The contrastive loss between neighbouring coarse levels (Eq. 6)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from adarec_fast import ops
from adarec_fast.reference.level_infonce import level_infonce as reference

from .baselines import packed
from .cell import Cell
from .op_case import Axis, OpCase, Tensors, normal
from .workloads import Histories

_TEMPERATURE = 0.07


class LevelInfoNCE(OpCase):
    name = "level_infonce"
    training_only = True
    chunkable = False  # the negatives are the whole batch
    differentiable = ("z",)
    axes: ClassVar[dict[str, Axis]] = {"z": ("sequence", 1)}

    def make(self, generator: torch.Generator) -> Tensors:
        return {"z": normal(generator, self.levels, self.batch.batch, self.size)}

    def public(self, t: Tensors, batch: Histories, backend: str, seed: Tensor | None) -> Any:
        return ops.level_infonce(
            t["z"], batch.depth, batch.targets, _TEMPERATURE, backend=backend
        )

    def packed(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        return packed.level_infonce._forward(t["z"], batch.depth, batch.targets, _TEMPERATURE)[0]

    def padded(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        return reference(t["z"], batch.depth, batch.targets, _TEMPERATURE)

    def padded_floats(self) -> int:
        return (8 if self.backward else 5) * (self.levels - 1) * self.batch.batch**2

    def defined(self, name: str, batch: Histories) -> Tensor | None:
        return self.reached(batch) if name == "z" else None

    def flops(self) -> int:
        level = torch.arange(self.levels - 1, device=self.device)[:, None]
        depth = self.batch.depth
        anchors = ((level >= depth // 2) & (level < depth)).sum(1)
        candidates = (depth > level).sum(1)
        return self.passes * int((anchors * candidates).sum()) * 2 * self.size

    def bytes(self) -> int:
        moved = self.batch.level_sequences * self.size
        return 4 * moved * (3 if self.backward else 1)


CASES = (LevelInfoNCE,)


def test_level_infonce(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
