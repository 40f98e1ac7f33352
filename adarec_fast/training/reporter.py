"""What a person sees while training runs."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
)

from .result import TrainResult, counted_epochs

# Means by such names are shown while training runs; parts of the loss have the other.
SHOWN, _PART = "mean_", "loss_"
_WIDTH = 80  # of a line, in any terminal and in a log


@dataclass(frozen=True)
class TrainingPlan:
    """What a run is about to do. Counts of epochs and steps are of the whole run.

    Attributes:
        best: validation NDCG@20 of the best epoch so far, of a run that goes on.
    """

    run_dir: Path
    epochs: int
    steps_per_epoch: int
    num_examples: int
    epoch: int
    step: int
    device: str
    num_parameters: int
    best: float | None = None


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

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """Around what takes a while and is no step; nothing else is told meanwhile."""
        return nullcontext()

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


class _Lines(Reporter):
    """What both reporters tell, a line or a few each."""

    def __init__(self) -> None:
        self._epochs = 0
        self._best: float | None = None

    def start(self, plan: TrainingPlan) -> None:
        self._epochs, self._best = plan.epochs, plan.best
        self.message(_introduction(plan))

    def epoch(self, metrics: Mapping[str, Any], is_best: bool) -> None:
        self.message(epoch_lines(metrics, self._epochs, self._best))
        valid = metrics.get("valid")
        if valid and is_best:
            self._best = valid["NDCG@20"]

    def finish(self, result: TrainResult) -> None:
        self.message(_conclusion(result))


class PlainReporter(_Lines):
    """A line or two an epoch, written out at once: for files, pipes and job logs.

    Args:
        file: where lines go, standard output by default.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        super().__init__()
        self._file = file

    def compiling(self, ready: int, total: int) -> None:
        if ready in (0, total):
            self.message(_COMPILING.format(total) if ready == 0 else "they are ready")

    def message(self, text: str) -> None:
        print(text, file=self._file or sys.stdout, flush=True)


class RichReporter(_Lines):
    """A progress bar over each epoch: loss, examples a second, what is left of epoch and run.

    Args:
        console: a rich console, standard output by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self._console = console or Console(emoji=False)
        self._progress = Progress(
            SpinnerColumn(),  # turns while a validation keeps the bar where it is
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._plan: TrainingPlan | None = None

    def waiting(self, what: str) -> AbstractContextManager[object]:
        return self._console.status(what)

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
        super().start(plan)
        self._plan = plan
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
            # With the widest of figures, still a line of 80.
            status=(
                f"loss {_number(progress.loss)} {rate:,.0f}/s {_clock(left)} "
                f"(run {_clock(run_left)})"
            ),
        )

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def finish(self, result: TrainResult) -> None:
        self._progress.stop()
        super().finish(result)

    def close(self) -> None:
        self._progress.stop()


_COMPILING = "compiling {} kernels for this device, once; a later run finds them"


def make_reporter(console: Console | None = None) -> Reporter:
    """A :class:`RichReporter` when the console is a terminal, else a :class:`PlainReporter`."""
    console = console or Console(emoji=False)
    return RichReporter(console) if console.is_terminal else PlainReporter(console.file)


def epoch_lines(metrics: Mapping[str, Any], epochs: int, best: float | None = None) -> str:
    """An epoch as lines of at most 80: how good it is, then what it is made of.

    Args:
        metrics: its line of ``metrics.jsonl``.
        epochs: how many there are at most.
        best: validation NDCG@20 of the best epoch before, which a difference is told from.
    """
    trained = "loss" in metrics
    head = ["fitted"]
    if trained:
        head = [f"epoch {metrics['epoch']}/{epochs}", f"loss {_number(metrics['loss'])}"]
    valid = metrics.get("valid")
    if valid:
        found = valid["NDCG@20"]
        change = "" if best is None else f"{found - best:+.4f}"
        told = ", ".join(filter(None, (change, "best" if best is None or found > best else "")))
        head += [f"NDCG@20 {found:.4f}" + f" ({told})" * trained, f"HR@20 {valid['HR@20']:.4f}"]
    seconds = metrics["seconds"]
    head.append(f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s")
    details = [*_parts(metrics), *_means(metrics)]
    if not details:
        return _filled(head)
    rate = f"{metrics['examples_per_second']:,.0f} examples/s"
    return f"{_filled(head)}\n{_filled(['', *details, rate])}"


def _filled(fields: Iterable[str]) -> str:
    """Fields side by side, as many as a line holds."""
    kept = [field.replace(" ", "\0") for field in fields]  # no line breaks inside of one
    whole = textwrap.fill(
        "  ".join(kept), _WIDTH, subsequent_indent="  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return whole.replace("\0", " ")


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.3f}"


def _parts(metrics: Mapping[str, Any]) -> list[str]:
    """The parts of the loss, where there are several."""
    found = {n.removeprefix(_PART): v for n, v in metrics.items() if n.startswith(_PART)}
    return [f"{name} {_number(value)}" for name, value in found.items()] if len(found) > 1 else []


def _means(values: Mapping[str, Any]) -> list[str]:
    """What else the model tells of an epoch."""
    return [
        f"{name.removeprefix(SHOWN)} {value:.2f}"
        for name, value in values.items()
        if name.startswith(SHOWN)
    ]


def _introduction(plan: TrainingPlan) -> str:
    if not plan.steps_per_epoch:
        return f"{plan.run_dir}: fitted to {plan.num_examples:,} examples, on {plan.device}"
    size = f"{plan.num_parameters:,} parameters, on {plan.device}"
    apart = "\n  " if len(f"{plan.run_dir}: {size}") > _WIDTH else " "  # a path is not broken
    begun = [f"continuing after step {plan.step:,}"] if plan.step else []
    work = _filled([
        "", f"{plan.num_examples:,} examples", f"{plan.steps_per_epoch:,} steps an epoch",
        f"at most {counted_epochs(plan.epochs)}", *begun,
    ])  # fmt: skip
    return f"{plan.run_dir}:{apart}{size}\n{work}"


def _conclusion(result: TrainResult) -> str:
    text: str = result.status
    if result.steps:
        text += f" after {counted_epochs(result.epochs)}, {result.steps:,} steps"
    if result.best_metric is not None:
        text += f": best validation NDCG@20 {result.best_metric:.4f}"
        text += f" in epoch {result.best_epoch}" if result.steps else ""
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
