"""The coarse expert with its last rows and means over tokens, as training reads it out."""

from __future__ import annotations

from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from adarec_fast import ops
from adarec_fast.reference.level_pool import level_pool as reference

from .baselines import packed
from .cell import Cell
from .op_case import Tensors
from .test_bench_mlp_expert import _DROPOUT, _EPS, MLPExpert, _weights
from .workloads import Histories


class MLPExpertPooled(MLPExpert):
    name = "mlp_expert_pooled"
    output_axes = (("sequence", 1),) * 3

    def public(self, t: Tensors, batch: Histories, backend: str, seed: Tensor | None) -> Any:
        return ops.mlp_expert_pooled(
            t["x"], batch.offsets, batch.depth, *_weights(t), eps=_EPS,
            hidden_dropout=_DROPOUT, seed=seed, max_length=self.max_length, backend=backend,
        )

    def packed(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        y = super().packed(t, batch, drawn)
        given = batch.offsets, batch.depth, False
        last = y[:, batch.offsets[1:] - 1]
        pool = packed.level_pool._forward
        return last, pool(y, *given), pool(t["x"], *given)

    def padded(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        y, valid = super().padded(t, batch, drawn), self.valid(batch)
        place = (batch.offsets.diff() - 1)[None, :, None, None]
        last = y.gather(2, place.expand(self.levels, -1, 1, self.size))[:, :, 0]
        return last, reference(y, valid, False), reference(t["x"], valid, False)

    def defined(self, name: str, batch: Histories) -> Tensor | None:
        return self.reached(batch) if name in ("0", "1", "2") else super().defined(name, batch)

    def flops(self) -> int:
        pooled = 2 * self.batch.level_tokens * self.size
        return super().flops() + pooled * (2 if self.backward else 1)

    def bytes(self) -> int:
        # The result is written and read by the means; of the gradients of both only dx remains.
        moved = 3 * self.batch.level_tokens + 3 * self.batch.level_sequences
        forward = 4 * (moved * self.size + 4 * self.size**2)
        return forward + super().bytes() // 2 if self.backward else forward


CASES = (MLPExpertPooled,)


def test_mlp_expert_pooled(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
