"""Items and positions of packed histories, LayerNorm and dropout: what the backbone reads."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from adarec_fast import ops
from adarec_fast.reference.embedding import embedding as reference

from .cell import Cell
from .op_case import Axis, OpCase, Tensors, normal
from .workloads import NUM_ITEMS, Histories

_EPS, _DROPOUT = 1e-12, 0.5


class Embedding(OpCase):
    """The table's gradient starts from zeros, where a training step's is the cross entropy's."""

    name = "embedding"
    stochastic = True
    differentiable = ("table", "positions", "norm_weight", "norm_bias")
    output_axes = (("token", 0),)
    axes: ClassVar[dict[str, Axis]] = {}

    def make(self, generator: torch.Generator) -> Tensors:
        return {
            "table": normal(generator, NUM_ITEMS + 1, self.size),
            "positions": normal(generator, self.max_length, self.size),
            "norm_weight": normal(generator, self.size),
            "norm_bias": normal(generator, self.size),
        }

    def public(self, t: Tensors, batch: Histories, backend: str, seed: Tensor | None) -> Any:
        return ops.embedding(
            batch.item_ids, batch.offsets, *t.values(), eps=_EPS, p=_DROPOUT, seed=seed,
            backend=backend,
        ).x  # fmt: skip

    def packed(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        table, *rest = t.values()
        embedded = F.embedding(batch.item_ids, table, padding_idx=0)
        return F.dropout(reference(embedded, batch.offsets, *rest, _EPS), _DROPOUT, drawn)

    def padded(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        place = torch.arange(batch.item_ids.shape[1], device=batch.item_ids.device)
        from_end = (batch.lengths[:, None] - 1 - place).clamp(min=0)
        x = F.embedding(batch.item_ids, t["table"], padding_idx=0) + t["positions"][from_end]
        x = F.layer_norm(x, (self.size,), t["norm_weight"], t["norm_bias"], _EPS)
        return F.dropout(x, _DROPOUT, drawn)

    def padded_floats(self) -> int:
        return (10 if self.backward else 6) * self.batch.batch * self.max_length * self.size

    def flops(self) -> int:
        return (30 if self.backward else 10) * self.batch.tokens * self.size

    def bytes(self) -> int:
        # Backward: rows again, x's gradient, and the rows' gradient, written and read; an item's
        # sum is added to its row.
        rows = 2 * self.batch.tokens
        if self.backward:
            rows += 4 * self.batch.tokens + 2 * int(self.batch.item_ids.unique().numel())
        return 4 * rows * self.size


CASES = (Embedding,)


def test_embedding(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
