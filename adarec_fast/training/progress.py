"""Where a run is: the values of ``training_state.json``, checked on the way in, and the states of
torch's generators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
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


def generators(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's own generators, by their names in a training state."""
    found = {"rng/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["rng/cuda"] = torch.cuda.get_rng_state(device)
    return found


def check_generators(tensors: Mapping[str, Tensor], device: torch.device, where: str) -> None:
    """Whether a training state holds states that torch's generators can take.

    A run that trained on the CPU has none for a GPU, and goes on there all the same.

    Raises:
        CheckpointError: as :func:`check_state_tensor`.
    """
    for name, like in generators(device).items():
        if name == "rng/cpu" or name in tensors:
            check_state_tensor(tensors, name, like.shape, like.dtype, where)


def set_generators(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Inverse of :func:`generators`, of checked tensors."""
    torch.set_rng_state(tensors["rng/cpu"])
    if device.type == "cuda" and "rng/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng/cuda"], device)
