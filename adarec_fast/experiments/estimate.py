"""Roughly how long the runs of a sweep will take."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..data.configured import load_data
from ..models.registry import create_config
from ..training import Reporter, StepProgress, TrainingPlan, train
from ..training.metrics_log import read_metrics
from .definition import Sweep, run_name, without_seeds
from .runner import State, state_of

_PROBED_STEPS = 12


@dataclass(frozen=True)
class Planned:
    """A combination and what it will cost at most; early stopping usually ends it sooner.

    Attributes:
        name: of its folder.
        state: how far it is.
        done, epochs: epochs done and at most to do in all.
        seconds: estimated seconds for the rest, validation included where it was measured; 0 if
            it is finished.
    """

    name: str
    state: State
    done: int
    epochs: int
    seconds: float


class Estimates:
    """What running a sweep would do, as often as it is asked, without changing its folder.

    An epoch's time is that of epochs already logged for the same values (any seed); where there
    are none, a few steps are timed in a temporary folder, once.
    """

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self._sweep, self._folder = sweep, folder
        self._probed: dict[str, float] = {}

    def plan(self) -> list[Planned]:
        """A row for each combination, in their order."""
        sweep, folder = self._sweep, self._folder
        measured: dict[str, list[float]] = {}
        for combination in sweep.combinations:
            for line in read_metrics(folder / run_name(combination)):
                seconds = line["seconds"] + line.get("valid_seconds", 0.0)
                measured.setdefault(run_name(without_seeds(combination)), []).append(seconds)
        rows = []
        for combination in sweep.combinations:
            name, key = run_name(combination), run_name(without_seeds(combination))
            state = state_of(folder, combination)
            epochs = TrainConfig.create(**sweep.values(combination).train).epochs
            done = len(read_metrics(folder / name))
            seconds = 0.0
            if state in ("new", "begun"):
                if key not in measured and key not in self._probed:
                    self._probed[key] = probe(sweep, combination)
                known = measured.get(key) or [self._probed[key]]
                seconds = (epochs - done) * statistics.median(known)
            rows.append(Planned(name, state, done, epochs, seconds))
        return rows


def plan(sweep: Sweep, folder: Path) -> list[Planned]:
    """What running a sweep would do; see :class:`Estimates`."""
    return Estimates(sweep, folder).plan()


def probe(sweep: Sweep, combination: Mapping[str, Any]) -> float:
    """Seconds of an epoch's training, from a dozen steps on the real data.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came meanwhile.
    """
    values = sweep.values(combination)
    data = load_data(values.data)
    rates, examples = [], 0

    class Watch(Reporter):
        def start(self, plan: TrainingPlan) -> None:
            nonlocal examples
            examples = plan.num_examples

        def step(self, progress: StepProgress) -> None:
            rates.append(progress.examples_per_second)

    with tempfile.TemporaryDirectory() as temporary:
        done = train(
            create_config({**values.model, "num_items": data.num_items}),
            TrainConfig.create(**{**values.train, "log_every": 3}),
            data,
            Path(temporary) / "probe",
            reporter=Watch(),
            stop_after_steps=_PROBED_STEPS,
        )
    if done.status == "interrupted":
        raise KeyboardInterrupt  # the signal was for all that is to be timed
    if not rates:  # a model that is only fitted
        return 0.0
    # The first steps also warm caches and build what is built on first use.
    return examples / statistics.median(rates[1:] or rates)
