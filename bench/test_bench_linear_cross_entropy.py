"""Full-catalogue cross entropy (Eq. 13), also beside torch's own fused function."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from adarec_fast import ops
from adarec_fast.reference.linear_cross_entropy import linear_cross_entropy as reference

from .baselines import packed
from .cell import Cell
from .harness import Prepared, Unavailable
from .op_case import Axis, OpCase, Tensors, normal
from .workloads import NUM_ITEMS, Histories

TORCH = "torch linear_cross_entropy"


class LinearCrossEntropy(OpCase):
    name = "linear_cross_entropy"
    training_only = True
    chunkable = False  # the loss is a mean over the batch
    differentiable = ("hidden", "weight")
    axes: ClassVar[dict[str, Axis]] = {"hidden": ("sequence", 0)}
    items: ClassVar[int] = NUM_ITEMS

    def make(self, generator: torch.Generator) -> Tensors:
        return {
            "hidden": normal(generator, self.batch.batch, self.size),
            "weight": normal(generator, self.items + 1, self.size, fan_in=self.size),
        }

    @classmethod
    def variants(cls, device: str) -> list[str]:
        return [*super().variants(device), TORCH]

    def prepare(self, variant: str) -> Prepared:
        if variant != TORCH:
            return super().prepare(variant)
        if not hasattr(F, "linear_cross_entropy"):
            raise Unavailable(f"torch {torch.__version__} has no F.linear_cross_entropy")

        def call(t: Tensors, batch: Histories, drawn: bool) -> Any:
            return F.linear_cross_entropy(t["hidden"], t["weight"][1:], batch.targets - 1)

        return self._prepared(call, {}, padded=False)

    def public(self, t: Tensors, batch: Histories, backend: str, seed: Tensor | None) -> Any:
        return ops.linear_cross_entropy(t["hidden"], t["weight"], batch.targets, backend=backend)

    def packed(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        return packed.cross_entropy(t["hidden"], t["weight"], batch.targets)

    def padded(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        return reference(t["hidden"], t["weight"], batch.targets)

    def padded_floats(self) -> int:
        return (4 if self.backward else 3) * self.batch.batch * self.items

    def flops(self) -> int:
        return self.passes * 2 * self.batch.batch * self.items * self.size

    def bytes(self) -> int:
        moved = (self.batch.batch + self.items) * self.size
        return 4 * moved * (3 if self.backward else 1)


class MillionItems(LinearCrossEntropy):
    """A catalogue whose logits would not fit into memory: on a GPU, without baselines."""

    form = "10^6 items"
    items: ClassVar[int] = 1_000_000

    @functools.cached_property
    def _cotangents(self) -> list[Tensor]:
        return [torch.ones((), device=self.device)]  # not by the baseline, of 33 GB of logits


CASES = (LinearCrossEntropy,)


def test_linear_cross_entropy(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
