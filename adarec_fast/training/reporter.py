"""What a person sees while training runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

if TYPE_CHECKING:
    from .result import TrainResult


# Means by such names are shown while training runs; parts of the loss have the other.
SHOWN, _PART = "mean_", "loss_"


@dataclass(frozen=True)
class TrainingPlan:
    """What a run is about to do. Counts of epochs and steps are of the whole run."""

    run_dir: Path
    epochs: int
    steps_per_epoch: int
    num_examples: int
    epoch: int
    step: int
    device: str
    num_parameters: int


@dataclass(frozen=True)
class StepProgress:
    """Where an epoch is. Means are over the steps since the last report.

    Attributes:
        epoch: from 1.
        batch: batches of this epoch that are done.
        step: steps of the whole run that are done.
        loss: mean total loss.
        examples_per_second: rate since the last report.
        means: what else the model tells, by names ``mean_...``.
    """

    epoch: int
    batch: int
    step: int
    loss: float
    examples_per_second: float
    means: Mapping[str, float]


class Reporter:
    """The silent reporter, and the interface of the others."""

    def compiling(self, ready: int, total: int) -> None:
        """While kernels are compiled for the device, before :meth:`start`: 0 of them first."""

    def start(self, plan: TrainingPlan) -> None:
        """Before the first step."""

    def step(self, progress: StepProgress) -> None:
        """Every ``log_every`` steps and at the end of each epoch."""

    def epoch(self, metrics: Mapping[str, Any], is_best: bool) -> None:
        """After each epoch; ``metrics`` is its line of ``metrics.jsonl``."""

    def message(self, text: str) -> None:
        """Something worth a line."""

    def finish(self, result: TrainResult) -> None:
        """After the last epoch."""

    def close(self) -> None:
        """Always called last, after an error too."""


class PlainReporter(Reporter):
    """One line an epoch, written out at once: for files, pipes and job logs.

    Args:
        file: where lines go, standard output by default.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        self._file = file
        self._epochs = 0

    def compiling(self, ready: int, total: int) -> None:
        if ready in (0, total):
            self.message(_COMPILING.format(total) if ready == 0 else "they are ready")

    def start(self, plan: TrainingPlan) -> None:
        self._epochs = plan.epochs
        self.message(_introduction(plan))

    def epoch(self, metrics: Mapping[str, Any], is_best: bool) -> None:
        self.message(epoch_line(metrics, self._epochs, is_best))

    def message(self, text: str) -> None:
        print(text, file=self._file or sys.stdout, flush=True)

    def finish(self, result: TrainResult) -> None:
        self.message(_conclusion(result))


class RichReporter(Reporter):
    """A progress bar over each epoch: loss, examples a second, the model's means, the time left.

    Args:
        console: a rich console, standard output by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(emoji=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._plan: TrainingPlan | None = None

    def compiling(self, ready: int, total: int) -> None:
        if ready == 0:
            self.message(_COMPILING.format(total))
            self._progress.start()
            self._task = self._progress.add_task("compiling", total=total, status="kernels")
        assert self._task is not None
        self._progress.update(self._task, completed=ready)
        if ready == total:
            self._progress.remove_task(self._task)
            self._progress.stop()

    def start(self, plan: TrainingPlan) -> None:
        self._plan = plan
        self.message(_introduction(plan))
        self._progress.start()
        self._task = self._progress.add_task(
            f"epoch {plan.epoch}/{plan.epochs}", total=plan.steps_per_epoch, status=""
        )

    def step(self, progress: StepProgress) -> None:
        plan, task = self._plan, self._task
        if plan is None or task is None:
            raise RuntimeError("step() before start(): call start(plan) first")
        rate = progress.examples_per_second
        per_step = plan.num_examples / plan.steps_per_epoch
        left = (plan.steps_per_epoch - progress.batch) * per_step / max(rate, 1e-9)
        run_left = left + (plan.epochs - progress.epoch) * plan.num_examples / max(rate, 1e-9)
        self._progress.update(
            task,
            description=f"epoch {progress.epoch}/{plan.epochs}",
            completed=progress.batch,
            status=(
                f"loss {progress.loss:.4f}  {rate:,.0f} examples/s  "
                f"{_shown(progress.means)}ETA {_clock(left)} (run: at most "
                f"{_clock(run_left)})"
            ),
        )

    def epoch(self, metrics: Mapping[str, Any], is_best: bool) -> None:
        epochs = self._plan.epochs if self._plan else 0
        self.message(epoch_line(metrics, epochs, is_best))

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def finish(self, result: TrainResult) -> None:
        self._progress.stop()
        self.message(_conclusion(result))

    def close(self) -> None:
        self._progress.stop()


_COMPILING = "compiling {} kernels for this device, once; a later run finds them"


def make_reporter(console: Console | None = None) -> Reporter:
    """A :class:`RichReporter` when the console is a terminal, else a :class:`PlainReporter`."""
    console = console or Console(emoji=False)
    return RichReporter(console) if console.is_terminal else PlainReporter(console.file)


def epoch_line(metrics: Mapping[str, Any], epochs: int, is_best: bool) -> str:
    """One epoch in one line of plain text."""
    if "loss" in metrics:
        text = (
            f"epoch {metrics['epoch']}/{epochs}  loss {metrics['loss']:.4f}{_parts(metrics)}"
            f"  {_shown(metrics)}{metrics['examples_per_second']:,.0f} examples/s"
        )
    else:
        text = "fitted"
    text += f"  {metrics['seconds']:.1f} s"
    valid = metrics.get("valid")
    if valid:
        text += f"  valid NDCG@20 {valid['NDCG@20']:.4f} HR@20 {valid['HR@20']:.4f}"
        text += " (best)" if is_best else ""
    return text


def _parts(metrics: Mapping[str, Any]) -> str:
    """The parts of the loss, where there are several."""
    found = {n.removeprefix(_PART): v for n, v in metrics.items() if n.startswith(_PART)}
    if len(found) < 2:
        return ""
    return " (" + " ".join(f"{name} {value:.4f}" for name, value in found.items()) + ")"


def _shown(values: Mapping[str, Any]) -> str:
    """What else the model tells of an epoch or of a stretch of it."""
    return "".join(
        f"{name.removeprefix(SHOWN)} {value:.2f}  "
        for name, value in values.items()
        if name.startswith(SHOWN)
    )


def _introduction(plan: TrainingPlan) -> str:
    if not plan.steps_per_epoch:
        return f"{plan.run_dir}: fitted to {plan.num_examples:,} examples, on {plan.device}"
    begun = f", continuing after step {plan.step}" if plan.step else ""
    return (
        f"{plan.run_dir}: {plan.num_parameters:,} parameters on {plan.device}, "
        f"{plan.num_examples:,} examples, {plan.steps_per_epoch:,} steps an epoch, "
        f"at most {plan.epochs} epochs{begun}"
    )


def _conclusion(result: TrainResult) -> str:
    text: str = result.status
    if result.steps:
        text += f" after {result.epochs} epochs, {result.steps} steps"
    if result.best_metric is not None:
        text += f": best validation NDCG@20 {result.best_metric:.4f}"
        text += f" in epoch {result.best_epoch}" if result.steps else ""
    return text


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
