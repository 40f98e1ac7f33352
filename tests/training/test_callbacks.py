"""Callbacks: what they are told and when, how they end a run, and what a failing one leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import DATA, config, outcome

from adarec_fast.training import (
    Callback,
    RunInProgress,
    StepProgress,
    TrainResult,
    load_run,
    train,
)

MODEL: dict[str, Any] = {
    "model": "sasrec", "hidden_size": 8, "num_layers": 1, "max_length": 10, "backend": "packed",
}  # fmt: skip
CONFIG = config(batch_size=90, log_every=2, log="none")


class Watch(Callback):
    """Remembers what it is told; fails or stops where it is asked to."""

    def __init__(self, fail: str = "", stop: str = "") -> None:
        self.calls: list[str] = []
        self._fail, self._stop = fail, stop

    def _told(self, run: RunInProgress, what: str) -> None:
        self.calls.append(what)
        if what == self._stop:
            run.stop()
        if what == self._fail:
            raise KeyError(what)

    def on_train_begin(self, run: RunInProgress) -> None:
        assert run.model.training
        assert (run.split.num_users, run.epochs) == (DATA.num_users, 2)
        self._told(run, f"begin {run.epoch} {run.step}")

    def on_step(self, run: RunInProgress) -> None:
        self._told(run, f"step {run.step}")

    def on_log(self, run: RunInProgress, progress: StepProgress) -> None:
        assert progress.loss > 0
        self._told(run, f"log {progress.step}")

    def on_epoch_end(self, run: RunInProgress, metrics: Mapping[str, Any], is_best: bool) -> None:
        assert metrics["epoch"] == run.epoch
        assert is_best == metrics["best"]
        # What is told lies on the disk.
        assert load_run(run.run_dir, which="last").history[-1] == metrics
        self._told(run, f"epoch {run.epoch}")

    def on_train_end(self, run: RunInProgress, result: TrainResult) -> None:
        self._told(run, result.status)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    """A run without callbacks."""
    torch.set_num_threads(1)  # as in the tests
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, train(MODEL, CONFIG, DATA, folder)


def test_everything_is_told_in_its_order(whole: tuple[Path, TrainResult], tmp_path: Path) -> None:
    watch, second = Watch(), Watch()
    train(MODEL, CONFIG, DATA, tmp_path, callbacks=[watch, second])
    steps = whole[1].steps
    assert watch.calls == second.calls
    told = [call for call in watch.calls if call.startswith("step")]
    assert told == [f"step {step + 1}" for step in range(steps)]
    half = steps // 2
    others = [call for call in watch.calls if not call.startswith("step")]
    assert (others[0], others[-1]) == ("begin 0 0", "finished")
    assert watch.calls.index("log 2") == watch.calls.index("step 2") + 1
    assert others.index("epoch 1") == others.index(f"log {half}") + 1
    # They change nothing that is learned.
    assert outcome(tmp_path) == outcome(whole[0])


@pytest.mark.parametrize("where", ["step 3", "log 2", "epoch 1", "finished"])
def test_a_failing_one_leaves_a_run_to_go_on_with(
    where: str, whole: tuple[Path, TrainResult], tmp_path: Path
) -> None:
    with pytest.raises(KeyError, match=where):
        train(MODEL, CONFIG, DATA, tmp_path, callbacks=[Watch(fail=where)])
    again = Watch()
    assert train(MODEL, CONFIG, DATA, tmp_path, resume=True, callbacks=[again]).epochs == 2
    begun = {"step 3": 3, "log 2": 2, "epoch 1": whole[1].steps // 2,
             "finished": whole[1].steps}[where]  # fmt: skip
    assert again.calls[0].split()[2] == str(begun)  # nothing was lost
    assert outcome(tmp_path) == outcome(whole[0])


@pytest.mark.parametrize("where", ["step 5", "epoch 1"])
def test_one_can_end_the_run(where: str, whole: tuple[Path, TrainResult], tmp_path: Path) -> None:
    watch = Watch(stop=where)
    result = train(MODEL, CONFIG, DATA, tmp_path, callbacks=[watch])
    assert (result.status, watch.calls[-1]) == ("stopped", "stopped")
    assert result.steps == (5 if where == "step 5" else whole[1].steps // 2)
    train(MODEL, CONFIG, DATA, tmp_path, resume=True)
    assert outcome(tmp_path) == outcome(whole[0])


def test_what_is_none_is_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    for wrong, message in (
        ([Watch], r"callbacks\[0\] is Watch; it must be an object"),
        ([Watch(), print], r"callbacks\[1\] is builtin_function_or_method"),
        (Watch(), "callbacks is a Watch; give a list"),
    ):
        with pytest.raises(ValueError, match=message):
            train(MODEL, CONFIG, DATA, tmp_path / "run", callbacks=wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_fitted_has_epochs_and_no_steps(tmp_path: Path) -> None:
    class Ends(Callback):
        calls: tuple[str, ...] = ()

        def on_step(self, run: RunInProgress) -> None:
            raise AssertionError

        def on_epoch_end(self, run: RunInProgress, metrics: Any, is_best: bool) -> None:
            self.calls += (f"{run.epoch} {is_best}",)

    ends = Ends()
    train({"model": "popularity"}, CONFIG, DATA, tmp_path, callbacks=[ends])
    assert ends.calls == ("1 True",)
