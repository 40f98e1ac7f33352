"""How fast a run goes, and how its loss does, between two readings of the device."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .reporter import StepProgress

if TYPE_CHECKING:
    from .trainer import Trainer


class Clock:
    """Time and means between two readings of the statistics, within one epoch of one call."""

    def __init__(self, training: Trainer) -> None:
        self._training = training
        self._time = time.perf_counter()
        self._examples = training.statistics.examples
        self._loss_sum, self._depth_sum = self._sums()

    def _sums(self) -> tuple[float, float]:
        means = self._training.statistics.read()
        examples = self._training.statistics.examples
        return means["loss"] * examples, means["mean_depth"] * examples

    def read(self) -> None:
        """Wait for the device, stop if something is not finite, and report."""
        training = self._training
        training.raise_if_diverged()
        loss_sum, depth_sum = self._sums()
        now = time.perf_counter()
        seconds = max(now - self._time, 1e-9)
        training.epoch_seconds += seconds
        examples = training.statistics.examples - self._examples
        if examples:
            training.reporter.step(
                StepProgress(
                    epoch=training.epoch + 1,
                    batch=training.batch,
                    step=training.step,
                    loss=(loss_sum - self._loss_sum) / examples,
                    examples_per_second=examples / seconds,
                    mean_depth=(depth_sum - self._depth_sum) / examples,
                )
            )
        self._time = now
        self._examples = training.statistics.examples
        self._loss_sum, self._depth_sum = loss_sum, depth_sum
