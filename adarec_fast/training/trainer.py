"""A training run between two steps, and what moves it on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from ..config import ModelConfig, TrainConfig
from ..data import InteractionData, Split
from ..distributed.workers import Agreement, saving_seconds
from ..models import registry
from ..models.pretrained import write
from . import run_folder
from .callbacks import Callback, Callbacks, RunInProgress
from .checkpoint import (
    STATE_TENSORS,
    STATE_VALUES,
    find_checkpoint,
    read_state,
    save_checkpoint,
    write_state,
)
from .clock import Clock
from .early_stopping import EarlyStopping
from .errors import TrainingDiverged
from .finite import not_finite
from .further import Start
from .metrics_log import MetricsLog
from .origin import describe_origin, run_identity
from .passes import Passes, Prepared
from .progress import (
    EarlyStoppingState,
    Progress,
    check_generators,
    generators,
    set_generators,
)
from .reporter import Reporter, StepProgress, TrainingPlan
from .result import Status, TrainResult
from .resume import resumed
from .signals import StopSignals
from .validation import SELECTED_BY, validated

if TYPE_CHECKING:
    from ..distributed import Workers


class Trainer:
    """Everything a run knows; :func:`adarec_fast.training.train` drives it.

    Args:
        model_config: the model.
        config: how it is trained.
        data: the interactions.
        run_dir: an existing folder, locked by this process.
        device: where to train.
        reporter: shows progress.
        workers: those who train together, in this process' place among them; the first one
            writes. None: this process is alone.
        callbacks: of the program that trains.
        start: what the model begins with, None: with what it draws.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        config: TrainConfig,
        data: InteractionData,
        run_dir: Path,
        device: torch.device,
        reporter: Reporter,
        workers: Workers | None = None,
        callbacks: Sequence[Callback] = (),
        start: Start | None = None,
    ) -> None:
        self.workers = workers
        self._callbacks = callbacks
        self.start = start
        self.model_config = model_config
        self.config = config
        self.data = data
        self.run_dir = run_dir
        self.device = device
        self.reporter = reporter
        self.split = Split(data)
        self.validates = bool(self.split.users("valid").numel())
        self.stopping = EarlyStopping(config.patience)
        self.epoch = 0  # completed epochs
        self.batch = 0  # batches done of the epoch in progress
        self.step = 0
        self.epoch_seconds = 0.0
        self.saved_step = -1
        self._config_path = run_dir / run_folder.CONFIG

    # ------------------------------------------------------------------ start

    def prepare(self, data_source: Mapping[str, Any] | None) -> None:
        """Build the model, or bring back everything from ``last/``."""
        folder, preparing = find_checkpoint(self.run_dir, "last"), 0.0
        self.data_fingerprint = run_folder.fingerprint(self.data)
        if folder is None:
            torch.manual_seed(self.model_config.seed)
            model = registry.build(self.model_config)
            if self.data.features is not None:
                model.join_features(self.data.features)
            begun = time.perf_counter()
            model.prepare(self.split)
            preparing = time.perf_counter() - begun
            if self.start is not None:
                self.start.give(model, self.split)
            model.item_vocabulary = self.data.items
        else:
            model = resumed(
                folder, self.run_dir, self.model_config, self.config, self.data,
                self.data_fingerprint,
            )  # fmt: skip
        model.begin_training(self.split)
        self.num_parameters = sum(p.numel() for p in model.parameters())
        if self.workers is not None:
            weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
            # Adam keeps two more of each weight. The data are written once, before the first step.
            size = max(3 * weights, self.data.values.nbytes + self.data.offsets.nbytes)
            self.workers.bound_saving(
                saving_seconds(size, self.config.worker_timeout, self.config.save_timeout)
            )
            if self.config.shard_items:
                model.split_items(self.workers)
        self.model = model.to(self.device).train()
        kind = Prepared if model.fitted else Passes
        self.passes = kind(self.model, self.config, self.split, self.device, self.workers)
        if not self.passes.steps_per_epoch:
            self.epoch_seconds = preparing
        self.log: MetricsLog | None = None
        view = RunInProgress(self.run_dir, self.model, self.split, self.passes.last_epoch)
        self.callbacks = Callbacks(self._callbacks, view, lambda: self.save("last"))
        self._finite_step = -1  # the last one whose weights were looked at
        if folder is not None:
            self._load_state(folder)
        if self.workers is not None:
            self.workers.barrier()  # all have read the folder that the first one writes to now
        self._first_does(lambda: self._open_folder(folder is None, data_source))
        if folder is None:
            self.save("last")

    def _open_folder(self, new: bool, data_source: Mapping[str, Any] | None) -> None:
        """Write what a run folder has besides checkpoints, and open its log."""
        if new:
            run_folder.write_data(self.run_dir, self.data)
        elif data_source is None:
            data_source = run_folder.read_config(self.run_dir)[2].get("source")
        run_folder.write_config(
            self.run_dir, self.model_config, self.config, self.data, data_source,
            None if self.start is None else self.start.about,
        )  # fmt: skip
        settings = {
            "data": self.data.name,
            **{f"model.{n}": value for n, value in registry.described(self.model_config).items()},
            **{f"train.{n}": value for n, value in self.config.to_dict().items()},
        }
        identity = run_identity(self._config_path)
        self.log = MetricsLog(self.run_dir, self.epoch, self.config.log, settings, identity)

    def _first_does(self, function: Callable[[], None]) -> None:
        """Once, by this process if it is alone, or by the first worker while the others wait."""
        if self.workers is None:
            function()
        else:
            self.workers.first_does(function)

    def _load_state(self, folder: Path) -> None:
        tensors, values = read_state(folder)
        where = str(folder / STATE_TENSORS)
        check_generators(tensors, self.device, where)
        progress = Progress.read(values, self.passes.steps_per_epoch, str(folder / STATE_VALUES))
        self.passes.load_state_tensors(tensors, progress.examples, where)
        set_generators(tensors, self.device)
        self.epoch, self.batch, self.step = progress.epoch, progress.batch, progress.step
        self.epoch_seconds = progress.epoch_seconds
        self.stopping.load_state_dict(progress.early_stopping.model_dump())
        self.saved_step = self.step

    # ------------------------------------------------------------------ run

    def run(self, stop_after_steps: int | None) -> TrainResult:
        """Train until something ends it."""
        begun = time.perf_counter()
        stop_at = None if stop_after_steps is None else self.step + stop_after_steps
        with StopSignals() as signals:
            self._agreement = None if self.workers is None else Agreement(self.workers)
            try:
                self.reporter.start(self._plan())
                self.callbacks.begin(self.epoch, self.step)
                status = self._epochs(stop_at, signals)
                result = TrainResult(
                    run_dir=self.run_dir,
                    status=status,
                    epochs=self.epoch,
                    steps=self.step,
                    best_epoch=self.stopping.best_epoch,
                    best_metric=self.stopping.best,
                    seconds=time.perf_counter() - begun,
                    history=self.log.history if self.log is not None else [],
                    signal=signals.received if status == "interrupted" else None,
                )
                self.reporter.finish(result)
                self.callbacks.end(result)
                if self._agreement is not None:
                    self._agreement.close()
            finally:
                self.reporter.close()
                if self.log is not None:
                    self.log.close()
        return result

    def _plan(self) -> TrainingPlan:
        return TrainingPlan(
            run_dir=self.run_dir,
            epochs=self.passes.last_epoch,
            steps_per_epoch=self.passes.steps_per_epoch,
            num_examples=self.passes.num_examples,
            epoch=min(self.epoch + 1, self.passes.last_epoch),
            step=self.step,
            device=str(self.device),
            num_parameters=self.num_parameters,
            best=self.stopping.best,
        )

    def _epochs(self, stop_at: int | None, signals: StopSignals) -> Status:
        while True:
            if self.stopping.should_stop and not self._in_first_stage():
                return "early-stopped"
            if self.epoch >= self.passes.last_epoch:
                return "finished"
            if not self.passes.steps_per_epoch:
                self._end_epoch()
                continue
            ended = self._one_epoch(stop_at, signals)
            if ended is not None:
                return ended

    def _in_first_stage(self) -> bool:
        """Whether it is too soon for patience to end the run."""
        first, config = self.model.first_stage, self.config
        return self.epoch < first + (config.patience * config.evaluate_every if first else 0)

    def _one_epoch(self, stop_at: int | None, signals: StopSignals) -> Status | None:
        """The rest of the epoch in progress; None if it was completed."""
        if self.batch == 0:
            self.model.begin_epoch(self.epoch)
        clock = Clock(*self.passes.shown())
        for _ in self.passes.steps(self.epoch, self.batch, self.step):
            self.step += 1
            self.batch += 1
            self.callbacks.step(self.step)
            ended = self._asked_to_end(stop_at, signals)
            periodic = self.config.checkpoint_every
            due = bool(periodic) and self.step % periodic == 0
            if ended or due or self.batch % self.config.log_every == 0:
                self._read(clock)
            if ended or due:
                self.save("last")
            if ended:
                return ended
        self._read(clock)
        self._end_epoch()
        return self._asked_to_end(stop_at, signals)

    def _read(self, clock: Clock) -> None:
        """Wait for the device, stop if something is not finite, and report."""
        if self.workers is not None:
            self.workers.meet()
        self.raise_if_diverged()
        stretch = clock.read(*self.passes.shown())
        self.epoch_seconds += stretch.seconds
        if stretch.examples:
            progress = StepProgress(
                epoch=self.epoch + 1,
                batch=self.batch,
                step=self.step,
                loss=stretch.means.pop("loss"),
                examples_per_second=stretch.examples / stretch.seconds,
                means=stretch.means,
            )
            self.reporter.step(progress)
            self.callbacks.log(progress)

    def _asked_to_end(self, stop_at: int | None, signals: StopSignals) -> Status | None:
        received = signals.received is not None
        if self._agreement is not None:
            received = self._agreement.ask(received)
        if received:
            return "interrupted"
        enough = stop_at is not None and self.step >= stop_at
        return "stopped" if enough or self.callbacks.run.stopping else None

    def _end_epoch(self) -> None:
        # The order matters to a run that dies in here and is resumed: it repeats this epoch's
        # end, so nothing may lie behind last/ that a repetition would not write again.
        self.raise_if_not_finite()
        number = self.epoch + 1
        metrics: dict[str, Any] = {"epoch": number, "step": self.step}
        metrics |= self.passes.metrics(self.step, self.epoch_seconds)
        is_best = False
        last = number == self.passes.last_epoch
        if not self.validates:
            is_best = last
            if last:
                self.stopping.keep(number)
                metrics["best"] = True
        elif number % self.config.evaluate_every == 0 or last:
            is_best = self._validate(number, metrics)
        metrics["seconds"] = self.epoch_seconds
        if is_best:
            self.save("best", epoch=number)
        if self.log is not None:
            self.log.append(metrics)
        self.epoch, self.batch, self.epoch_seconds = number, 0, 0.0
        self.passes.statistics.reset()
        self.save("last")
        told = metrics if self.log is None else self.log.history[-1]
        self.reporter.epoch(told, is_best)
        self.callbacks.epoch(number, told, is_best)

    def _validate(self, number: int, metrics: dict[str, Any]) -> bool:
        """Evaluate on the validation part, into ``metrics``; whether it is the best so far."""
        metrics |= validated(self.model, self.split, self.config, self.workers)
        metrics["best"] = self.stopping.update(metrics["valid"][SELECTED_BY], number)
        return bool(metrics["best"])

    def raise_if_diverged(self) -> None:
        """Wait for the device, and raise :class:`TrainingDiverged` if a step was not finite."""
        diverged = self.passes.statistics.diverged()
        if diverged is not None:
            self._raise_diverged(*diverged)

    def raise_if_not_finite(self) -> None:
        """Raise :class:`TrainingDiverged` if an update has made a weight infinite or NaN.

        The losses of that step were still finite; those of the next would not be. Once a step is
        enough.
        """
        if self._finite_step == self.step:
            return
        part = not_finite(self.model, self.passes.stepper, self.device, self.workers)
        if part is not None:
            self._raise_diverged(self.step, [part])
        self._finite_step = self.step

    def _raise_diverged(self, step: int, parts: list[str]) -> NoReturn:
        raise TrainingDiverged(step, self.epoch + 1, parts, self.kept())

    def kept(self) -> str:
        """What a run that ends now leaves behind, in words."""
        if self.saved_step < 0:
            return "nothing has been saved yet"
        kept = f"the weights of step {self.saved_step} are kept in {self.run_dir / 'last'}"
        if self.stopping.best_epoch is not None:
            best = self.run_dir / "best"
            kept += f", the best ones (epoch {self.stopping.best_epoch}) in {best}"
        return kept

    # ------------------------------------------------------------------ save

    def save(self, name: str, epoch: int | None = None) -> None:
        """Replace ``best/`` or ``last/`` by what is in memory, of all workers, if it is finite."""
        self.raise_if_not_finite()
        model_state = self.passes.stepper.model_state()
        training_state = self._state() if name == "last" else None

        def fill(folder: Path) -> None:
            write(self.model, folder, model_state)
            if training_state is not None:
                write_state(folder, *training_state)

        about = {
            "epoch": self.epoch if epoch is None else epoch,
            "step": self.step,
            "metric": self.stopping.best if name == "best" else None,
            "vocabulary": self.data.items.fingerprint(),
            **describe_origin(self._config_path, self.model_config, self.config),
        }
        written = [model_state, *([] if training_state is None else [training_state[0]])]
        size = sum(t.numel() * t.element_size() for state in written for t in state.values())

        def replace() -> None:
            save_checkpoint(self.run_dir, name, fill, about, size)

        self._first_does(replace)
        if name == "last":
            self.saved_step = self.step

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What resuming needs beside the weights: tensors, and JSON-able values."""
        tensors = {**self.passes.state_tensors(), **generators(self.device)}
        progress = Progress(
            epoch=self.epoch,
            batch=self.batch,
            step=self.step,
            examples=self.passes.statistics.examples,
            epoch_seconds=self.epoch_seconds,
            early_stopping=EarlyStoppingState(**self.stopping.state_dict()),
        )
        return tensors, progress.model_dump()
