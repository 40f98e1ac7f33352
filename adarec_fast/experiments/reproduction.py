"""The runs of a table on some data, and who of them fits a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ConfigError, TrainConfig
from ..models.registry import DEFAULT, config_type
from ..training import Reporter
from ..training.metrics_log import read_metrics
from ..training.result import counted_epochs
from ..training.values import Values, known_keys, place
from .definition import Sweep, run_name
from .estimate import Estimates, Planned
from .runner import RunOutcome, State, run_sweep, state_of
from .tables import OWN_KEYS, Row, Table, data_set_of


@dataclass(frozen=True)
class Reproduction:
    """A table's runs.

    Attributes:
        table: which.
        data: absolute paths.
        seeds: of every line.
        base: values of all runs.
        beside: values of the runs of those models that have such fields, which an ADARec has not.
    """

    table: Table
    data: tuple[str, ...]
    seeds: tuple[int, ...]
    base: Values
    beside: Mapping[str, Any]

    @classmethod
    def create(
        cls, table: Table, data: Sequence[str], seeds: Sequence[int], given: Values | None = None
    ) -> Reproduction:
        """Check what is given for all runs.

        Args:
            table: which.
            data: absolute paths.
            seeds: of every line.
            given: values in the place of the table's own and of the systems' settings.

        Raises:
            ConfigError: a value is what the lines differ in, or of no model of the table.
        """
        given = given or Values()
        own = (*OWN_KEYS, *table.swept)
        for section in (given.data, given.model, given.train):
            both = [key for key in own if key in section]
            if both:
                raise ConfigError(f"{', '.join(both)}: set by the table's own lines; leave it out")
        values = place(table.defaults).update(given)
        ours = known_keys("model", DEFAULT)
        shared = {key: value for key, value in values.model.items() if key in ours}
        beside = {key: value for key, value in values.model.items() if key not in ours}
        kinds = {row.values.get("model", DEFAULT) for row in table.rows if row.values is not None}
        for key in given.model:
            if not any(key in known_keys("model", kind) for kind in kinds):
                raise ConfigError(f"{key}: no model of {table.name} has it; leave it out")
        base = Values(values.data, shared, values.train)
        return cls(table, tuple(data), tuple(seeds), base, beside)

    def combination(self, row: Row, path: str) -> dict[str, Any]:
        """What a line's runs on some data set beside the base, but for the seed."""
        assert row.values is not None
        kind = row.values.get("model", DEFAULT)
        known, model = known_keys("model", kind), config_type(kind)
        given = {**self.base.model, **self.base.train, **self.beside}
        own = row.settings(data_set_of(path))
        found = {key: value for key, value in own.items() if key not in given}
        found |= {key: value for key, value in self.beside.items() if key in known}
        if given.get("supervision", model.supervisions[0]) not in model.supervisions:
            found["supervision"] = model.supervisions[0]
        stage = row.system.stage
        if self.table.brief:
            found = {**row.system.brief, **found}
        elif stage is not None and stage not in given:
            # A first stage that leaves no epoch to the second would be another system.
            epochs = TrainConfig.create(**self.base.train).epochs
            if model.model_fields[stage].default >= epochs:
                found[stage] = epochs // 2
        return {"data": path, **found, **row.values}

    def sweep(self) -> Sweep:
        """All its runs, those first that tell most: a seed of every line, then the next seed."""
        wanted: list[dict[str, Any]] = []
        for seed in self.seeds:
            for path in self.data:
                for row in self.table.by_rank:
                    combination = {**self.combination(row, path), "seed": seed}
                    if combination not in wanted:  # a line may read another part of the same run
                        wanted.append(combination)
        return Sweep.create(self.base, combinations=wanted)


def fitting(rows: Sequence[Planned], seconds: float) -> list[Planned]:
    """Those of the runs that fit one after the other, in their order; what does not is left out."""
    found = []
    for row in rows:
        if row.state in ("new", "begun") and row.seconds <= seconds:
            found.append(row)
            seconds -= row.seconds
    return found


def run_within(
    sweep: Sweep,
    folder: Path,
    seconds: float,
    *,
    reporter: Callable[[], Reporter] = Reporter,
    on_start: Callable[[int, str, State], None] | None = None,
    on_end: Callable[[RunOutcome], None] | None = None,
) -> tuple[list[RunOutcome], list[Planned]]:
    """Run what fits a budget, in the order of the combinations.

    A run is begun if all epochs that it may take fit into what is left. Early stopping usually
    leaves more than that, so what fits is asked again after every run.

    Args:
        sweep: its folder's other combinations stay.
        folder: of the sweep.
        seconds: of this call.
        reporter, on_start, on_end: as :func:`.run_sweep` takes them.

    Returns:
        Outcomes of this call's runs and of those that were finished before; what was left out.

    Raises:
        SweepError: as :func:`.run_sweep`.
    """
    end = time.monotonic() + seconds
    sweep.store(folder, extend=True)
    numbers = {run_name(one): number for number, one in enumerate(sweep.combinations)}
    estimates, outcomes = Estimates(sweep, folder), {}
    while True:
        rows = [row for row in estimates.plan() if row.name not in outcomes]
        due = [row for row in rows if row.state in ("finished", "diverged")]
        due += fitting(rows, end - time.monotonic())[:1]
        if not due:
            break
        for row in due:
            number = numbers[row.name]

            def started(_: int, name: str, state: State, number: int = number) -> None:
                if on_start is not None:
                    on_start(number, name, state)

            one = Sweep(sweep.base, (sweep.combinations[number],))
            (outcomes[row.name],) = run_sweep(
                one, folder, extend=True, reporter=reporter, on_start=started, on_end=on_end
            )
        if outcomes[due[-1].name].status == "interrupted":
            break
    return list(outcomes.values()), [row for row in rows if row.name not in outcomes]


def unfinished(sweep: Sweep, folder: Path) -> dict[str, str]:
    """Why each run that is not finished is not, by its name, as far as its folder tells."""
    found = {}
    for combination in sweep.combinations:
        name, state = run_name(combination), state_of(folder, combination)
        if state == "begun":
            found[name] = f"begun, {counted_epochs(len(read_metrics(folder / name)))} so far"
        elif state == "new":
            found[name] = "not run yet"
    return found
