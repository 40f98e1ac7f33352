"""Training steps of the other systems beside plain PyTorch, with ``--op systems`` or ``-m slow``.

The steps are those of ``loss="original"`` and ``supervision="all"``, or of what else a system
takes, B = 256, two layers; their rate is one over a row's time. No result of it is committed yet:
it is to be run on a machine that does nothing else.
"""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any, ClassVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from adarec_fast import synthetic
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.models.registry import build, create_config

from .baselines.plugins import (
    PaddedBASRec,
    PaddedDiffDiv,
    PaddedGlobalDiff,
    PaddedIOCRec,
    PaddedPDRec,
)
from .baselines.systems import PaddedSystem
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
    baseline: ClassVar[type[PaddedSystem]] = PaddedSystem
    epoch: ClassVar[int] = 0

    def __init__(self, workload: str, size: int, direction: str, device: str) -> None:
        self.workload, self.size, self.direction, self.device = workload, size, direction, device
        fields = {
            "num_items": NUM_ITEMS, "hidden_size": size, "max_length": MAX_LENGTH, "num_layers": 2,
            "loss": "original", "supervision": "all", **self.system,
        }  # fmt: skip
        config = create_config(fields)
        self.model: Any = build(config).to(device).train()
        self.model.begin_training(split())
        self.model.to(device).begin_epoch(self.epoch)
        batches = TrainingBatches(
            *split().inputs("train"), supervision=config.supervision, device=device, seed=0,
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
            plain = self.baseline(ours)
            module, step_of = plain, plain
            data = [plain.given(batch) for batch in self.data]
        optimizer = torch.optim.Adam(module.parameters(), lr=_LEARNING_RATE, fused=True)
        batches = itertools.cycle(data)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            step_of(next(batches)).backward()
            optimizer.step()

        info = warmed(step, self.device, first=True)
        return Prepared(step, {**info, "ours": variant == OURS}, wrong)

    def check(self) -> None:
        """Without dropout both have one loss."""
        fields = {name: 0.0 for name in type(self.model.config).model_fields if "dropout" in name}
        fields.pop("guidance_dropout", None)
        model: Any = build(self.model.config.replace(**fields)).to(self.device).train()
        model.load_state_dict(self.model.state_dict())
        model.begin_training(split())
        model.to(self.device)
        plain, batch = self.baseline(model), self.data[0]
        with torch.no_grad():
            found = plain(plain.given(batch, exact=True))
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


class BASRecStep(SystemStep):
    """Five passes a step, and six mixtures."""

    form = "basrec"
    system: ClassVar[dict[str, Any]] = {"model": "basrec", "plain_epochs": 0}
    baseline = PaddedBASRec


class PDRecStep(SystemStep):
    """Two passes a step."""

    form = "pdrec"
    system: ClassVar[dict[str, Any]] = {
        "model": "pdrec", "preference_epochs": 1, "preference_hidden": 16
    }  # fmt: skip
    baseline = PaddedPDRec


class IOCRecStep(SystemStep):
    """Three passes a step, with intents, on prefixes."""

    form = "iocrec"
    system: ClassVar[dict[str, Any]] = {"model": "iocrec", "supervision": "prefix"}
    baseline = PaddedIOCRec


class GlobalDiffStep(SystemStep):
    """A pass of the frozen encoder and one of the U-Net, on prefixes."""

    form = "globaldiff"
    system: ClassVar[dict[str, Any]] = {
        "model": "globaldiff", "supervision": "prefix", "encoder_epochs": 1
    }  # fmt: skip
    baseline = PaddedGlobalDiff
    epoch = 1


class DiffDivStep(SystemStep):
    """A pass and a denoiser, on prefixes, with the full cross entropy."""

    form = "diffdiv"
    system: ClassVar[dict[str, Any]] = {
        "model": "diffdiv", "supervision": "prefix", "loss": "full_ce"
    }  # fmt: skip
    baseline = PaddedDiffDiv


CASES = (
    SASRecStep, ICLRecStep, ELCRecStep, BASRecStep, PDRecStep, IOCRecStep, GlobalDiffStep,
    DiffDivStep,
)  # fmt: skip


def test_systems(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
