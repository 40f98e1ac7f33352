"""When to stop: no better validation for a number of evaluations."""

from __future__ import annotations

from typing import Any


class EarlyStopping:
    """Remembers the best value of a metric that is better when higher.

    Args:
        patience: evaluations without a better value after which ``should_stop`` is true.

    Attributes:
        best: greatest value so far, None before the first.
        best_epoch: epoch of ``best``, from 1; the first one where several are equal.
        waited: evaluations since the best one.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.waited = 0

    def update(self, value: float, epoch: int) -> bool:
        """Take the value of one evaluation; whether it is the best so far."""
        if self.best is None or value > self.best:
            self.best, self.best_epoch, self.waited = value, epoch, 0
            return True
        self.waited += 1
        return False

    def keep(self, epoch: int) -> None:
        """Take an epoch for the best one where nothing validates."""
        self.best_epoch = epoch

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state, all but the patience."""
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.waited = state["waited"]
