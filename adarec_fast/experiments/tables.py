"""The paper's tables: which runs each needs, and its figures beside ours.

All tables share one sweep, so that the full model is trained once for all of them. What cannot be
run here (other authors' models) is shown with the paper's figures alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import ConfigError
from . import paper
from .summary import Group, mean_std

BACKBONE: dict[str, Any] = {"depth": "fixed", "diffusion": False, "moe": False}
SPARSE_LENGTH = 5
# The lines themselves set these; set for all lines, they would belie what the lines are called.
OWN_KEYS = ("data", "seed", "truncate", "depth", "diffusion", "moe", "router")


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        label: as shown.
        printed: its name in :mod:`.paper`; None where the paper has no such line.
        values: what the run sets on top of the defaults; None where nothing is run.
        part: of ``result.json``, for metrics.
    """

    label: str
    printed: str | None
    values: Mapping[str, Any] | None = None
    part: str = "test"


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name, title: ``"table1"``, and what it shows.
        columns: figures of each line.
        printed: the paper's figures by data set and line.
        rows: lines.
        notes: what a reader has to know.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    printed: Mapping[str, Mapping[str, paper.Figures]]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def times(self) -> bool:
        """Whether it shows costs instead of metrics."""
        return self.columns == paper.COSTS

    def combinations(self, data: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
        """The runs it needs, for :class:`.Sweep`; each line's seeds one after the other."""
        wanted: list[dict[str, Any]] = []
        for path in data:
            for row in self.rows:
                for seed in seeds if row.values is not None else ():
                    combination = {"data": path, **(row.values or {}), "seed": seed}
                    if combination not in wanted:  # a line may read another part of the same run
                        wanted.append(combination)
        return wanted


def _others(printed: Mapping[str, Mapping[str, paper.Figures]], ours: Sequence[str]) -> list[Row]:
    return [Row(name, name) for name in printed["Beauty"] if name not in ours]


# Five items are read before each target: an example's target is a sixth training item. The authors'
# repository cuts histories in this way with --shorten_seq_to 5.
TRUNCATED = {"truncate": SPARSE_LENGTH + 1, "max_length": SPARSE_LENGTH}
TABLES = {
    table.name: table
    for table in (
        Table(
            "table1",
            "overall performance",
            paper.METRICS,
            paper.TABLE1,
            (
                *_others(paper.TABLE1, ("SASRec", "ADARec")),
                Row("SASRec", "SASRec", BACKBONE),
                Row("ADARec", "ADARec", {}),
            ),
            ("SASRec here is ADARec's own backbone alone, trained as ADARec is.",),
        ),
        Table(
            "table2",
            f"sparse sequences, history of at most {SPARSE_LENGTH}",
            paper.METRICS,
            paper.TABLE2,
            (
                *_others(paper.TABLE2, ("ADARec",)),
                Row("SASRec, histories cut", None, {**BACKBONE, **TRUNCATED}),
                Row("ADARec, histories cut", "ADARec", TRUNCATED),
                Row("SASRec, sparse users", None, BACKBONE, "test_sparse"),
                Row("ADARec, sparse users", None, {}, "test_sparse"),
            ),
            (
                f"Histories cut: all users, trained and tested on the {SPARSE_LENGTH} items before "
                "each target, as the paper's figures seem to be; sparse users: those with at most "
                f"{SPARSE_LENGTH} items before the test item, by the models of table1.",
            ),
        ),
        Table(
            "table4",
            "ablation of the components",
            paper.METRICS[2:],
            paper.TABLE4,
            (
                Row("full", "full", {}),
                Row("no ADC", "no ADC", {"depth": "fixed"}),
                Row("no HDA", "no HDA", {"diffusion": False}),
                Row("no ADC, no HDA", "no ADC, no HDA", {"depth": "fixed", "diffusion": False}),
                Row("no HP-MoE", "no HP-MoE", {"moe": False}),
                Row("no content-aware router", "no content-aware router", {"router": "level"}),
                Row("no L_cont", "no L_cont", {"lambda_cont": 0.0}),
            ),
            (
                "no ADC: depth T_max for everybody; no HDA: every level is E itself; no HP-MoE: "
                "the mean of the levels; no content-aware router: the gate sees the level alone.",
            ),
        ),
        Table(
            "table5",
            "efficiency",
            paper.COSTS,
            paper.TABLE5,
            (
                *_others(paper.TABLE5, ("SASRec", "ADARec")),
                Row("SASRec", "SASRec", BACKBONE),
                Row("ADARec", "ADARec", {}),
            ),
            (
                "The paper's figures are of an RTX 3090. Here: median seconds of an epoch's "
                "training, and median milliseconds from one user's history to the 20 best items; "
                "read them only if nothing else ran on the machine.",
            ),
        ),
    )
}
NOT_RUNNABLE = {
    "table3": "ADARec on IOCRec and ICLRec: these encoders are not here; ADARec(backbone=...) "
    "takes any module",
}


def data_set_of(path: str) -> str | None:
    """Which of the paper's data sets a file is, by its name; None if it is none of them."""
    stem = Path(path).stem.lower()
    for name, about in paper.DATA_SETS.items():
        if stem in (name.lower(), about.file.lower()):
            return name
    return None


@dataclass(frozen=True)
class Entry:
    """A figure: the paper's (no deviation, no runs), or the mean over runs of ours.

    Attributes:
        data_set, row, column: where it stands.
        source: ``"paper"`` or ``"here"``.
        mean, std: std is the sample standard deviation, None of fewer than two runs.
        runs: finished runs; 0 for the paper's.
    """

    data_set: str
    row: str
    column: str
    source: str
    mean: float
    std: float | None
    runs: int


@dataclass
class Filled:
    """A table of one data set with its figures.

    Attributes:
        table: which.
        data_set: its name.
        entries: every figure there is, the paper's and ours.
        notes: what a reader has to know of these runs.
    """

    table: Table
    data_set: str
    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def cell(self, row: str, column: str, source: str) -> Entry | None:
        """One figure, None if there is none."""
        for entry in self.entries:
            if (entry.row, entry.column, entry.source) == (row, column, source):
                return entry
        return None


def fill(table: Table, path: str, groups: Sequence[Group]) -> Filled:
    """The table for the data in ``path``, from the results of the runs in ``groups``."""
    name = data_set_of(path)
    filled = Filled(table, name or Path(path).stem)
    results: list[dict[str, Any]] = []
    for row in table.rows:
        printed = table.printed.get(name or "", {}).get(row.printed or "", ())
        for column, figure in zip(table.columns, printed, strict=False):
            filled.entries.append(
                Entry(filled.data_set, row.label, column, "paper", figure, None, 0)
            )
        group = _group(groups, path, row)
        if group is None:
            continue
        results += group.results
        for column in table.columns:
            if table.times:
                part = "seconds_per_epoch" if column == paper.COSTS[0] else "milliseconds_per_user"
                numbers = group.numbers(part)
            else:
                numbers = group.numbers(row.part, column)
            mean, std = mean_std(numbers)
            if mean is not None:
                filled.entries.append(
                    Entry(filled.data_set, row.label, column, "here", mean, std, len(numbers))
                )
        if group.missing:
            filled.notes.append(f"{row.label}: {len(group.missing)} run(s) not finished.")
        if group.diverged:
            filled.notes.append(f"{row.label}: {len(group.diverged)} run(s) diverged.")
    filled.notes += _about(name, results)
    return filled


def _group(groups: Sequence[Group], path: str, row: Row) -> Group | None:
    if row.values is None:
        return None
    wanted = {"data": path, **row.values}
    return next((group for group in groups if group.values == wanted), None)


def _about(name: str | None, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the runs have in common, in words."""
    if not results:
        return []
    notes = []
    counts = sorted({result["epochs"] for result in results})
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    where = "; ".join(sorted({f"{r['device']}, threads: {r['threads']}" for r in results}))
    notes.append(f"Our runs: {span} epochs, on {where}.")
    limited = sum(result["status"] == "finished" for result in results)
    if limited:
        notes.append(
            f"{limited} of {len(results)} runs ended at their greatest number of epochs, not by "
            "early stopping: their figures might still have risen."
        )
    if name is None:
        notes.append("Not one of the paper's data sets, so it has no figures for it.")
    else:
        about = paper.DATA_SETS[name]
        sizes = {(result["data"]["users"], result["data"]["items"]) for result in results}
        for users, items in sorted(sizes):
            if (users, items) != (about.users, about.items):
                notes.append(
                    f"Not the paper's {name}: {users:,} users and {items:,} items instead of "
                    f"{about.users:,} and {about.items:,}; the figures cannot be compared."
                )
    return notes


def get_table(name: str) -> Table:
    """The table of that name.

    Raises:
        ConfigError: there is none, or nothing of it can be run; says which there are.
    """
    if name in NOT_RUNNABLE:
        raise ConfigError(f"{name} cannot be run: {NOT_RUNNABLE[name]}")
    if name not in TABLES:
        raise ConfigError(f"table {name!r} is not one of {', '.join(TABLES)}")
    return TABLES[name]
