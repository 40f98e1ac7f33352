"""Where a checkpoint is from: the run, and the settings that it was trained with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import ModelConfig, TrainConfig
from ..models.pretrained import CheckpointError
from ..models.registry import DEFAULT
from .checkpoint import read_json

# A resumed run must see the same batches and take the same steps; these never change them.
_FREE_FIELDS = (
    "patience", "log_every", "checkpoint_every", "device", "evaluation_batch_size",
    "ks", "log", "shard_items", "worker_timeout", "save_timeout",
)  # fmt: skip


def free_fields(config: TrainConfig) -> tuple[str, ...]:
    """Fields of a run's configuration that may change when it is resumed.

    ``epochs`` is one of them unless the learning rate falls to 0 over just so many.
    """
    ends = config.learning_rate_schedule != "constant"
    return _FREE_FIELDS if ends else ("epochs", *_FREE_FIELDS)


def run_identity(path: Path) -> str | None:
    """What tells this run from all others, from its ``config.json``.

    None if it began before runs had one.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
    """
    identity = read_json(path).get("run")
    if not (identity is None or isinstance(identity, str)):
        raise CheckpointError(f"{path}: run must be a string")
    return identity


def describe_origin(
    path: Path, model_config: ModelConfig, train_config: TrainConfig
) -> dict[str, Any]:
    """What a checkpoint's manifest says about where it is from.

    Args:
        path: the run's ``config.json``.
        model_config: the run's model.
        train_config: how the run trains; :func:`free_fields` do not count.
    """
    # Defaults are left out, so that a field that a later version adds changes nothing.
    settings = {
        "model": {
            **({} if model_config.system == DEFAULT else {"model": model_config.system}),
            **model_config.model_dump(mode="json", exclude_defaults=True, exclude={"backend"}),
        },
        "train": train_config.model_dump(
            mode="json", exclude_defaults=True, exclude=set(free_fields(train_config))
        ),
    }
    text = json.dumps(settings, sort_keys=True)
    return {
        "run": run_identity(path),
        "settings": hashlib.sha256(text.encode()).hexdigest(),
    }


def check_origin(
    path: Path,
    folder: Path,
    manifest: Mapping[str, Any],
    model_config: ModelConfig,
    train_config: TrainConfig,
) -> None:
    """Compare a checkpoint with the run whose ``config.json`` is ``path``.

    Raises:
        CheckpointError: it is another run's, or ``config.json`` is not what it was trained with.
    """
    expected = describe_origin(path, model_config, train_config)
    if manifest.get("run") != expected["run"]:
        raise CheckpointError(
            f"{folder}: a checkpoint of another run ({manifest.get('run')!r}) than "
            f"{path} ({expected['run']!r}); take the folder from a copy of this run"
        )
    if manifest.get("settings", expected["settings"]) != expected["settings"]:
        raise CheckpointError(
            f"{path}: altered: these are not the settings that {folder} was trained "
            "with; take the file from a copy"
        )
