"""Where a run is: the values of ``training_state.json``, checked on the way in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor, dtype

from ..config import BaseConfig, ConfigError
from ..models.pretrained import CheckpointError
from .result import counted_epochs


class EarlyStoppingState(BaseConfig):
    """The state of :class:`adarec_fast.training.early_stopping.EarlyStopping`."""

    best: float | None = Field(description="best validation metric, None before the first")
    best_epoch: int | None = Field(ge=1, description="its epoch, from 1")
    waited: int = Field(ge=0, description="evaluations since")


class Progress(BaseConfig):
    """Counters of a run between two steps."""

    epoch: int = Field(ge=0, description="completed epochs")
    batch: int = Field(ge=0, description="batches done of the epoch in progress")
    step: int = Field(ge=0, description="optimizer steps of the whole run")
    examples: int = Field(ge=0, description="examples done of the epoch in progress")
    epoch_seconds: float = Field(ge=0.0, description="time spent on it")
    early_stopping: EarlyStoppingState

    @classmethod
    def read(cls, values: Mapping[str, Any], steps_per_epoch: int, where: str) -> Progress:
        """Check values that a file held.

        Raises:
            CheckpointError: a value is missing, of another type or out of range, or the counters
                contradict each other; ``where`` is the file.
        """
        try:
            progress = cls.create(**values)
        except ConfigError as error:
            raise CheckpointError(f"{where}: {error}") from None
        counted = progress.epoch * steps_per_epoch + progress.batch
        if progress.batch > steps_per_epoch or progress.step != counted:
            raise CheckpointError(
                f"{where}: step {progress.step} is not batch {progress.batch} after "
                f"{counted_epochs(progress.epoch)} of {steps_per_epoch} batches"
            )
        return progress


def check_state_tensor(
    tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], kind: dtype, where: str
) -> None:
    """Compare a tensor of a training state with what it is to be copied to.

    Raises:
        CheckpointError: it is missing, or of another shape or dtype.
    """
    if name not in tensors:
        raise CheckpointError(f"{where}: the tensor {name} is missing")
    found = tensors[name]
    if tuple(found.shape) != tuple(shape) or found.dtype != kind:
        raise CheckpointError(
            f"{where}: {name} is {found.dtype} {list(found.shape)}, the model wants {kind} "
            f"{list(shape)}"
        )
