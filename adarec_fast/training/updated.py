"""What came after a run's training, interactions counted into its memory and items that features
give a place: the folder ``updated/`` of a run.

::

    updated/    the model of best/ with a row for each new item and a memory of all interactions,
                interactions.safetensors and users.json as of a run, and manifest.json

Nothing is trained. The run itself stays what it is: it is evaluated, resumed and exported as
before; recommendations and the service take ``updated/`` where it is of the best epoch and of its
memory.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn

from ..config import ConfigError
from ..data import InteractionData
from ..data.catalogue import with_more
from ..data.extend import Extended, check_not_again, extended
from ..data.features import ItemTable
from ..defaults import on_cpu
from ..models.base import SequenceModel
from ..models.embedded import EmbeddingModel
from ..models.growing import by_neighbours, take_over
from ..models.memory import Memory
from ..models.pretrained import CheckpointError, load, write
from ..models.registry import build
from .checkpoint import (
    MANIFEST,
    find_checkpoint,
    ranks_by,
    read_json,
    save_checkpoint,
    verify_checkpoint,
)
from .run_folder import (
    load_run,
    no_features_here,
    read_data,
    read_dropped,
    write_data,
)

UPDATED = "updated"


class Current(NamedTuple):
    """What a run recommends with.

    Attributes:
        model: in evaluation mode.
        data: histories of the known users, and both vocabularies.
        which: of the run's folders, where the model is from.
    """

    model: SequenceModel
    data: InteractionData
    which: str


def load_current(
    run_dir: Path,
    *,
    which: Literal["best", "last"] = "best",
    device: torch.device | str = "cpu",
) -> Current:
    """The best epoch's model, with what :func:`update_memory` added since, if anything; or, as
    asked, the last one.

    Raises:
        RunFolderError, CheckpointError: as :func:`load_run`; also where ``updated/`` is damaged.
    """
    folder = current_folder(run_dir, which)
    if folder is None or folder.name.startswith(which):
        run = load_run(run_dir, which=which, device=device)
        return Current(run.model, run.data, which)
    verify_checkpoint(folder)
    model = load(folder, device=device)
    if model.item_vocabulary is None:
        raise CheckpointError(f"{folder / 'items.json'}: no such file; a run's model has one")
    data = read_data(folder, model.item_vocabulary, model.item_features)
    return Current(model, replace(data, dropped=read_dropped(run_dir)), UPDATED)


def current_folder(run_dir: Path, which: str) -> Path | None:
    """The folder that :func:`load_current` reads; None if there is none yet."""
    trained = find_checkpoint(run_dir, which)
    updated = find_checkpoint(run_dir, UPDATED)
    if which != "best" or trained is None or updated is None:
        return trained
    # Of another best epoch, or of a memory that was fitted anew, it is out of date.
    of = read_json(updated / MANIFEST).get("of")
    return updated if of is not None and of == ranks_by(trained) else trained


@on_cpu()
def update_memory(
    run_dir: Path, more: InteractionData, items: ItemTable | None = None
) -> Extended:
    """Count new interactions into a run's memory, and give new items a vector.

    All interactions that are known count from now on, the held-out ones too; alpha, gamma and decay
    stay those that were fitted. An item never seen before gets the mean of its neighbours' vectors,
    by their weights (of all vectors, if it has none). Histories of known users go on with theirs.

    Args:
        run_dir: of a run, locked by this process.
        more: the new interactions, in any number a user.
        items: of a run whose items have features: what is known of new ones. A new item gets its
            vector from these, and none where nothing is known of it.

    Raises:
        ConfigError: the run has no memory, or its model no table of item vectors; or ``items``
            of a run without features.
        DataError: the ids are of another kind than the run's, or ``more`` is what the run knows.
        RunFolderError, CheckpointError: as :func:`load_current`; the disk is full.
    """
    model, data, _ = load_current(run_dir)
    old = model.memory
    if old is None:
        raise ConfigError(
            f"{run_dir}: the model has no memory to update; adarec-fast memory fit {run_dir} "
            "gives it one"
        )
    if not isinstance(model, EmbeddingModel) or not isinstance(model.item_embedding, nn.Embedding):
        raise ConfigError(
            f"{run_dir}: {type(model).__name__} has no item vectors that new items could join; "
            f"adarec-fast train --from {run_dir} --data FILE takes new interactions"
        )
    grown = extended(data, more)
    check_not_again(data, grown.data)
    if data.features is not None:
        joined = with_more(grown.data, data.features, data.items, items)
        grown = grown._replace(data=joined, new_items=joined.num_items - data.num_items)
    elif items is not None:
        raise ConfigError(no_features_here(run_dir, items))
    memory = _counted(old, grown.data)
    if data.features is not None:
        model = _with_features(model, grown.data)
    elif grown.new_items:
        model = _with_items(model, memory)
    _save(run_dir, model, grown.data, memory)
    return grown


@on_cpu()
def add_items(run_dir: Path, items: ItemTable) -> InteractionData:
    """Give items that nobody has taken yet a place in what a run recommends, by their features
    alone; and known ones new features. Nothing is trained, and the run itself stays what it is.

    Args:
        run_dir: of a run, locked by this process.
        items: the table.

    Returns:
        The data of the run, with the new catalogue.

    Raises:
        ConfigError: the run's items have no features.
        DataError: ids are of another kind than the run's, or a column is.
        RunFolderError, CheckpointError: as :func:`load_current`; the disk is full.
    """
    model, data, _ = load_current(run_dir)
    if data.features is None or not isinstance(model, EmbeddingModel):
        raise ConfigError(no_features_here(run_dir, items))
    grown = with_more(data.replace(features=None), data.features, data.items, items)
    memory = None
    if model.memory is not None:
        memory = _counted(model.memory, grown)
    _save(run_dir, _with_features(model, grown), grown, memory)
    return grown


def _counted(old: Memory, data: InteractionData) -> Memory:
    """A memory of all interactions, read as the old one is."""
    return Memory.of(
        data.values, data.offsets, data.num_items, max_length=old.max_length, kind=old.kind,
        neighbours=old.most, alpha=old.alpha, gamma=old.gamma, decay=old.decay,
    )  # fmt: skip


def _save(
    run_dir: Path, model: EmbeddingModel, data: InteractionData, memory: Memory | None
) -> None:
    """Write ``updated/``."""
    model.item_vocabulary, model.memory = data.items, memory
    best = find_checkpoint(run_dir, "best")
    assert best is not None  # it was loaded

    def fill(folder: Path) -> None:
        write(model, folder)
        write_data(folder, data)

    about = {"of": ranks_by(best), "vocabulary": data.items.fingerprint()}
    save_checkpoint(run_dir, UPDATED, fill, about)


def _with_features(model: EmbeddingModel, data: InteractionData) -> EmbeddingModel:
    """The same model with the catalogue and the features of these data."""
    assert data.features is not None
    larger = build(model.config.replace(num_items=data.num_items))
    larger.join_features(data.features)
    take_over(larger, model)
    assert isinstance(larger, EmbeddingModel)
    return larger.eval()


def _with_items(model: EmbeddingModel, memory: Memory) -> EmbeddingModel:
    """The same model with a vector for each of the memory's items."""
    state = dict(model.state_dict())
    table = state["item_embedding.weight"]
    state["item_embedding.weight"] = torch.cat([table, by_neighbours(table, memory)[0]])
    larger = build(model.config.replace(num_items=memory.num_items))
    assert isinstance(larger, EmbeddingModel)
    larger.load_state_dict(state)
    return larger.eval()
