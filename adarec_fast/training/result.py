"""What a training run returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Status = Literal["finished", "early-stopped", "interrupted", "stopped"]


def counted_epochs(number: int) -> str:
    """``1 epoch``, ``2 epochs``."""
    return "1 epoch" if number == 1 else f"{number:,} epochs"


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run_dir: the run folder.
        status: ``"finished"`` (all epochs), ``"early-stopped"``, ``"interrupted"`` (by SIGINT or
            SIGTERM) or ``"stopped"`` (``stop_after_steps``); the last two can be resumed.
        epochs: completed epochs of the whole run.
        steps: optimizer steps of the whole run.
        best_epoch: epoch of ``best/``, from 1; None before the first validation.
        best_metric: its validation NDCG@20.
        seconds: time this call took.
        history: the lines of ``metrics.jsonl``.
        signal: number of the signal that interrupted it, else None.
    """

    run_dir: Path
    status: Status
    epochs: int
    steps: int
    best_epoch: int | None
    best_metric: float | None
    seconds: float
    history: list[dict[str, Any]]
    signal: int | None = None

    def __repr__(self) -> str:
        best = "no validation yet"
        if self.best_epoch is not None:
            best = f"best epoch {self.best_epoch}, validation NDCG@20 {self.best_metric:.4f}"
        return (
            f"TrainResult of {self.run_dir}: {self.status} after {counted_epochs(self.epochs)}, "
            f"{self.steps:,} steps and {self.seconds:.1f} s\n  {best}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values of every field."""
        return {**vars(self), "run_dir": str(self.run_dir), "history": list(self.history)}
