"""What ``adarec-fast train`` does with ``--from`` and ``--refit``: options into a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ConfigError, DataConfig
from ..training.values import KIND, Values

if TYPE_CHECKING:
    from ..training.further import Plan


def plan(base: Path, given: Values, *, refit: bool) -> Plan:
    """The run that goes back to ``base``.

    Args:
        base: of the finished run.
        given: what was chosen beside it.
        refit: train the same on everything; else, go on with what came later.

    Raises:
        ConfigError, DataError, RunFolderError, CheckpointError: what was chosen does not fit.
    """
    from ..data.configured import columns_of, load_data, load_items, load_more
    from ..training.further import continued, refitted
    from ..training.run_folder import columns_of_features, read_config

    model_config, _, about = read_config(base)
    source: dict[str, Any] = about.get("source") or {}
    option = "--refit" if refit else "--from"
    if given.system not in (None, model_config.system):
        raise ConfigError(
            f"{option} {base}: is of the model {model_config.system}, and --model names "
            f"{given.system}; leave it out"
        )
    model = {name: value for name, value in given.model.items() if name != KIND}
    if refit:
        chosen = {**source, **given.data, "split": "none", "at": None, "valid_at": None}
        if "split" in given.data:
            raise ConfigError("--refit trains on everything; leave out --split")
        by_time = (about.get("split") or {}).get("kind") == "time"
        data = None
        if "data" in given.data or (by_time and source):
            data = load_data(chosen)
        elif given.data:
            raise ConfigError(f"{', '.join(given.data)}: goes with --data FILE, to refit on a file")
        return refitted(base, data, model=model, train=given.train)
    if "data" not in given.data:
        raise ConfigError("--from RUN needs --data FILE, the interactions that came later")
    chosen = {**columns_of(source), **given.data}
    split = chosen.pop("split", "leave-one-out")
    if split == "time":
        raise ConfigError("--split time: with --from it is leave-one-out or none")
    return continued(
        base, load_more(chosen), hold_out=split, model=model, train=given.train,
        items=load_items(chosen, columns_of_features(about)),
    )


def source_of(plan: Plan, base: Path, given: Values) -> dict[str, Any]:
    """The section ``data`` of the plan's run: how more is read, and what was."""
    from ..data.configured import columns_of
    from ..training.run_folder import read_config

    old: dict[str, Any] = read_config(base)[2].get("source") or {}
    merged = {**(columns_of(old) if plan.added else old), **given.data}
    if not plan.added:
        merged |= {"split": "none", "at": None, "valid_at": None}
    return DataConfig.create(**merged).to_dict()


def in_words(plan: Plan) -> list[str]:
    """Lines for the reader of the log."""
    from ..training.further import VOID
    from ..training.result import counted_epochs

    about = plan.start.about
    told = []
    if plan.added is not None:
        told.append(
            f"{plan.added.interactions:,} new interactions, {plan.added.new_users:,} new users, "
            f"{plan.added.new_items:,} new items; goes on from {about['folder']}, epoch "
            f"{about['epoch']}"
        )
    else:
        told.append(
            f"trains on everything, {counted_epochs(plan.train.epochs)}, as the validation of "
            f"{about['folder']} found"
        )
    if "note" in about:
        told.append(f"{VOID}; those of {about['folder']} stand for it")
    return told
