"""Training: the loop, checkpoints that survive being killed, logs, and runs read back."""

from __future__ import annotations

from ..pretrained import CheckpointError
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
    "CheckpointError",
    "CompilationFailed",
    "PlainReporter",
    "Reporter",
    "RichReporter",
    "Run",
    "RunFolderError",
    "StepProgress",
    "TrainResult",
    "TrainingDiverged",
    "TrainingError",
    "TrainingPlan",
    "load_run",
    "make_reporter",
    "train",
]
