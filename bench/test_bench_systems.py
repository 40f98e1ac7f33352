"""Training steps of the other systems beside plain PyTorch, with ``--op systems`` or ``-m slow``.

The steps are those of ``loss="original"``, ``supervision="all"``, B = 256, two layers; their rate
is one over a row's time. No result of it is committed yet: it is to be run on a machine that does
nothing else.
"""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any, ClassVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from adarec_fast import rng, synthetic
from adarec_fast.data import Batch, Split, TrainingBatches
from adarec_fast.models.blocks.augmentation import augmented
from adarec_fast.models.iclrec.losses import Contrast
from adarec_fast.models.registry import build, create_config
from adarec_fast.models.sasrec.model import SASRec

from .baselines.systems import Padded, PaddedSystem, padded
from .cell import Cell
from .harness import EAGER, Prepared, Subject, complaint, warmed
from .model_case import OURS
from .workloads import MAX_LENGTH, NUM_ITEMS, WORKLOADS

_USERS, _BATCHES, _LEARNING_RATE = 2_048, 4, 1e-3


@functools.cache
def split() -> Split:
    """Synthetic data of Beauty's items and lengths."""
    return Split(synthetic(_USERS, NUM_ITEMS, num_themes=40, subthemes_per_theme=5))


class SystemStep(Subject):
    """Forward, backward and Adam, over four batches in turn."""

    name = "training step of a system"
    slow = True
    system: ClassVar[dict[str, Any]]
    workloads: ClassVar[tuple[str, ...]] = ("train",)
    training_only: ClassVar[bool] = True
    serving_only: ClassVar[bool] = False

    def __init__(self, workload: str, size: int, direction: str, device: str) -> None:
        self.workload, self.size, self.direction, self.device = workload, size, direction, device
        fields = {
            "num_items": NUM_ITEMS, "hidden_size": size, "max_length": MAX_LENGTH,
            "loss": "original", "supervision": "all", **self.system,
        }  # fmt: skip
        model = build(create_config(fields))
        assert isinstance(model, SASRec)
        self.model = model.to(device).train()
        model.begin_training(split())
        model.to(device).begin_epoch(0)
        batches = TrainingBatches(
            *split().inputs("train"), supervision="all", device=device, seed=0,
            batch_size=WORKLOADS[workload].batch, max_length=MAX_LENGTH,
        )  # fmt: skip
        self.data = list(itertools.islice(batches.epoch(0), _BATCHES))

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
        """Public code's way, and ours."""
        return [EAGER, OURS]

    def prepare(self, variant: str) -> Prepared:
        ours = copy.deepcopy(self.model)
        wrong = None
        if variant == OURS:
            module, step_of, data = ours, lambda batch: ours.loss(batch).total, self.data
        else:
            wrong = complaint(self.check)
            plain = PaddedSystem(ours)
            module, step_of = plain, plain
            data = [self.as_padded(batch) for batch in self.data]
        optimizer = torch.optim.Adam(module.parameters(), lr=_LEARNING_RATE, fused=True)
        batches = itertools.cycle(data)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            step_of(next(batches)).backward()
            optimizer.step()

        info = warmed(step, self.device, first=True)
        return Prepared(step, {**info, "ours": variant == OURS}, wrong)

    def as_padded(self, batch: Batch, model: SASRec | None = None) -> Padded:
        """A batch with what a step of the model would draw for it now."""
        model = self.model if model is None else model
        draws = rng.at_place(model.noise_seed)
        views = None
        if isinstance(model.auxiliary, Contrast):
            views = augmented(
                batch.item_ids, batch.offsets, draws, (0, 1, 0, 1), model.auxiliary.ratios
            )
        drawn = model._drawn(batch, draws)
        return padded(
            batch.item_ids, batch.offsets, batch.targets, drawn, views, MAX_LENGTH
        )

    def check(self) -> None:
        """Without dropout both have one loss."""
        model = copy.deepcopy(self.model).eval()
        batch = self.data[0]
        with torch.no_grad():
            found = PaddedSystem(model).eval()(self.as_padded(batch, model))
            expected = model.loss(batch).total
        assert abs(float(found - expected)) < 1e-4 * float(expected), f"{found} is not {expected}"

    def flops(self) -> int:
        """Of the encoder's passes alone, which both need."""
        tokens = sum(batch.item_ids.numel() for batch in self.data) // len(self.data)
        return 3 * 24 * tokens * self.size**2 * self.model.config.num_layers

    def bytes(self) -> int:
        return 9 * sum(p.numel() * p.element_size() for p in self.model.parameters())


class SASRecStep(SystemStep):
    """One pass a step."""

    form = "sasrec"
    system: ClassVar[dict[str, Any]] = {"model": "sasrec"}


class ICLRecStep(SystemStep):
    """Three passes a step."""

    form = "iclrec"
    system: ClassVar[dict[str, Any]] = {"model": "iclrec"}


class ELCRecStep(SystemStep):
    """Three passes a step, and centres."""

    form = "elcrec"
    system: ClassVar[dict[str, Any]] = {"model": "elcrec"}


CASES = (SASRecStep, ICLRecStep, ELCRecStep)


def test_systems(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
