"""Runs the combinations of a sweep, one after the other; whatever is finished is kept.

Several processes may run one sweep: each takes the combinations that no other one holds. A
process that dies, or is ended by SIGTERM, loses the steps since the last checkpoint of one run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..config import DataConfig, TrainConfig
from ..data import InteractionData, Split
from ..data.configured import load_data
from ..models.registry import create_config
from ..training import Reporter, TrainingDiverged, load_run, train
from ..training.checkpoint import read_json, write_atomically
from ..training.errors import RunFolderBusy
from ..training.loop import resolve_device
from ..training.run_folder import CONFIG, fingerprint, locked
from .definition import LOCKS, RESULT, Sweep, SweepError, run_name
from .result import measure, write_ranks
from .summary import write_summary

State = Literal["finished", "diverged", "begun", "new"]


@dataclass(frozen=True)
class RunOutcome:
    """What became of a combination in one call.

    Attributes:
        name: of its folder.
        status: ``"finished"`` in this call, ``"kept"`` (finished before), ``"diverged"``,
            ``"busy"`` (another process has it) or ``"interrupted"``.
        result: ``result.json``, where there is one.
    """

    name: str
    status: Literal["finished", "kept", "diverged", "busy", "interrupted"]
    result: dict[str, Any] | None


def state_of(folder: Path, combination: Mapping[str, Any]) -> State:
    """How far a combination is."""
    run_dir = folder / run_name(combination)
    if (run_dir / RESULT).exists():
        return "finished" if read_json(run_dir / RESULT)["status"] != "diverged" else "diverged"
    return "begun" if (run_dir / CONFIG).exists() else "new"


def run_sweep(
    sweep: Sweep,
    folder: str | Path,
    *,
    extend: bool = False,
    reporter: Callable[[], Reporter] = Reporter,
    on_start: Callable[[int, str, State], None] | None = None,
    on_end: Callable[[RunOutcome], None] | None = None,
) -> list[RunOutcome]:
    """Run what is not finished yet, in the order of the combinations.

    Each run is trained with early stopping, tested at its best validation epoch, and gets its
    users' ranks and a ``result.json`` at the end, see :mod:`.result`. A run that diverges is
    noted and the sweep goes on; remove its folder to try again. SIGINT and SIGTERM end the sweep
    after the step in progress.

    Args:
        sweep: the definition; the same again goes on with a sweep.
        folder: of the sweep.
        extend: see :meth:`Sweep.store`.
        reporter: makes what shows a run's progress.
        on_start: called with a combination's number, from 0, its name and its state.
        on_end: called with what became of a run that was trained in this call.

    Returns:
        An outcome for each combination of ``sweep`` up to the one that was interrupted.

    Raises:
        SweepError: the folder holds another sweep, or runs on other data; or torchrun started
            several workers.
        RunFolderError: a combination's folder cannot be locked.
    """
    # Workers would each take a run of their own, and wait in it for the others.
    workers = os.environ.get("WORLD_SIZE", "1")
    if workers != "1":
        raise SweepError(
            f"WORLD_SIZE={workers}: a sweep's runs are of one process; start it without torchrun, "
            "twice if two are to share the combinations"
        )
    for combination in sweep.combinations:
        if DataConfig.create(**sweep.values(combination).data).checked().split == "none":
            raise SweepError("split=none holds nothing out, and a sweep compares what was held out")
    folder = Path(folder)
    sweep.store(folder, extend=extend)
    loaded = _Loader()
    outcomes = []
    for number, combination in enumerate(sweep.combinations):
        name = run_name(combination)
        run_dir, state = folder / name, state_of(folder, combination)
        if on_start is not None:
            on_start(number, name, state)
        if state in ("finished", "diverged"):
            outcomes.append(_kept(run_dir, name))
            continue
        held = False
        try:
            with locked(folder / LOCKS / name):
                held = True
                if (run_dir / RESULT).exists():  # another process was quicker
                    outcomes.append(_kept(run_dir, name))
                    continue
                outcomes.append(_one(sweep, combination, folder, loaded, reporter()))
        except RunFolderBusy:
            if held:
                raise
            outcomes.append(RunOutcome(name, "busy", None))
            continue
        write_summary(folder)
        if on_end is not None:
            on_end(outcomes[-1])
        if outcomes[-1].status == "interrupted":
            break
    write_summary(folder)
    return outcomes


def _kept(run_dir: Path, name: str) -> RunOutcome:
    result = read_json(run_dir / RESULT)
    return RunOutcome(name, "diverged" if result["status"] == "diverged" else "kept", result)


def _one(
    sweep: Sweep,
    combination: Mapping[str, Any],
    folder: Path,
    loaded: _Loader,
    reporter: Reporter,
) -> RunOutcome:
    """Train, test and note down one combination."""
    name = run_name(combination)
    run_dir = folder / name
    values = sweep.values(combination)
    data = loaded(values.data)
    # With every default written out: a sweep read back from its folder has them all.
    source = DataConfig.create(**values.data).to_dict()
    _check_data(folder, source, data)
    about: dict[str, Any] = {
        "combination": dict(combination),
        "source": source,
        "data": {
            "name": data.name,
            "users": Split(data).users("test").numel(),
            "items": data.num_items,
            "fingerprint": fingerprint(data),
        },
    }
    try:
        done = train(
            create_config({**values.model, "num_items": data.num_items}),
            TrainConfig.create(**values.train),
            data,
            run_dir,
            resume=(run_dir / CONFIG).exists(),
            reporter=reporter,
            data_source=source,
        )
    except TrainingDiverged as error:
        result = {**about, "status": "diverged", "error": str(error)}
        write_atomically(run_dir / RESULT, json.dumps(result, indent=1) + "\n")
        return RunOutcome(name, "diverged", result)
    if done.status in ("interrupted", "stopped"):
        return RunOutcome(name, "interrupted", None)
    run = load_run(run_dir, device=resolve_device(TrainConfig.create(**values.train).device))
    figures, ranks = measure(run)
    write_ranks(run, ranks)
    result = {**about, "status": done.status, **figures}
    write_atomically(run_dir / RESULT, json.dumps(result, indent=1) + "\n")
    return RunOutcome(name, "finished", result)


class _Loader:
    """The interactions of the last section ``data`` asked for: most sweeps have but one."""

    def __init__(self) -> None:
        self._section: Mapping[str, Any] | None = None
        self._data: InteractionData | None = None

    def __call__(self, section: Mapping[str, Any]) -> InteractionData:
        if self._data is None or section != self._section:
            self._section, self._data = dict(section), load_data(section)
        return self._data


def _check_data(folder: Path, source: Mapping[str, Any], data: InteractionData) -> None:
    """The runs of one source must have seen the same data.

    Raises:
        SweepError: the file has changed since another run was finished.
    """
    now = fingerprint(data)
    for other in Sweep.load(folder).combinations:
        path = folder / run_name(other) / RESULT
        if path.exists():
            result = read_json(path)
            if result["source"] == source and result["data"]["fingerprint"] != now:
                raise SweepError(
                    f"{source['data']}: the data have changed since "
                    f"{run_name(other)} was finished ({result['data']['users']} users and "
                    f"{result['data']['items']} items then, {data.num_users} and "
                    f"{data.num_items} now); restore the file or choose another sweep folder"
                )
