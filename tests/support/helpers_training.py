"""A small training that several tests run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adarec_fast import TrainConfig, synthetic
from adarec_fast.training import Reporter, StepProgress, TrainingPlan, TrainResult
from adarec_fast.training.metrics_log import read_metrics

DATA = synthetic(num_users=40, num_items=60, num_themes=3, subthemes_per_theme=2, seed=2)
MODEL: dict[str, Any] = {
    "hidden_size": 16, "num_layers": 1, "max_depth": 2, "max_length": 10, "backend": "packed",
}  # fmt: skip
TIMES = ("seconds", "valid_seconds", "examples_per_second")


def config(**options: Any) -> TrainConfig:
    return TrainConfig.create(**{"epochs": 2, "batch_size": 64, "device": "cpu", **options})


def outcome(run_dir: Path) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """All that must be equal: last and best weights, metrics but for the times."""
    lines = [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_metrics(run_dir)
    ]
    last, best = ((run_dir / name / "model.safetensors").read_bytes() for name in ("last", "best"))
    return last, best, lines


class Recorder(Reporter):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.steps: list[StepProgress] = []

    def start(self, plan: TrainingPlan) -> None:
        self.calls.append("start")
        self.plan = plan

    def step(self, progress: StepProgress) -> None:
        self.steps.append(progress)

    def epoch(self, metrics: Mapping[str, Any], is_best: bool) -> None:
        self.calls.append(f"epoch {metrics['epoch']} {is_best == metrics.get('best', False)}")

    def finish(self, result: TrainResult) -> None:
        self.calls.append(result.status)

    def close(self) -> None:
        self.calls.append("close")
