"""Catalogue scores, seen items masked, the 20 best."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from adarec_fast import ops

from .baselines.padded import best_items
from .cell import Cell
from .op_case import Axis, OpCase, Tensors, normal
from .workloads import NUM_ITEMS, Histories

_K = 20


class ScoreTopK(OpCase):
    """The baselines keep the whole score matrix and call torch.topk on it; the seen items are
    masked through padded ids."""

    name = "score_topk"
    workloads = ("serve-1", "serve-1024")
    serving_only = True
    axes: ClassVar[dict[str, Axis]] = {"users": ("sequence", 0)}
    output_axes = (("sequence", 0), ("sequence", 0))

    def make(self, generator: torch.Generator) -> Tensors:
        return {
            "users": normal(generator, self.batch.batch, self.size),
            "items": normal(generator, NUM_ITEMS + 1, self.size, fan_in=self.size),
        }

    def public(self, t: Tensors, batch: Histories, backend: str, seed: Tensor | None) -> Any:
        return ops.score_topk(
            t["users"], t["items"], batch.item_ids, batch.offsets, _K, backend=backend
        )

    def packed(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        return best_items(t["users"], t["items"], batch.padded_ids(), _K)

    def padded(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        return best_items(t["users"], t["items"], batch.item_ids, _K)

    def padded_floats(self) -> int:
        return 4 * self.batch.batch * NUM_ITEMS

    def finish(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Scores, and the scores of the items by float64: near ties may swap their places."""
        scores, chosen = outputs
        ordered = chosen.sort(-1).values
        assert bool((ordered[:, 1:] > ordered[:, :-1]).all()), "an item comes twice"
        users, items = self.tensors["users"].double(), self.tensors["items"].double()
        vectors = items[chosen.to(items.device)]
        return scores, (vectors @ users[..., None])[..., 0]

    def flops(self) -> int:
        return 2 * self.batch.batch * NUM_ITEMS * self.size

    def bytes(self) -> int:
        return 4 * (self.batch.batch + NUM_ITEMS) * self.size


CASES = (ScoreTopK,)


def test_score_topk(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
