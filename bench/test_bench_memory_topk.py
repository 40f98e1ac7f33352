"""The 20 best items with what a memory of transitions adds."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from adarec_fast import ops

from .cell import Cell
from .op_case import Axis, OpCase, Tensors, normal
from .workloads import MAX_LENGTH, NUM_ITEMS, Histories, remembered

_K = 20
# As Beauty's transitions have them.
_NEIGHBOURS = 60
_FACTORS = (0.75, 100.0, 0.8)


class MemoryTopK(OpCase):
    """The baselines add up the whole [users, items] matrix by gather and scatter, and call
    torch.topk on it. Beside ``score_topk``'s figures these say what the memory costs."""

    name = "memory_topk"
    workloads = ("serve-1", "serve-1024")
    serving_only = True
    axes: ClassVar[dict[str, Axis]] = {"users": ("sequence", 0)}
    output_axes = (("sequence", 0), ("sequence", 0))

    def make(self, generator: torch.Generator) -> Tensors:
        rows, neighbours = remembered(generator, _NEIGHBOURS)
        return {
            "users": normal(generator, self.batch.batch, self.size),
            "items": normal(generator, NUM_ITEMS + 1, self.size, fan_in=self.size),
            "rows": rows,
            "neighbours": neighbours,
            "weights": torch.rand(neighbours.shape, generator=generator),
        }

    def public(self, t: Tensors, batch: Histories, backend: str, seed: Tensor | None) -> Any:
        memory = ops.TransitionWeights(
            t["rows"], t["neighbours"], t["weights"], _NEIGHBOURS, *_FACTORS
        )
        return ops.memory_topk(
            t["users"], t["items"], batch.item_ids, batch.offsets, batch.item_ids, batch.offsets,
            memory, _K, max_length=MAX_LENGTH, backend=backend,
        )  # fmt: skip

    def packed(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        return self._dense(t, batch.padded_ids())

    def padded(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        return self._dense(t, batch.item_ids)

    def _dense(self, t: Tensors, ids: Tensor) -> tuple[Tensor, Tensor]:
        alpha, gamma, decay = _FACTORS
        back = (ids != 0).sum(1, keepdim=True) - 1 - torch.arange(ids.shape[1], device=ids.device)
        fading = torch.where(ids != 0, decay ** back.clamp(min=0).float(), 0.0)
        at = t["rows"][ids][..., None] + torch.arange(_NEIGHBOURS, device=ids.device)
        at = at.clamp(max=t["neighbours"].shape[0] - 1)
        scores = t["users"] @ t["items"].T
        sums = torch.zeros_like(scores).scatter_add(
            1, t["neighbours"][at].long().flatten(1),
            (t["weights"][at] * fading[..., None]).flatten(1),
        )  # fmt: skip
        scores = scores + alpha * torch.log1p(gamma * sums)
        best = torch.topk(scores.scatter(1, ids, float("-inf")), _K, dim=-1)
        return best.values, best.indices

    def padded_floats(self) -> int:
        return 8 * self.batch.batch * NUM_ITEMS

    def finish(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Scores alone: near ties may swap the places of their items."""
        scores, chosen = outputs
        ordered = chosen.sort(-1).values
        assert bool((ordered[:, 1:] > ordered[:, :-1]).all()), "an item comes twice"
        return (scores,)

    def flops(self) -> int:
        return 2 * self.size * (self.batch.batch * NUM_ITEMS + self.batch.tokens * _NEIGHBOURS)

    def bytes(self) -> int:
        read = self.batch.tokens * _NEIGHBOURS * (8 + 4 * self.size)
        return 4 * (self.batch.batch + NUM_ITEMS) * self.size + read


CASES = (MemoryTopK,)


def test_memory_topk(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
