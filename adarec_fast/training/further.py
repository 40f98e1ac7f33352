"""What a finished run leads to: the same trained on everything, and the same trained further.

Both make a run folder of their own that holds all it needs. ``config.json`` says under
``data.from`` which run it goes back to, and under ``data.split`` what was held out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..config import ConfigError, ModelConfig, TrainConfig
from ..data import InteractionData, Split
from ..data.catalogue import refeatured
from ..data.configured import columns_of, load_more
from ..data.extend import Extended, extended, followed, new_held_out
from ..data.features import ItemTable
from ..data.readers import train_on_all
from ..models.base import SequenceModel
from ..models.growing import begin_new_items, check_growth, take_over
from ..models.memory import Memory
from ..models.pretrained import skeleton
from ..models.registry import create_config, described
from .origin import run_identity
from .run_folder import CONFIG, Run, load_run, no_features_here

VOID = "nothing was held out: test figures of this run are void"


class Start(NamedTuple):
    """What a run begins with beside its configuration; see :func:`adarec_fast.training.train`.

    Attributes:
        weights: the model whose weights it takes over; None: it draws its own.
        memory: whose alpha, gamma and decay hold where no validation part could fit them.
        about: JSON-able, for ``config.json``: where it is from.
    """

    weights: SequenceModel | None
    memory: Memory | None
    about: Mapping[str, Any]

    def give(self, model: SequenceModel, split: Split) -> None:
        """Give a freshly built model the weights, unless it counts and has none, and to new items
        the mean of what they come with in the training part."""
        if self.weights is not None and not model.fitted:
            take_over(model, self.weights)
            features = self.weights.item_features
            known = self.weights.config.num_items if features is None else features.trained
            begin_new_items(model, known, split)


class Plan(NamedTuple):
    """All that :func:`adarec_fast.training.train` needs for a further run.

    Attributes:
        model, train: configurations.
        data: with the split of the further run.
        start: what it begins with.
        added: what came to the data, of a run that is trained further.
    """

    model: ModelConfig
    train: TrainConfig
    data: InteractionData
    start: Start
    added: Extended | None = None


def refitted(
    run_dir: str | Path,
    data: InteractionData | None = None,
    *,
    model: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
) -> Plan:
    """A run's model on everything, for use: as many epochs as validation found best, from new
    weights, with no validation and no test.

    Args:
        run_dir: of a run that validated.
        data: what to train on; by default all interactions of the run. A split that they have is
            taken off.
        model: fields of the model's configuration that differ from the run's.
        train: fields of the training's, likewise; ``epochs`` replaces what validation found.

    Raises:
        ConfigError: the run was validated on nothing, or its data are of a split by time, which
            left out what came up later, and no ``data`` are given.
        RunFolderError, CheckpointError: as :func:`load_run`.
    """
    run = load_run(run_dir)
    epochs = [line["epoch"] for line in run.history if line.get("best") and "valid" in line]
    if not epochs:
        raise ConfigError(
            f"{run_dir}: no validation found how long to train; refit a run that has one"
        )
    if data is None:
        if run.data.cuts is not None and run.data.cuts.kind == "time":
            raise ConfigError(
                f"{run_dir}: its data are without the items that came up after training; say what "
                "to train on (--data FILE, data=load(...))"
            )
        data = run.data
    own = run.data.features
    if (own is None) != (data.features is None):
        raise ConfigError(
            f"{run_dir}: its items have {'features' if own else 'none'}, and those of {data.name} "
            f"{'have none' if own else 'have some'}; refit it with the same (--items, items=...)"
        )
    data = train_on_all(data)
    if data.features is not None:
        data = refeatured(data, data.features, data.items)
    changed = {"epochs": epochs[-1], **(train or {})}
    about = _about(run, "refit", {"note": VOID})
    return Plan(
        _config(run, model, data.num_items), run.train_config.replace(**changed), data,
        Start(None, run.model.memory, about),
    )  # fmt: skip


def continued(
    run_dir: str | Path,
    more: InteractionData,
    *,
    hold_out: Literal["leave-one-out", "none"] = "leave-one-out",
    model: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    items: ItemTable | None = None,
) -> Plan:
    """A run's model trained further, with interactions that came later.

    Histories go on with theirs, new users and new items come behind the known ones. The model
    begins with the run's best weights; a new item begins as the mean of the items that it comes
    with in the training part (as the initialiser draws it, where there are none), which on planted
    data ranks new items better than drawn rows do. Adam begins anew. Steps are taken on the whole
    histories of those who have something new. Of these, as far as it is new, the last item tests
    and the one before it validates. A model that counts counts all again.

    Args:
        run_dir: of the run to go on from.
        more: the new interactions, in any number a user (``load(..., min_length=1)``).
        hold_out: ``"none"`` trains on all of them, without validation and test.
        model: fields of the model's configuration that differ from the run's; not its sizes.
        train: fields of the training's, likewise.
        items: of a run whose items have features: what is known of new ones, and what changed of
            known ones, see :func:`adarec_fast.data.item_tables.read_items`. The run's own hold for
            all that is not in it.

    Raises:
        ConfigError: a model of another kind or size, nobody to validate on, ``items`` of a run
            without features, or ``hold_out`` is neither.
        DataError: ids are of another kind, or the interactions are those that the run has.
        RunFolderError, CheckpointError: as :func:`load_run`.
    """
    if hold_out not in ("leave-one-out", "none"):
        raise ConfigError(
            f"split={hold_out!r}: what comes to a run is held out by 'leave-one-out' or 'none'"
        )
    run = load_run(run_dir)
    added = extended(run.data, more)
    data = new_held_out(run.data, added, everything=hold_out == "none")
    if run.data.features is not None:
        data = refeatured(data, run.data.features, run.data.items, items)
    elif items is not None:
        raise ConfigError(no_features_here(run_dir, items))
    config = _config(run, model, data.num_items)
    fresh = skeleton(config, data.features)
    if not fresh.fitted:
        check_growth(fresh, run.model)
    counts = {name: getattr(added, name) for name in ("interactions", "new_users", "new_items")}
    about = _about(run, "further", {**counts, **({"note": VOID} if hold_out == "none" else {})})
    return Plan(
        config, run.train_config.replace(**(train or {})), data,
        Start(run.model, run.model.memory, about), added._replace(data=data),
    )  # fmt: skip


def came_later(run: Run, files: Sequence[Path]) -> Split:
    """Files of interactions that came after a run's, as its test; columns are read as for the run.

    Raises:
        ConfigError: the run's own way to read files fits no more.
        DataError: a file cannot be read, or as :func:`adarec_fast.data.extend.followed`.
    """
    names = [str(path) for path in files]
    section = {**columns_of(run.source.get("source")), "data": names if names[1:] else names[0]}
    return Split(followed(run.data, load_more(section)))


def _config(run: Run, changes: Mapping[str, Any] | None, num_items: int) -> ModelConfig:
    own = described(run.model_config)
    merged = {**own, **(changes or {}), "num_items": num_items}
    if merged.get("model") != own.get("model"):
        raise ConfigError(
            f"{run.path} is of the model {run.model_config.system}, and cannot go on as a "
            f"{merged['model']}"
        )
    return create_config(merged)


def _about(run: Run, how: str, more: Mapping[str, Any]) -> dict[str, Any]:
    epoch = max((line["epoch"] for line in run.history if line.get("best")), default=None)
    return {
        "how": how, "run": run_identity(run.path / CONFIG), "folder": str(run.path.resolve()),
        "epoch": epoch, **more,
    }  # fmt: skip
