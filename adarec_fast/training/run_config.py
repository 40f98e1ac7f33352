"""``config.json`` of a run: which model, how trained, on what data."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import ConfigError, ModelConfig, TrainConfig
from ..data import InteractionData
from ..data.features import FeatureColumn, ItemTable
from ..models.pretrained import CheckpointError
from ..models.registry import create_config, described
from .checkpoint import read_json, write_atomically
from .errors import RunFolderError
from .origin import run_identity
from .run_data import fingerprint

CONFIG = "config.json"


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
