"""What a run's epochs are made of: passes over the examples, or nothing but a preparation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data import Split, TrainingBatches
from ..models.base import SequenceModel
from .captured import make_stepper
from .progress import check_state_tensor
from .reporter import SHOWN
from .statistics import EpochStatistics

if TYPE_CHECKING:
    from ..distributed import Workers
    from ..distributed.batches import SharedBatches


class Passes:
    """Passes over the training examples of a model that learns by steps.

    Args:
        model: on its device, in training mode.
        config: how it is trained.
        split: of the interactions.
        device: where to train.
        workers: those who train together, or None.

    Attributes:
        num_examples: of a pass.
        steps_per_epoch: of a pass.
        last_epoch: the number of the last epoch, if nothing ends the run before it.
        stepper: takes the steps.
        statistics: running sums of the epoch in progress.
    """

    def __init__(
        self,
        model: SequenceModel,
        config: TrainConfig,
        split: Split,
        device: torch.device,
        workers: Workers | None,
    ) -> None:
        batches = TrainingBatches(
            *split.stepped_on(),
            supervision=model.config.supervision,
            batch_size=config.batch_size,
            max_length=model.config.max_length,
            window_targets=getattr(model.config, "window_targets", 1),
            seed=config.seed,
            device=device,
        )
        shared: SharedBatches | None = None
        if workers is not None:
            from ..distributed.batches import SharedBatches

            gather = config.contrast_negatives == "batch"
            shared = SharedBatches(batches, workers, gather_negatives=gather)
        self._batches: TrainingBatches | SharedBatches = shared or batches
        self.num_examples = batches.num_examples
        self.last_epoch, self.steps_per_epoch = config.epochs, len(self._batches)
        self.statistics = EpochStatistics(model.diagnostics(), device, workers)
        total = self.last_epoch * self.steps_per_epoch
        self.stepper = make_stepper(model, config, device, shared, total)

    def steps(self, epoch: int, done: int, step: int) -> Iterator[None]:
        """Take the steps of an epoch behind its first ``done`` batches, one each time it is asked.

        ``step`` is how many steps of the whole run were taken before.
        """
        for number, batch in enumerate(self._batches.epoch(epoch, done), start=step + 1):
            self.stepper.step(batch, number, self.statistics)
            yield

    def shown(self) -> tuple[dict[str, float], int]:
        """What a progress line shows of the epoch so far, and its examples. Waits."""
        found = self.statistics.read()
        means = {n: v for n, v in found.items() if n == "loss" or n.startswith(SHOWN)}
        return means, self.statistics.examples

    def metrics(self, step: int, seconds: float) -> dict[str, Any]:
        """What the log says of an epoch that ends after ``step`` steps of the run. Waits."""
        return {
            **self.statistics.read(),
            "learning_rate": self.stepper.learning_rate.at(step - 1),
            "examples_per_second": self.statistics.examples / max(seconds, 1e-9),
        }

    def state_tensors(self) -> dict[str, Tensor]:
        """Adam's state and the running sums, of all workers."""
        return {**self.stepper.state_tensors(), "statistics": self.statistics.whole()}

    def load_state_tensors(self, tensors: dict[str, Tensor], examples: int, where: str) -> None:
        """Inverse of :meth:`state_tensors`, after ``examples`` examples of the epoch.

        Raises:
            CheckpointError: a tensor is missing, unknown, or of another shape or dtype.
        """
        sums = self.statistics.sums
        check_state_tensor(tensors, "statistics", sums.shape, sums.dtype, where)
        self.stepper.load_state_tensors(tensors, where)
        self.statistics.restore(tensors["statistics"], examples)


class Prepared(Passes):
    """Of a model that :meth:`SequenceModel.prepare` fits, which is then all of its only epoch."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.last_epoch, self.steps_per_epoch = 1, 0

    def metrics(self, step: int, seconds: float) -> dict[str, Any]:
        return {}
