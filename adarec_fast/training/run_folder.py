"""The folder of a run: what lies in it, who may write it, and how it is read back.

::

    config.json               {"run": ..., "model": ..., "train": ..., "data": ...}
    environment.json          one entry a start: versions, machine, command
    interactions.safetensors  the data itself, so that users can be served by id
    users.json                external user ids
    dropped.json              histories of users that filters dropped, if any were
    metrics.jsonl metrics.csv one line an epoch
    best/ last/               model folders, see :mod:`adarec_fast.training.checkpoint`
    tensorboard/              if tensorboard is installed
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..config import ModelConfig, Precision, TrainConfig
from ..data import InteractionData, Split
from ..defaults import on_cpu
from ..files import try_lock
from ..models.base import SequenceModel
from ..models.pretrained import CheckpointError, load
from .checkpoint import disk_errors, find_checkpoint, verify_checkpoint
from .environment import default_command, describe_environment, write_environment
from .errors import RunFolderBusy, RunFolderError
from .metrics_log import read_metrics
from .origin import check_origin
from .result import counted_epochs
from .run_config import CONFIG, columns_of_features, no_features_here, read_config, write_config
from .run_data import INTERACTIONS, fingerprint, read_data, read_dropped, write_data

__all__ = [
    "CONFIG",
    "Run",
    "columns_of_features",
    "default_command",
    "describe_environment",
    "fingerprint",
    "load_run",
    "locked",
    "no_features_here",
    "read_config",
    "read_data",
    "read_dropped",
    "write_config",
    "write_data",
    "write_environment",
]


@dataclass(frozen=True)
class Run:
    """A run read back from its folder.

    Attributes:
        path: the run folder.
        which: the checkpoint that was loaded, ``"best"`` or ``"last"``.
        model: in evaluation mode, with its item vocabulary.
        data: the interactions it was trained on, planted labels included.
        split: their split: leave-one-out, or what their ``cuts`` say.
        model_config: as trained; ``model.config`` may name another backend.
        train_config: how it was trained.
        history: the lines of ``metrics.jsonl``.
        source: where the data came from, ``config.json``'s ``"data"``.
    """

    path: Path
    which: str
    model: SequenceModel
    data: InteractionData
    split: Split
    model_config: ModelConfig
    train_config: TrainConfig
    history: list[dict[str, Any]]
    source: dict[str, Any]

    def __repr__(self) -> str:
        parameters = sum(part.numel() for part in self.model.parameters())
        data = f"{self.data.num_users:,} users, {self.data.num_items:,} items"
        return (
            f"Run {self.path} ({self.which}): {type(self.model).__name__}, "
            f"{parameters:,} parameters\n  trained for {counted_epochs(len(self.history))} on "
            f"{self.data.name!r}: {data}, {self.data.num_interactions:,} interactions"
        )


@on_cpu()
def load_run(
    run_dir: str | Path,
    *,
    which: Literal["best", "last"] = "best",
    device: torch.device | str = "cpu",
    backend: str | None = None,
    precision: Precision | None = None,
) -> Run:
    """Read a run folder.

    Args:
        run_dir: what ``train`` wrote.
        which: the best epoch's weights, or the last ones.
        device: where the model goes.
        backend: replaces the configured backend.
        precision: replaces the configured one of the products.

    Raises:
        RunFolderError: no run is there, or it has no such checkpoint yet.
        CheckpointError: a file is missing, damaged, or of another catalogue.
    """
    if which not in ("best", "last"):
        raise ValueError(f"which={which!r} must be 'best' or 'last'")
    run_dir = Path(run_dir)
    model_config, train_config, source = read_config(run_dir)
    folder = find_checkpoint(run_dir, which)
    if folder is None:
        hint = "; which='last' may exist" if which == "best" else ""
        raise RunFolderError(f"{run_dir / which}: no such checkpoint yet{hint}")
    check_origin(run_dir / CONFIG, folder, verify_checkpoint(folder), model_config, train_config)
    model = load(folder, device=device, backend=backend, precision=precision)
    if model.item_vocabulary is None:
        raise CheckpointError(f"{folder / 'items.json'}: no such file; a run's model has one")
    data = read_data(run_dir, model.item_vocabulary, model.item_features)
    if fingerprint(data) != source.get("fingerprint"):
        raise CheckpointError(
            f"{run_dir / INTERACTIONS}: not the data that this run was trained on, which "
            f"{CONFIG} describes; take the file from a copy"
        )
    return Run(
        path=run_dir,
        which=which,
        model=model,
        data=data,
        split=Split(data),
        model_config=model_config,
        train_config=train_config,
        history=read_metrics(run_dir),
        source=source,
    )


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run folder for writing; the system lets go of it when the process dies.

    Raises:
        RunFolderBusy: another process holds it.
        RunFolderError: the folder cannot be written, or its file system gives no locks.
        CheckpointError: the disk is full.
    """
    path = run_dir / ".lock"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a full disk shows at the write, not once more at the closing.
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise RunFolderError(
            f"run_dir={str(run_dir)!r} cannot be written: {error.strerror}; choose another folder"
        ) from error
    with file:
        try:
            free = try_lock(file)
        except OSError as error:
            raise RunFolderError(
                f"run_dir={str(run_dir)!r} cannot be locked against other processes: "
                f"{error.strerror}; choose a folder on a file system that gives locks, such as a "
                "local disk"
            ) from error
        if not free:
            file.seek(0)
            owner = file.read(40).decode(errors="replace").strip() or "unknown"
            raise RunFolderBusy(
                f"run_dir={str(run_dir)!r} is in use by process {owner}; wait for it, end it, or "
                "choose another folder"
            )
        with disk_errors(path):
            file.seek(0)
            file.truncate()
            file.write(f"{os.getpid()}\n".encode())
        yield
