"""An epoch of Beauty's shape; with ``--op epoch`` or ``-m slow`` beside a user's own alternatives.

Supervision ``"all"``, B = 256, two layers, dropout 0.5. An epoch is timed in stretches of every
eighth batch, by all variants in turn; a row's ``stretches`` of them are an epoch. RecBole's SASRec
is its own code and has other weights, so that it is not held to the reference; it reads a history
at its last item only, and so has a row for every prefix.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import math
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from adarec_fast import ADARec, ragged
from adarec_fast.data import (
    Batch,
    InteractionData,
    Split,
    TrainingBatches,
    load,
    synthetic,
)

from .baselines.packed import PackedADARec
from .baselines.sasrec import PackedSASRec
from .cell import Cell
from .harness import (
    BASELINE_TINY,
    PACKED,
    Prepared,
    Subject,
    Unavailable,
    assert_accurate,
    complaint,
    warmed,
)
from .model_case import OURS
from .workloads import MAX_LENGTH, NUM_ITEMS, WORKLOADS

OUR_SASREC = "adarec_fast SASRec"
SASREC, COMPILED_SASREC = "packed SASRec", "compiled packed SASRec"
RECBOLE, REPLAY = "RecBole's SASRec", "RePlay's SASRec"
_USERS = 22_363  # Amazon Beauty's
_STRETCHES, _CHECKED, _CLIP, _LEARNING_RATE = 8, 32, 5.0, 1e-3
_DRAWS = 3
Loss = Callable[[Batch, int], Tensor]


def beauty() -> tuple[InteractionData, str]:
    """Beauty from the folder ADAREC_FAST_DATA, else synthetic data of its shape; and which."""
    folder = os.environ.get("ADAREC_FAST_DATA")
    if folder and (Path(folder) / "Beauty.txt").exists():
        return load(Path(folder) / "Beauty.txt"), "Beauty"
    return synthetic(_USERS, NUM_ITEMS, num_themes=40, subthemes_per_theme=5), (
        "synthetic data of Beauty's users, items and lengths"
    )


class Epoch(Subject):
    """A stretch of an epoch: forward, backward, clipping, Adam over every eighth batch.

    The models of ADARec compute Eq. 12, those of SASRec its Eq. 13 alone.
    """

    name = "Beauty epoch"
    workloads: ClassVar[tuple[str, ...]] = ("train",)
    training_only: ClassVar[bool] = True
    serving_only: ClassVar[bool] = False

    def __init__(self, workload: str, size: int, direction: str, device: str) -> None:
        self.workload, self.size, self.direction, self.device = workload, size, direction, device
        data, self.data = beauty()
        self.source = data
        batches = TrainingBatches(
            *Split(data).inputs("train"), supervision="all", device=device, seed=0,
            batch_size=WORKLOADS[workload].batch, max_length=MAX_LENGTH,
        )  # fmt: skip
        self.batches = [(b, int(b.offsets.diff().max())) for b in batches.epoch(0)]
        self.model = ADARec(
            num_items=data.num_items, hidden_size=size, max_length=MAX_LENGTH, supervision="all"
        ).to(device)
        # Without augmentation and Eq. 6: SASRec's own loss over the same weights.
        self.plain = ADARec(
            num_items=data.num_items, hidden_size=size, max_length=MAX_LENGTH, supervision="all",
            moe=False, diffusion=False, depth="fixed", lambda_cont=0, lambda_deno=0, lambda_expl=0,
        ).to(device)  # fmt: skip

    @classmethod
    def option_name(cls) -> str:
        """What ``--op`` calls it."""
        return "epoch"

    @classmethod
    def directions(cls, workload: str) -> tuple[str, ...]:
        """An epoch is an epoch."""
        return ("epoch",)

    @classmethod
    def variants(cls, device: str) -> list[str]:
        """The same model without the ops, and ours."""
        return [PACKED, OURS]

    def prepare(self, variant: str) -> Prepared:
        batches, wrong = self.batches, None
        if variant == REPLAY:
            missing = importlib.util.find_spec("replay") is None
            raise Unavailable(
                "RePlay is not installed" if missing else "RePlay's SASRec needs Lightning and has "
                "no form here; RecBole's stands for both"
            )  # fmt: skip
        if variant == RECBOLE:
            module, loss = self._recbole()
            batches = self._prefixes()
            start = float(loss(*batches[0]).detach())
            expected = math.log(self.model.config.num_items)
            assert abs(start - expected) < 0.1 * expected, f"{variant}: first loss {start}"
        else:
            module, loss = self._loss(variant)
            wrong = complaint(lambda: self._check(variant, module, loss))
        module.train()
        if variant == COMPILED_SASREC:
            loss = self._compiled(module, loss)
        parameters = [p for p in module.parameters() if p.requires_grad]
        fused = torch.optim.Adam(parameters, lr=_LEARNING_RATE, fused=True)

        def step(batch: Batch, longest: int) -> None:
            fused.zero_grad(set_to_none=True)
            loss(batch, longest).backward()
            nn.utils.clip_grad_norm_(parameters, _CLIP)
            fused.step()

        starts = itertools.cycle(range(_STRETCHES))

        def stretch() -> None:
            for batch, longest in batches[next(starts) :: _STRETCHES]:
                step(batch, longest)

        info = warmed(lambda: step(*batches[0]), self.device, first=True)
        return Prepared(stretch, {
            **info, "ours": variant == OURS, "stretches": _STRETCHES, "data": self.data,
            "batches": len(batches), "max_depth": self.model.config.max_depth,
        }, wrong)  # fmt: skip

    def _loss(self, variant: str) -> tuple[nn.Module, Loss]:
        if variant == PACKED:
            packed = PackedADARec(copy.deepcopy(self.model))
            return packed, lambda b, _: packed(b.item_ids, b.offsets, b.targets)
        if variant in (SASREC, COMPILED_SASREC):
            sasrec = PackedSASRec(copy.deepcopy(self.plain))
            return sasrec, lambda b, longest: sasrec(b.item_ids, b.offsets, b.targets, longest)
        ours = copy.deepcopy(self.model if variant == OURS else self.plain)
        return ours, lambda b, _: ours.loss(b).total

    def _prefixes(self) -> list[tuple[Batch, int]]:
        """The (history, next item) pairs that ``"all"`` has, a row each, as RecBole has them."""
        batches = TrainingBatches(
            *Split(self.source).inputs("train"), supervision="prefix", device=self.device, seed=0,
            batch_size=WORKLOADS[self.workload].batch, max_length=MAX_LENGTH,
        )  # fmt: skip
        return [(batch, MAX_LENGTH) for batch in batches.epoch(0)]

    def _recbole(self) -> tuple[nn.Module, Loss]:
        """RecBole's own SASRec and loss, on histories padded to ``max_length`` as it pads them."""
        try:
            from recbole.model.sequential_recommender.sasrec import SASRec
        except (ImportError, AttributeError) as error:
            raise Unavailable(f"RecBole cannot be imported: {error}") from None
        config = self.plain.config
        settings = {
            "USER_ID_FIELD": "user", "ITEM_ID_FIELD": "item", "LIST_SUFFIX": "_list",
            "ITEM_LIST_LENGTH_FIELD": "length", "NEG_PREFIX": "neg_", "device": self.device,
            "MAX_ITEM_LIST_LENGTH": MAX_LENGTH, "n_layers": config.num_layers,
            "n_heads": config.num_heads, "hidden_size": self.size, "inner_size": 4 * self.size,
            "hidden_dropout_prob": config.dropout, "attn_dropout_prob": config.attention_dropout,
            "hidden_act": "gelu", "layer_norm_eps": config.layer_norm_eps,
            "initializer_range": 0.02, "loss_type": "CE",
        }  # fmt: skip
        items = types.SimpleNamespace(num=lambda _: config.num_items + 1)
        module = SASRec(settings, items).to(self.device)

        def loss(batch: Batch, longest: int) -> Tensor:
            return module.calculate_loss({
                "item_list": ragged.to_padded(batch.item_ids, batch.offsets, longest),
                "length": ragged.lengths(batch.offsets), "item": batch.targets,
            })  # fmt: skip

        return module, loss

    def _compiled(self, module: nn.Module, eager: Loss) -> Loss:
        """The loss through Inductor, for any shape; compared under dropout, by its mean."""
        call = torch.compile(module, dynamic=True)

        def loss(batch: Batch, longest: int) -> Tensor:
            return call(batch.item_ids, batch.offsets, batch.targets, longest)

        means = []
        for function in (loss, eager):
            draws = [float(function(*given).detach()) for given in self.batches[:_DRAWS]]
            means.append(sum(draws) / _DRAWS)
        assert abs(means[0] - means[1]) < 0.02 * means[1], f"mean losses {means}"
        return loss

    def _check(self, variant: str, module: nn.Module, loss: Loss) -> None:
        """The loss, without noise and dropout, against the reference in float64."""
        batch = self.batches[0][0]
        end = int(batch.offsets[_CHECKED])
        part = Batch(
            batch.item_ids[:end], batch.offsets[: _CHECKED + 1], batch.targets[:end],
            batch.users[:_CHECKED],
        )  # fmt: skip
        whole = self.model if variant in (OURS, PACKED) else self.plain
        made = []
        for dtype in (torch.float64, torch.float32):
            reference = copy.deepcopy(whole).to("cpu", dtype).eval()
            reference.config = reference.config.replace(backend="reference")
            made.append(reference.loss(part.to("cpu")).total.detach()[None])
        module.eval()
        found = loss(part, int(part.offsets.diff().max())).detach()[None]
        assert_accurate(found, made[1], made[0], f"{variant}: loss", BASELINE_TINY)

    def _mean(self, count: Callable[[Batch], int]) -> int:
        """Of the batches of a stretch, on average."""
        return sum(count(batch) for batch, _ in self.batches) // _STRETCHES

    def flops(self) -> int:
        """Of the catalogue's products alone, which every variant computes."""
        items = self.model.config.num_items
        return self._mean(lambda b: 3 * 2 * b.item_ids.numel() * items * self.size)

    def bytes(self) -> int:
        parameters = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return self._mean(lambda _: 9 * parameters)


class Peers(Epoch):
    """The same beside plain SASRec, another's and ours: minutes."""

    form = "beside SASRec"
    slow = True

    @classmethod
    def variants(cls, device: str) -> list[str]:
        """The slowest first, so that patience is spent on few rounds of it."""
        return [PACKED, SASREC, COMPILED_SASREC, RECBOLE, REPLAY, OUR_SASREC, OURS]


CASES = (Epoch, Peers)


def test_epoch(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
