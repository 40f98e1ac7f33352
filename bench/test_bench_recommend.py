"""Recommendation: from histories to the 20 best unseen items.

Each call answers another history. What nobody can do without, the product of the users' vectors
with the table and ``topk``, is timed beside it in the same state of the caches: as the call before
left them, or flushed, as a service meets them that does other things between two requests.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import ClassVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from adarec_fast import Recommender
from adarec_fast.models.memory import Memory

from .cell import Cell
from .harness import (
    BASELINE_TINY,
    COMPILED,
    EAGER,
    PACKED,
    Prepared,
    assert_accurate,
    complaint,
    ours_tiny,
    warmed,
)
from .model_case import OURS, ModelCase
from .summary import PRODUCT
from .workloads import MAX_LENGTH, NUM_ITEMS, WORKLOADS, Histories, remembered

_K = 20
_SCREENED = 8  # users of a request, at most, for whom the int8 copy is read
_FLUSHED_BYTES = 1 << 27  # more than the last-level cache of most
Recommend = Callable[[Histories, Tensor], tuple[Tensor, Tensor]]


class Recommendation(ModelCase):
    """Users in turn: 32 single ones, or four batches of 1024. Padded ids are made beforehand."""

    name = "recommend"
    workloads: ClassVar[tuple[str, ...]] = ("serve-1", "serve-1024")
    serving_only = True
    flushed: ClassVar[bool] = False
    lists: ClassVar[bool] = False

    def __init__(self, workload: str, size: int, direction: str, device: str) -> None:
        count = 32 if WORKLOADS[workload].batch == 1 else 4
        super().__init__(workload, size, direction, device, batches=count)
        self.model.eval()

    @classmethod
    def option_name(cls) -> str:
        return "recommend"

    @classmethod
    def directions(cls, workload: str) -> tuple[str, ...]:
        """Inference alone."""
        return ("forward",)

    @classmethod
    def variants(cls, device: str) -> list[str]:
        """The baselines, what every ranking needs at least, and ours."""
        return [EAGER, COMPILED, PACKED, PRODUCT, OURS]

    def prepare(self, variant: str) -> Prepared:
        before = self._flush if self.flushed else None
        if variant == PRODUCT:
            users = itertools.cycle([torch.randn(b.batch, self.size, device=self.device)
                                     for b in self.data])  # fmt: skip
            table = self.model.item_embedding.weight.detach()

            @torch.inference_mode()
            def product() -> tuple[Tensor, Tensor]:
                scores, items = (next(users) @ table.T).topk(_K)
                return scores, items

            return Prepared(product, warmed(product, self.device, first=True), before=before)
        recommend = self._recommend(variant)
        given = [(batch, batch.padded_ids()) for batch in self.data]
        users = itertools.cycle(given)

        def run() -> tuple[Tensor, Tensor]:
            return recommend(*next(users))

        info = warmed(run, self.device, first=variant != COMPILED)
        wrong = complaint(lambda: self._check(variant, recommend(*given[0])))
        return Prepared(run, {**info, "ours": variant == OURS}, wrong, before)

    @functools.cached_property
    def _other(self) -> Tensor:
        return torch.zeros(_FLUSHED_BYTES // 4, device=self.device)

    def _flush(self) -> None:
        """Fill the caches with something else."""
        self._other.add_(1.0)

    def _recommend(self, variant: str) -> Recommend:
        if variant == PACKED:
            packed = self.packed().eval()
            return lambda b, ids: packed.recommend(b.item_ids, b.offsets, ids, _K)
        if variant in (EAGER, COMPILED):
            padded = self.padded(compiled=variant == COMPILED).eval()
            call: Callable[..., tuple[Tensor, Tensor]] = padded.recommend
            if variant == COMPILED:
                mode = "reduce-overhead" if self.device == "cuda" else None
                call = torch.compile(call, dynamic=False, mode=mode)

            @torch.no_grad()
            def recommend(batch: Histories, ids: Tensor) -> tuple[Tensor, Tensor]:
                return call(ids, batch.lengths, _K)

            return recommend
        recommender = Recommender(self.copy())
        if self.lists:
            asked = {
                id(batch): [part.tolist() for part in batch.item_ids.tensor_split(
                    batch.offsets[1:-1].cpu()
                )] for batch in self.data
            }  # fmt: skip

            def from_lists(batch: Histories, ids: Tensor) -> tuple[Tensor, Tensor]:
                ranking = recommender.recommend(asked[id(batch)], _K)
                return ranking.scores, ranking.items

            return from_lists

        def ours(batch: Histories, ids: Tensor) -> tuple[Tensor, Tensor]:
            ranking = recommender.recommend((batch.item_ids, batch.offsets), _K)
            return ranking.scores, ranking.items

        return ours

    def _check(self, variant: str, found: tuple[Tensor, Tensor]) -> None:
        """Scores against the reference's in float64, and the items' own float64 scores."""
        if not hasattr(self, "_gold"):
            batch = self.data[0].to("cpu")
            self._gold = []
            for dtype in (torch.float64, torch.float32):
                model = self.copy().to("cpu", dtype).eval()
                model.config = model.config.replace(backend="reference")
                history = batch.item_ids, batch.offsets
                _, scores = model.recommend(history, k=_K)
                with torch.no_grad():
                    every = model.score(model(history).user)
                if model.memory is not None:
                    model.memory.add_to(every, *history)
                self._gold.append((scores, every))
        (best, all_scores), (plain, _) = self._gold
        scores, items = (t.cpu() for t in found)
        terms = max(self.data[0].level_tokens, 4 * self.size)
        tiny = ours_tiny(self.device, terms) if variant == OURS else BASELINE_TINY
        assert_accurate(scores, plain, best, f"{variant}: scores", tiny)
        assert_accurate(all_scores.gather(1, items), plain, best, f"{variant}: items", tiny)

    def flops(self) -> int:
        """Of the batch in the middle of the timed ones."""
        costs = [
            self.model_flops(b, contrast=False) + 2 * b.batch * NUM_ITEMS * self.size
            for b in self.data
        ]
        return sorted(costs)[len(costs) // 2]

    def bytes(self) -> int:
        """Of the parameters; a few users' requests read the item table on a CPU as bytes, with a
        scale and a radius an item (``csrc/cpu/screen.cpp``)."""
        found = self.parameter_bytes()
        if self.device != "cpu" or WORKLOADS[self.workload].batch > _SCREENED:
            return found
        table = self.model.item_embedding.weight
        return found - table.numel() * table.element_size() + NUM_ITEMS * (self.size + 8)


class Flushed(Recommendation):
    """The same after something else has been in the caches."""

    form = "caches flushed"
    flushed = True


class FromLists(Recommendation):
    """The same from Python lists of ids; the others are given padded tensors."""

    form = "from lists"
    lists = True

    @classmethod
    def variants(cls, device: str) -> list[str]:
        """What is given vectors, and ours, which is given lists."""
        return [PRODUCT, OURS]


class Remembered(Recommendation):
    """The same from a model with a memory, which the product does without: beside the row without
    one it says what a memory costs. Each item of a history leads to 100 others anywhere in the
    catalogue; with Beauty's regression it is 101 on average."""

    form = "with a memory"
    _NEIGHBOURS: ClassVar[int] = 100

    def __init__(self, workload: str, size: int, direction: str, device: str) -> None:
        super().__init__(workload, size, direction, device)
        generator = torch.Generator().manual_seed(1)
        rows, neighbours = remembered(generator, self._NEIGHBOURS)
        self.model.memory = Memory(
            rows, neighbours, torch.rand(neighbours.shape, generator=generator),
            alpha=1.0, gamma=1.0, decay=0.95, max_length=MAX_LENGTH, kind="regression",
        ).to(device)  # fmt: skip

    @classmethod
    def variants(cls, device: str) -> list[str]:
        """What needs no memory, and ours."""
        return [PRODUCT, OURS]


CASES = (Recommendation, Flushed, FromLists, Remembered)


def test_recommend(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
