"""A training step of comparison systems beside plain PyTorch of the same, with ``--op systems``.

Forward, backward, clipping and Adam on batches of 256 of Beauty's lengths, dropout on.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from adarec_fast import rng
from adarec_fast.data import Batch, Split, TrainingBatches, synthetic
from adarec_fast.models import registry
from adarec_fast.models.bert4rec.cloze import hidden_items
from adarec_fast.models.bert4rec.model import BERT4Rec
from adarec_fast.models.caser.model import Caser

from .baselines.peers import ConvolvedCaser, PaddedBERT4Rec
from .cell import Cell
from .harness import BASELINE_TINY, EAGER, Prepared, Subject, assert_accurate, complaint, warmed
from .model_case import OURS
from .workloads import MAX_LENGTH, NUM_ITEMS, WORKLOADS

_USERS, _BATCHES, _CHECKED = 4096, 4, 32
_CLIP, _LEARNING_RATE = 5.0, 1e-3


class PeerStep(Subject):
    """One optimizer step of a system, over four batches in turn."""

    name = "training step of a system"
    slow: ClassVar[bool] = True
    workloads: ClassVar[tuple[str, ...]] = ("train",)
    training_only: ClassVar[bool] = True
    serving_only: ClassVar[bool] = False
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, workload: str, size: int, direction: str, device: str) -> None:
        self.workload, self.size, self.direction, self.device = workload, size, direction, device
        config = registry.create_config({
            "model": self.form, "num_items": NUM_ITEMS, "hidden_size": size, **self.options
        })  # fmt: skip
        self.model = registry.build(config).to(device)
        batches = TrainingBatches(
            *Split(synthetic(_USERS, NUM_ITEMS)).inputs("train"), supervision=config.supervision,
            batch_size=WORKLOADS[workload].batch, max_length=config.max_length, seed=0,
            device=device,
        )  # fmt: skip
        self.batches = list(itertools.islice(batches.epoch(0), _BATCHES))

    @classmethod
    def option_name(cls) -> str:
        """What ``--op`` calls it."""
        return "systems"

    @classmethod
    def directions(cls, workload: str) -> tuple[str, ...]:
        """A step is a step."""
        return ("step",)

    @classmethod
    def variants(cls, device: str) -> list[str]:
        """As its public code computes it, and ours."""
        return [EAGER, OURS]

    def plain(self, model: Any) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
        """The baseline of a model, and its loss as the check asks for it."""
        raise NotImplementedError

    def prepare(self, variant: str) -> Prepared:
        model = copy.deepcopy(self.model)
        module, loss = model, lambda batch: model.loss(batch).total
        wrong = None
        if variant == EAGER:
            module, checked = self.plain(model)
            wrong = complaint(lambda: self._check(module, checked))
            loss = module
        module.train()
        parameters = list(module.parameters())
        fused = torch.optim.Adam(parameters, lr=_LEARNING_RATE, fused=True)
        batches = itertools.cycle(self.batches)

        def step() -> None:
            fused.zero_grad(set_to_none=True)
            loss(next(batches)).backward()
            nn.utils.clip_grad_norm_(parameters, _CLIP)
            fused.step()

        info = warmed(step, self.device, first=True)
        return Prepared(step, {**info, "ours": variant == OURS}, wrong)

    def part(self) -> Batch:
        """Some sequences of the first batch."""
        batch = self.batches[0]
        end = int(batch.offsets[_CHECKED])
        targets = batch.targets[: end if batch.targets.shape == batch.item_ids.shape else _CHECKED]
        return Batch(
            batch.item_ids[:end], batch.offsets[: _CHECKED + 1], targets, batch.users[:_CHECKED]
        )

    def _check(self, module: nn.Module, loss: Callable[[Batch], Tensor]) -> None:
        """The baseline's loss, without dropout, against ours in float64 by the reference."""
        made = []
        for dtype in (torch.float64, torch.float32):
            # The mode draws a cloze; probabilities of 0 leave it without dropout.
            reference = type(self.model)(
                self.model.config.replace(backend="reference", **self._still())
            ).to("cpu", dtype)  # fmt: skip
            reference.load_state_dict(self.model.state_dict())
            made.append(reference.train().loss(self.part().to("cpu")).total.detach()[None])
        module.eval()
        found = loss(self.part()).detach()[None]
        assert_accurate(found, made[1], made[0], f"{self.form}: loss", BASELINE_TINY)

    def _still(self) -> dict[str, float]:
        fields = type(self.model.config).model_fields
        return {n: 0.0 for n in ("dropout", "attention_dropout") if n in fields}

    def flops(self) -> int:
        """Of the catalogue's products alone, which both variants compute."""
        rows = sum(self.rows(batch) for batch in self.batches) // _BATCHES
        return 3 * 2 * rows * NUM_ITEMS * self.size

    def rows(self, batch: Batch) -> int:
        """Targets of a batch."""
        return batch.users.numel()

    def bytes(self) -> int:
        """Parameters, gradients and Adam's two moments, read and written."""
        return 8 * 4 * sum(parameter.numel() for parameter in self.model.parameters())


class BERT4RecStep(PeerStep):
    form = "bert4rec"
    options: ClassVar[dict[str, Any]] = {"max_length": MAX_LENGTH, "last_share": 0.0}

    def _hidden(self, batch: Batch, model: Any) -> Tensor:
        config = model.config
        return hidden_items(
            batch.offsets, batch.item_ids.shape[0], rng.at_place(model.noise_seed),
            share=config.mask_share, last_share=config.last_share,
        )  # fmt: skip

    def plain(self, model: Any) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
        assert isinstance(model, BERT4Rec)
        made = PaddedBERT4Rec(model)
        return made, lambda batch: made(batch, self._hidden(batch, model))

    def rows(self, batch: Batch) -> int:
        return int(self._hidden(batch, self.model).sum())


class CaserStep(PeerStep):
    form = "caser"
    options: ClassVar[dict[str, Any]] = {"loss": "full_ce"}

    def plain(self, model: Any) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
        assert isinstance(model, Caser)
        made = ConvolvedCaser(model)
        return made, made


CASES = (BERT4RecStep, CaserStep)


def test_peers(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
