"""Hyper-parameter search: Optuna proposes, runs are trained, the hopeless ones end early.

A trial is a run folder like any other, ``trial-0000`` and so on; what Optuna knows of all of them
is ``study.db`` beside them. Only validation NDCG@20 is looked at: each epoch's is told to Optuna's
median pruner, the best epoch's is a trial's value. The same search again goes on where it stopped,
a trial that was interrupted within its epoch, bit-equally. ``best.yaml`` is the configuration of
the best trial so far, which ``adarec-fast train --config`` takes.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import yaml

from ..config import ConfigError, DataConfig, TrainConfig, absolute_source, read_mapping
from ..data import InteractionData
from ..models.registry import create_config
from ..training import Callback, Reporter, RunInProgress, TrainingDiverged, train
from ..training.checkpoint import write_atomically
from ..training.metrics_log import read_metrics
from ..training.run_folder import CONFIG, fingerprint, locked
from ..training.values import Values, place
from .definition import SweepError

STUDY, BEST = "study.db", "best.yaml"
_NAME = "adarec_fast"
_METRIC = "NDCG@20"
# Trials that run to their end before any is measured by them, and epochs before one may be ended.
_FIRST_TRIALS, _FIRST_EPOCHS = 5, 3


class Range(NamedTuple):
    """A number between two others, both included; whole where ``whole``."""

    low: float
    high: float
    log: bool
    whole: bool


Space = Mapping[str, "Range | tuple[Any, ...]"]


class Outcome(NamedTuple):
    """A trial.

    Attributes:
        run: its folder's name.
        values: what was chosen for it.
        status: ``finished``, ``pruned``, ``diverged`` or ``interrupted``.
        metric: the best validation NDCG@20; None where there is none.
    """

    run: str
    values: dict[str, Any]
    status: str
    metric: float | None


def read_space(path: Path, base: Values) -> dict[str, Range | tuple[Any, ...]]:
    """What may be chosen: a YAML or JSON mapping of fields of model and training to a list of
    values or to ``{low: 0.001, high: 0.01, log: true}``; whole numbers stay whole.

    Raises:
        ConfigError: it does not parse, names no field, or leaves nothing to choose.
    """
    space: dict[str, Range | tuple[Any, ...]] = {}
    for name, read in read_mapping(path).items():
        where, given = f"{path}: {name}", _numbers(read)
        if isinstance(given, list) and len(given) > 1:
            space[name] = tuple(given)
            ends: tuple[Any, ...] = tuple(given)
        elif isinstance(given, dict) and {"low", "high"} <= set(given) <= {"low", "high", "log"}:
            low, high, log = given["low"], given["high"], given.get("log", False)
            numbers = all(type(n) in (int, float) for n in (low, high)) and isinstance(log, bool)
            if not numbers or not low < high or (log and low <= 0):
                raise ConfigError(
                    f"{where}: low={low!r} and high={high!r} must be numbers, the second greater, "
                    "both above 0 with log: true"
                )
            space[name] = Range(low, high, log, isinstance(low, int) and isinstance(high, int))
            ends = (low, high)
        else:
            raise ConfigError(
                f"{where}: must be a list of two values or more, or low and high and perhaps log"
            )
        for end in ends:
            chosen = place({name: end}, f"{path}: ", base.system)
            if chosen.data:
                raise ConfigError(f"{where}: all trials are of the same data; search the others")
            _configs(base.update(chosen), 1)  # what is out of range is so before the first trial
    if not space:
        raise ConfigError(f"{path}: names nothing to choose")
    return space


def _numbers(value: Any) -> Any:
    """What was read, with 1e-4 as the number that it looks like: YAML wants a point before the e,
    and makes text of it."""
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    if isinstance(value, dict):
        return {name: _numbers(one) for name, one in value.items()}
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", value):
        return float(value)
    return value


def search(
    base: Values,
    space: Space,
    data: InteractionData,
    folder: str | Path,
    *,
    trials: int,
    seed: int = 0,
    reporter: Callable[[], Reporter] = Reporter,
    on_trial: Callable[[int, Mapping[str, Any]], None] | None = None,
) -> list[Outcome]:
    """Train until so many trials are finished, pruned or diverged, those of earlier calls counted.

    Args:
        base: what all trials have in common.
        space: what differs, see :func:`read_space`.
        data: the interactions.
        folder: of the search; made if need be.
        trials: of the whole search.
        seed: of Optuna's proposals. Weights and batches have those of ``base``.
        reporter: makes what shows a run's progress.
        on_trial: called with a trial's number, from 0, and its values.

    Returns:
        All trials, in their order; the last one is ``interrupted`` where a signal ended it.

    Raises:
        ConfigError: Optuna is not installed, or ``trials`` is below 1.
        SweepError: the folder holds a search with other data, base or space.
        RunFolderError: the folder is in use, or cannot be written.
    """
    if trials < 1:
        raise ConfigError(f"trials={trials} must be at least 1")
    optuna = _optuna()
    folder = Path(folder)
    source = absolute_source(DataConfig.create(**base.data).to_dict())
    state = optuna.trial.TrialState
    with locked(folder):
        storage = f"sqlite:///{(folder / STUDY).absolute()}"
        study = optuna.create_study(
            study_name=_NAME, storage=storage, direction="maximize", load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=_FIRST_TRIALS, n_warmup_steps=_FIRST_EPOCHS
            ),
        )  # fmt: skip
        _check_same_search(study, base, space, data, folder)
        # A fresh sampler of the same seed would propose the first values again.
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.get_trials()))
        for left in study.get_trials(states=(state.RUNNING,)):
            # Nobody else is here: its process was ended. Its run goes on as a new trial.
            study.tell(left.number, state=state.FAIL)
            if "run" in left.user_attrs:
                study.enqueue_trial(left.params, user_attrs={"run": left.user_attrs["run"]})
        while len(_counted(study, state)) < trials:
            trial = study.ask()
            run = trial.user_attrs.get("run", f"trial-{trial.number:04d}")
            values = {name: _suggest(trial, name, choice) for name, choice in space.items()}
            trial.set_user_attr("run", run)
            if on_trial is not None:
                on_trial(len(_counted(study, state)), values)
            pruner = _Pruner(trial)
            model_config, train_config = _configs(base.update(place(values)), data.num_items)
            try:
                done = train(
                    model_config, train_config, data, folder / run,
                    resume=(folder / run / CONFIG).exists(), reporter=reporter(),
                    data_source=source, callbacks=[pruner],
                )  # fmt: skip
            except TrainingDiverged as error:
                trial.set_user_attr("error", str(error))
                study.tell(trial, state=state.FAIL)
                continue
            if done.status == "interrupted":
                return [*_counted(study, state), Outcome(run, values, "interrupted", None)]
            if pruner.pruned:
                study.tell(trial, state=state.PRUNED)
            else:
                study.tell(trial, done.best_metric)
            _write_best(base, folder, _counted(study, state))
        return _counted(study, state)


def _check_same_search(
    study: Any, base: Values, space: Space, data: InteractionData, folder: Path
) -> None:
    """Trials are compared with each other, so all of them have one data set, base and space.

    Raises:
        SweepError: the folder holds another search.
    """
    about = {
        "data": {"fingerprint": fingerprint(data)}, "model": base.model, "train": base.train,
        "space": {name: list(choice) for name, choice in space.items()},
    }  # fmt: skip
    about = json.loads(json.dumps(about))
    if "about" not in study.user_attrs:
        study.set_user_attr("about", about)
        return
    before = study.user_attrs["about"]
    for section, now in about.items():
        for name in {**before[section], **now}:
            old, new = before[section].get(name), now.get(name)
            if old != new:
                raise SweepError(
                    f"{str(folder)!r} holds another search: {section}.{name} is {old!r} there and "
                    f"{new!r} now; go on with the old one or choose another folder"
                )


class _Pruner(Callback):
    """Tells Optuna of each validation, and ends the run that it gives up."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial
        self.pruned = False

    def on_train_begin(self, run: RunInProgress) -> None:
        for line in read_metrics(run.run_dir):  # of a run that goes on
            self._tell(line)

    def on_epoch_end(self, run: RunInProgress, metrics: Mapping[str, Any], is_best: bool) -> None:
        self._tell(metrics)
        if run.epoch < run.epochs and self._trial.should_prune():
            self.pruned = True
            run.stop()

    def _tell(self, line: Mapping[str, Any]) -> None:
        if line.get("valid"):
            self._trial.report(line["valid"][_METRIC], line["epoch"])


