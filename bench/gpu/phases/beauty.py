"""A real training run with its quality, as long as the phase lasts: ``--data FILE``.

Early stopping never ends it; what counts is what the card does in the time, and that the losses
fall and the metrics rise as they do on a CPU.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adarec_fast import ADARecConfig, TrainConfig
from adarec_fast.data import InteractionData, Split, load
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.training import Reporter, load_run, train
from adarec_fast.training.exercise import exercise

from ...test_bench_epoch import beauty
from ...workloads import MAX_LENGTH
from ..phase import Results

_MOST_EPOCHS = 60
_RESERVE = 12.0  # seconds for the test at the end
_MODEL: dict[str, Any] = {
    "hidden_size": 64, "supervision": "all", "max_length": MAX_LENGTH, "precision": "tf32",
}  # fmt: skip


class _TimeIsOver(Exception):
    pass


class _Reporter(Reporter):
    def __init__(self, results: Results) -> None:
        self.results, self.started = results, time.monotonic()

    def epoch(self, metrics: Mapping[str, Any], is_best: bool) -> None:
        row = {name: value for name, value in metrics.items() if not isinstance(value, list)}
        row["at_seconds"] = time.monotonic() - self.started
        self.results.add("epochs", row)
        self.results.put(summary=f"{len(self.results.found['epochs'])} epochs, {row}"[:200])
        if self.results.left < _RESERVE:
            raise _TimeIsOver


def run(results: Results) -> None:
    """A line an epoch, and the test of the best one."""
    given = results.settings.data
    data, source = (load(given), Path(given).name) if given else beauty()
    results.put(data=source, model=_MODEL)
    config = TrainConfig(
        epochs=_MOST_EPOCHS, patience=_MOST_EPOCHS, device=results.settings.device
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(_MODEL, config, data, Path(folder) / "run", reporter=_Reporter(results))
        except _TimeIsOver:
            results.say("the time is over")
        _test(results, Path(folder) / "run", data)


def _test(results: Results, folder: Path, data: InteractionData) -> None:
    run = load_run(folder, device=torch.device(results.settings.device))
    results.put(test=evaluate(run.model, Split(data), "test").overall)
    results.put(summary=f"{len(results.found['epochs'])} epochs, test {results.found['test']}")


def kernels(device: str) -> None:
    """Every launch of :func:`run`."""
    config = ADARecConfig.create(num_items=12_101, **_MODEL)
    for users in (256, 1024):  # steps, validations
        exercise(config, TrainConfig(), torch.device(device), users=users)
