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
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from ..config import ConfigError, ModelConfig, Precision, TrainConfig
from ..data import (
    Cuts,
    DataError,
    Dropped,
    InteractionData,
    ItemFeatures,
    PlantedLabels,
    Split,
    Vocabulary,
)
from ..data.features import FeatureColumn, ItemTable
from ..defaults import on_cpu
from ..files import try_lock
from ..models.base import SequenceModel
from ..models.pretrained import CheckpointError, load, read_weights
from ..models.registry import create_config, described
from ..version import __version__
from .checkpoint import (
    disk_errors,
    find_checkpoint,
    read_json,
    verify_checkpoint,
    write_atomically,
)
from .errors import RunFolderBusy, RunFolderError
from .metrics_log import read_metrics
from .origin import check_origin, run_identity

CONFIG, ENVIRONMENT, USERS = "config.json", "environment.json", "users.json"
INTERACTIONS, DROPPED = "interactions.safetensors", "dropped.json"
_LABELS = ("item_theme", "item_subtheme", "user_theme", "user_subtheme")


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
            f"{parameters:,} parameters\n  trained for {len(self.history):,} epochs on "
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


def write_config(
    run_dir: Path,
    model_config: ModelConfig,
    train_config: TrainConfig,
    data: InteractionData,
    source: Mapping[str, Any] | None,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Write ``config.json``; a new run gets a random identity, an old one keeps its own.

    ``origin``: the run that this one goes back to; an old run keeps it.
    """
    path = run_dir / CONFIG
    run = run_identity(path) if path.exists() else uuid.uuid4().hex
    if path.exists():
        origin = read_config(run_dir)[2].get("from")
    about = {
        "name": data.name,
        "users": data.num_users,
        "items": data.num_items,
        "interactions": data.num_interactions,
        "fingerprint": fingerprint(data),
        "source": None if source is None else dict(source),
    }
    if data.cuts is not None:
        about["split"] = {"kind": data.cuts.kind, **data.cuts.facts}
    if data.features is not None:
        about["features"] = {
            "columns": [column._asdict() for column in data.features.rows.columns],
            "trained": data.features.trained, **data.features.facts,
        }  # fmt: skip
    if origin is not None:
        about["from"] = dict(origin)
    values = {
        "run": run,
        "model": described(model_config),
        "train": train_config.to_dict(),
        "data": about,
    }
    write_atomically(path, json.dumps(values, indent=2) + "\n")


def read_config(run_dir: Path) -> tuple[ModelConfig, TrainConfig, dict[str, Any]]:
    """Inverse of :func:`write_config`; the last is the ``"data"`` part.

    Raises:
        RunFolderError: the folder holds no run.
        CheckpointError: ``config.json`` does not parse or does not validate.
    """
    path = run_dir / CONFIG
    if not path.exists():
        raise RunFolderError(f"run_dir={str(run_dir)!r} holds no run: {path} does not exist")
    values = read_json(path)
    sections = ("model", "train", "data")
    if set(values) - {"run"} != set(sections) or not all(
        isinstance(values[name], dict) for name in sections
    ):
        raise CheckpointError(f"{path}: must hold the objects model, train and data")
    source = values["data"].get("source")
    if not (source is None or isinstance(source, dict)):
        raise CheckpointError(f"{path}: data.source must be an object or null")
    try:
        model_config = create_config(values["model"])
        return model_config, TrainConfig.create(**values["train"]), values["data"]
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def columns_of_features(about: Mapping[str, Any]) -> list[FeatureColumn] | None:
    """The columns of a run's features, by the ``"data"`` part of its ``config.json``; None where
    its items have none."""
    found = about.get("features")
    return None if found is None else [FeatureColumn(**column) for column in found["columns"]]


def no_features_here(run_dir: Path | str, items: ItemTable) -> str:
    """Why a table of items is of no use to a run."""
    return (
        f"{run_dir}: its items have no features, which {items.where} could add to; leave it out "
        "(--items), or train a new run with it"
    )


def write_data(run_dir: Path, data: InteractionData) -> None:
    """Write the interactions (with labels) and the user ids."""
    tensors = {"values": data.values, "offsets": data.offsets}
    if data.labels is not None:
        tensors |= {name: getattr(data.labels, name) for name in _LABELS}
    about = {
        "name": data.name,
        "fingerprint": fingerprint(data),
        "labels": _labels_fingerprint(data),
    }
    if data.cuts is not None:
        tensors |= data.cuts.tensors()
        about["cuts"] = data.cuts.described()
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(run_dir / INTERACTIONS, save(contiguous, about))
    write_atomically(run_dir / USERS, json.dumps(data.users.to_json()))
    if data.dropped is not None:
        old = data.dropped.histories
        content = {
            "min_length": data.dropped.min_length,
            "k_core": data.dropped.k_core,
            "items": data.dropped.items.to_json(),
            "users": old.users.to_json(),
            "catalogue": old.items.to_json(),
            "values": old.values.tolist(),
            "offsets": old.offsets.tolist(),
        }
        write_atomically(run_dir / DROPPED, json.dumps(content))


def read_data(
    run_dir: Path, items: Vocabulary, features: ItemFeatures | None = None
) -> InteractionData:
    """Inverse of :func:`write_data`, with the catalogue and the features of a model.

    Raises:
        CheckpointError: a file is missing, damaged, or of another catalogue than ``items``.
    """
    path = run_dir / INTERACTIONS
    tensors = read_weights(path)
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
    missing = {"values", "offsets"} - set(tensors)
    if missing:
        raise CheckpointError(f"{path}: the tensor {min(missing)} is missing")
    labels = None
    if all(name in tensors for name in _LABELS):
        labels = PlantedLabels(**{name: tensors[name] for name in _LABELS})
    try:
        users = Vocabulary.from_json(read_json(run_dir / USERS))
        cuts = Cuts.read(tensors, about["cuts"]) if "cuts" in about else None
        data = InteractionData.from_flat(
            tensors["values"], tensors["offsets"], items, users, about.get("name", "data"), labels,
            cuts=cuts, features=features,
        )  # fmt: skip
    except DataError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if fingerprint(data) != about.get("fingerprint"):
        raise CheckpointError(
            f"{path}: altered, or of another catalogue than the checkpoint: its fingerprint is "
            f"{about.get('fingerprint')}, its content with the checkpoint's items has "
            f"{fingerprint(data)}"
        )
    # Runs of earlier versions do not have it.
    if "labels" in about and _labels_fingerprint(data) != about["labels"]:
        raise CheckpointError(f"{path}: altered: its name or labels are not those it was made with")
    return replace(data, dropped=read_dropped(run_dir))


def read_dropped(run_dir: Path) -> Dropped | None:
    """What filters took out of a run's data; None where nothing, or where it was not kept.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = run_dir / DROPPED
    if not path.exists():
        return None
    content = read_json(path)
    try:
        items, users, catalogue = (
            Vocabulary.from_json(content[name]) for name in ("items", "users", "catalogue")
        )
        values, offsets = (torch.tensor(content[name], dtype=torch.int64)
                           for name in ("values", "offsets"))  # fmt: skip
        old = InteractionData.from_flat(values, offsets, catalogue, users, "dropped")
        return Dropped(old, items, int(content["min_length"]), int(content["k_core"]))
    except (DataError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None


def fingerprint(data: InteractionData) -> str:
    """SHA-256 (hex) of histories, both vocabularies, cuts and features: equal for equal data."""
    digest = hashlib.sha256(f"{data.items.fingerprint()}:{data.users.fingerprint()}:".encode())
    for tensor in (data.values, data.offsets):
        digest.update(np.ascontiguousarray(tensor.numpy()).astype("<i8", copy=False).tobytes())
    if data.cuts is not None:
        digest.update(data.cuts.fingerprint().encode())
    if data.features is not None:
        digest.update(data.features.fingerprint().encode())
    return digest.hexdigest()


def _labels_fingerprint(data: InteractionData) -> str:
    """SHA-256 (hex) of what a run's data have besides :func:`fingerprint`: a name and labels."""
    digest = hashlib.sha256(f"{data.name}\0".encode())
    if data.labels is not None:
        for name in _LABELS:
            tensor = getattr(data.labels, name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return digest.hexdigest()


def write_environment(run_dir: Path, device: torch.device, command: Sequence[str]) -> None:
    """Add this start of the run to ``environment.json``."""
    path = run_dir / ENVIRONMENT
    starts = read_json(path).get("starts") if path.exists() else []
    if not isinstance(starts, list):
        raise CheckpointError(f"{path}: starts must be a list; remove the file to begin another")
    starts.append(describe_environment(device, command))
    write_atomically(path, json.dumps({"starts": starts}, indent=2) + "\n")


def describe_environment(device: torch.device, command: Sequence[str]) -> dict[str, Any]:
    """What a figure depends on: versions, machine, threads, commit, command."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "adarec_fast": __version__,
        "commit": _git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "command": list(command),
    }


def default_command() -> list[str]:
    """The command line of this process."""
    return list(sys.argv)


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:  # not Linux
        return platform.processor()
    return platform.processor()


def _git_commit() -> str | None:
    """The package's commit, when it runs from a checkout of its own."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):  # no git, or one that hangs
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
