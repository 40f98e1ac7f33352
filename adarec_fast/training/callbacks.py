"""What a program is told of its own training, and how it ends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import Split
from ..models.base import SequenceModel
from .reporter import StepProgress

if TYPE_CHECKING:
    from .result import TrainResult


class RunInProgress:
    """A run as callbacks see it.

    Attributes:
        run_dir: its folder.
        model: in training mode. Read it, evaluate it; who changes its weights gives up that a
            resumed run is bit-equal to one that was never stopped.
        split: of the interactions.
        epochs: the number of the last epoch, if nothing ends the run before.
        epoch: completed epochs.
        step: completed steps of the whole run.
    """

    def __init__(self, run_dir: Path, model: SequenceModel, split: Split, epochs: int) -> None:
        self.run_dir, self.model, self.split, self.epochs = run_dir, model, split, epochs
        self.epoch = self.step = 0
        self._stopping = False

    @property
    def stopping(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stopping

    def stop(self) -> None:
        """End the run after this step or epoch, saved; its status is ``"stopped"``."""
        self._stopping = True


class Callback:
    """Override what is of interest. An exception ends the run and reaches who called ``train``;
    what was trained so far is saved, and ``resume=True`` goes on with it.

    Example::

        class Patience(Callback):
            def on_epoch_end(self, run, metrics, is_best):
                if metrics["loss"] < 2.0:
                    run.stop()

        train(model_config, train_config, data, "runs/shop", callbacks=[Patience()])
    """

    def on_train_begin(self, run: RunInProgress) -> None:
        """Before the first step of this call of ``train``."""

    def on_step(self, run: RunInProgress) -> None:
        """After every step. Reading a tensor of the model waits for the device."""

    def on_log(self, run: RunInProgress, progress: StepProgress) -> None:
        """Every ``log_every`` steps and at the end of each epoch: losses and speed since."""

    def on_epoch_end(
        self, run: RunInProgress, metrics: Mapping[str, Any], is_best: bool
    ) -> None:
        """After an epoch is validated and saved; ``metrics`` is its line of ``metrics.jsonl``."""

    def on_train_end(self, run: RunInProgress, result: TrainResult) -> None:
        """After the run ended by itself, by a signal or by :meth:`RunInProgress.stop`."""


class Callbacks:
    """All callbacks of a run, in their order.

    Args:
        callbacks: of the run.
        run: what they see.
        save: keeps the state between two steps, called where one of them fails in the midst of an
            epoch.
    """

    def __init__(
        self, callbacks: Sequence[Callback], run: RunInProgress, save: Callable[[], None]
    ) -> None:
        self.run, self._all, self._save = run, tuple(callbacks), save

    def begin(self, epoch: int, step: int) -> None:
        self.run.epoch, self.run.step = epoch, step
        for callback in self._all:
            callback.on_train_begin(self.run)

    def step(self, step: int) -> None:
        self.run.step = step
        self._within_epoch(lambda callback: callback.on_step(self.run))

    def log(self, progress: StepProgress) -> None:
        self._within_epoch(lambda callback: callback.on_log(self.run, progress))

    def epoch(self, epoch: int, metrics: Mapping[str, Any], is_best: bool) -> None:
        self.run.epoch = epoch
        for callback in self._all:
            callback.on_epoch_end(self.run, metrics, is_best)

    def end(self, result: TrainResult) -> None:
        for callback in self._all:
            callback.on_train_end(self.run, result)

    def _within_epoch(self, tell: Callable[[Callback], None]) -> None:
        try:
            for callback in self._all:
                tell(callback)
        except Exception:
            self._save()
            raise


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raises:
    ValueError: one is no :class:`Callback`, or they are no list of them.
    """
    if not isinstance(callbacks, (list, tuple)):
        raise ValueError(f"callbacks is a {type(callbacks).__name__}; give a list of Callback")
    for place, callback in enumerate(callbacks):
        if not isinstance(callback, Callback):
            what = callback.__name__ if isinstance(callback, type) else type(callback).__name__
            raise ValueError(
                f"callbacks[{place}] is {what}; it must be an object of a class that is derived "
                "from adarec_fast.training.Callback"
            )
