"""Adam's step size at each step of a run."""

from __future__ import annotations

import math

from ..config import TrainConfig


class LearningRate:
    """The schedule of a configuration: a pure function of the step, so that a resumed run goes on
    with it.

    ``rate(s) = learning_rate * min(1, (s + 1) / warmup_steps) * c(s)``, where ``c`` is 1 or, under
    ``learning_rate_schedule="cosine"``, ``(1 + cos(pi * s / total_steps)) / 2`` (Loshchilov and
    Hutter 2017, without restarts), or, under ``"linear"``, ``1 - s / total_steps``.

    Args:
        config: the rate, its schedule and warm-up.
        total_steps: of all of the run's epochs; only those that fall ask for it.

    Raises:
        ValueError: the rate falls and there is no ``total_steps``.
    """

    def __init__(self, config: TrainConfig, total_steps: int | None = None) -> None:
        self._schedule = config.learning_rate_schedule
        falls = self._schedule != "constant"
        if falls and total_steps is None:
            raise ValueError(
                f"total_steps=None: learning_rate_schedule={self._schedule!r} needs the steps of "
                "the whole run"
            )
        self._highest = config.learning_rate
        self._warmup = config.warmup_steps
        self._total = total_steps if falls else None

    def at(self, step: int) -> float:
        """The rate of a step, counted over the whole run from 0."""
        rate = self._highest
        if step < self._warmup:
            rate *= (step + 1) / self._warmup
        if self._total is None:
            return rate
        if self._schedule == "linear":
            return rate * (1.0 - step / self._total)
        rate *= 0.5 * (1.0 + math.cos(math.pi * step / self._total))
        return rate
