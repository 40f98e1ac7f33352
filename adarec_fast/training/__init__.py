"""Training: the loop, checkpoints that survive being killed, logs, and runs read back.

Names are loaded when they are first used, so that the command line reads options before torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..models.pretrained import CheckpointError
    from .callbacks import Callback, RunInProgress
    from .errors import CompilationFailed, RunFolderError, TrainingDiverged, TrainingError
    from .loop import train
    from .reporter import (
        PlainReporter,
        Reporter,
        RichReporter,
        StepProgress,
        TrainingPlan,
        make_reporter,
    )
    from .result import TrainResult
    from .run_folder import Run, load_run

__all__ = [
    "Callback",
    "CheckpointError",
    "CompilationFailed",
    "PlainReporter",
    "Reporter",
    "RichReporter",
    "Run",
    "RunFolderError",
    "RunInProgress",
    "StepProgress",
    "TrainResult",
    "TrainingDiverged",
    "TrainingError",
    "TrainingPlan",
    "load_run",
    "make_reporter",
    "train",
]

_HOMES = {
    "Callback": ".callbacks",
    "CheckpointError": "..models.pretrained",
    "CompilationFailed": ".errors",
    "PlainReporter": ".reporter",
    "Reporter": ".reporter",
    "RichReporter": ".reporter",
    "Run": ".run_folder",
    "RunFolderError": ".errors",
    "RunInProgress": ".callbacks",
    "StepProgress": ".reporter",
    "TrainResult": ".result",
    "TrainingDiverged": ".errors",
    "TrainingError": ".errors",
    "TrainingPlan": ".reporter",
    "load_run": ".run_folder",
    "make_reporter": ".reporter",
    "train": ".loop",
}

# A type checker that saw __getattr__ would let every misspelt name pass.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES[name], __name__), name)
        globals()[name] = value
        return value
