"""HP-MoE: router, averages over ragged levels, final gate (Eq. 7-11)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from adarec_fast import ops
from adarec_fast.reference.moe_aggregate import moe_aggregate as reference

from .baselines import packed
from .cell import Cell
from .op_case import Axis, OpCase, Tensors, normal
from .workloads import Histories

_ROWS = ("fine", "coarse", "pooled")
_WEIGHTS = (
    "router_w1", "router_level_bias", "router_w2", "router_b2", "gate_w", "gate_b"
)  # fmt: skip


class MoEAggregate(OpCase):
    name = "moe_aggregate"
    workloads = ("train", "large")
    differentiable = (*_ROWS, "level_mass", *_WEIGHTS)
    axes: ClassVar[dict[str, Axis]] = {name: ("sequence", 1) for name in (*_ROWS, "level_mass")}
    output_axes = (("sequence", 0),)

    def make(self, generator: torch.Generator) -> Tensors:
        size, rows = self.size, self.batch.batch
        return {
            **{name: normal(generator, self.levels, rows, size) for name in _ROWS},
            "level_mass": self.reached(self.batch).float(),
            "router_w1": normal(generator, size, size, fan_in=size),
            "router_level_bias": normal(generator, self.levels, size),
            "router_w2": normal(generator, size, fan_in=size),
            "router_b2": normal(generator, 1),
            "gate_w": normal(generator, size, size, fan_in=size),
            "gate_b": normal(generator, size),
        }

    def _rest(
        self, t: Tensors
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        return (
            t["level_mass"], t["router_w1"], t["router_level_bias"], t["router_w2"],
            t["router_b2"], t["gate_w"], t["gate_b"],
        )  # fmt: skip

    def public(self, t: Tensors, batch: Histories, backend: str, seed: Tensor | None) -> Any:
        return ops.moe_aggregate(
            t["fine"], t["coarse"], t["pooled"], batch.depth, *self._rest(t), backend=backend
        ).user

    def packed(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        return packed.moe_aggregate._forward(
            t["fine"], t["coarse"], t["pooled"], batch.depth, *self._rest(t)
        )[0]

    def padded(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        return reference(
            t["fine"], t["coarse"], t["pooled"], self.reached(batch), *self._rest(t)
        )[0]

    def padded_floats(self) -> int:
        return 14 * self.levels * self.batch.batch * self.size

    def defined(self, name: str, batch: Histories) -> Tensor | None:
        return self.reached(batch) if name in (*_ROWS, "level_mass") else None

    def flops(self) -> int:
        router = self.batch.level_sequences * (2 * self.size**2 + 6 * self.size)
        return self.passes * (router + self.batch.batch * 2 * self.size**2)

    def bytes(self) -> int:
        read = 3 * self.batch.level_sequences * self.size + 2 * self.size**2
        written = self.batch.batch * self.size
        # Backward: the inputs again, their gradients, and the gradient of h.
        return 4 * ((3 * read + 2 * written) if self.backward else (read + written))


CASES = (MoEAggregate,)


def test_moe_aggregate(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