def _configs(values: Values, num_items: int) -> tuple[Any, TrainConfig]:
    return (
        create_config({**values.model, "num_items": num_items}),
        TrainConfig.create(**values.train),
    )


def _suggest(trial: Any, name: str, choice: Range | tuple[Any, ...]) -> Any:
    if not isinstance(choice, Range):
        return trial.suggest_categorical(name, list(choice))
    if choice.whole:
        return trial.suggest_int(name, int(choice.low), int(choice.high), log=choice.log)
    return trial.suggest_float(name, choice.low, choice.high, log=choice.log)


def _counted(study: Any, state: Any) -> list[Outcome]:
    """Trials that ended by themselves; one that a killed process left is not among them."""
    found = []
    for trial in study.get_trials():
        words = {state.COMPLETE: "finished", state.PRUNED: "pruned"}
        status = words.get(trial.state, "diverged" if "error" in trial.user_attrs else "")
        if status:
            reported = list(trial.intermediate_values.values())
            best = trial.value if status == "finished" else max(reported, default=None)
            found.append(Outcome(trial.user_attrs["run"], dict(trial.params), status, best))
    return found


def _write_best(base: Values, folder: Path, found: list[Outcome]) -> None:
    finished = [one for one in found if one.status == "finished" and one.metric is not None]
    if finished:
        best = max(finished, key=lambda one: one.metric or 0.0)
        chosen = base.update(place(best.values))
        content = {"data": chosen.data, "model": chosen.model, "train": chosen.train}
        kept = {name: values for name, values in content.items() if values}
        head = f"# {best.run}: validation {_METRIC} {best.metric:.4f}\n"
        write_atomically(folder / BEST, head + yaml.safe_dump(kept, sort_keys=False))


def _optuna() -> ModuleType:
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise ConfigError(
            f"a search needs {error.name or 'optuna'}: pip install adarec_fast[search]"
        ) from error
