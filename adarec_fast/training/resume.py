"""A run goes on: its model, if what it is to be resumed with is what it began with."""

from __future__ import annotations

from pathlib import Path

from ..config import ModelConfig, TrainConfig
from ..data import InteractionData
from ..models.base import SequenceModel
from ..models.pretrained import CheckpointError, load
from ..models.registry import described
from . import run_folder
from .checkpoint import verify_checkpoint
from .origin import check_origin, free_fields


def resumed(
    folder: Path,
    run_dir: Path,
    model_config: ModelConfig,
    train_config: TrainConfig,
    data: InteractionData,
    data_fingerprint: str,
) -> SequenceModel:
    """The model of the checkpoint ``folder``, of the run, the data and the settings.

    Raises:
        CheckpointError: as :func:`check_same_run`, or the checkpoint is damaged, of another run or
            of another catalogue.
    """
    check_same_run(run_dir, model_config, train_config, data, data_fingerprint)
    manifest = verify_checkpoint(folder)
    if manifest.get("vocabulary") != data.items.fingerprint():
        raise CheckpointError(
            f"{folder}: of another catalogue: its items have the fingerprint "
            f"{manifest.get('vocabulary')}, those of {data.name} "
            f"{data.items.fingerprint()}; resume with the data of {run_dir}"
        )
    check_origin(run_dir / run_folder.CONFIG, folder, manifest, model_config, train_config)
    return load(folder, backend=model_config.backend)


def check_same_run(
    run_dir: Path,
    model_config: ModelConfig,
    train_config: TrainConfig,
    data: InteractionData,
    data_fingerprint: str,
) -> None:
    """Compare what a run is to be resumed with, and what its ``config.json`` says.

    Raises:
        CheckpointError: a setting other than those that are free, or the data, is not the run's.
    """
    old_model, old_train, about = run_folder.read_config(run_dir)
    for section, before, now, free in (
        ("model", described(old_model), described(model_config), ("backend",)),
        ("train", old_train.to_dict(), train_config.to_dict(), free_fields(train_config)),
    ):
        for field, value in now.items():
            if field not in free and before.get(field) != value:
                why = ", and its falling learning rate ends there" * (field == "epochs")
                raise CheckpointError(
                    f"{run_dir / run_folder.CONFIG}: {section}.{field} is {before.get(field)!r} "
                    f"there and {value!r} now{why}; resume with the old value or start another run"
                )
    if about.get("fingerprint") != data_fingerprint:
        raise CheckpointError(
            f"{run_dir / run_folder.CONFIG}: the run was trained on other data: "
            f"{about.get('name')!r} with {about.get('items')} items and "
            f"{about.get('interactions')} interactions, not {data.name!r} with "
            f"{data.num_items} and {data.num_interactions} (or a catalogue in "
            "another order, or other features of items); resume with the same data"
        )
