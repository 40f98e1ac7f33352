"""The data in a run's folder: interactions, users, what filters dropped; and their fingerprint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from ..data import (
    Cuts,
    DataError,
    Dropped,
    InteractionData,
    ItemFeatures,
    PlantedLabels,
    Vocabulary,
)
from ..models.pretrained import CheckpointError, read_weights
from .checkpoint import read_json, write_atomically

INTERACTIONS, USERS, DROPPED = "interactions.safetensors", "users.json", "dropped.json"
_LABELS = ("item_theme", "item_subtheme", "user_theme", "user_subtheme")


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
