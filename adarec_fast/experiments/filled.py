"""A table with its figures: the paper's, ours as means over seeds, and their difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..training.result import counted_epochs
from . import paper
from .reproduction import Reproduction
from .summary import Group, mean_std
from .tables import Row, Table, data_set_of
from .verdict import verdict

_FIELDS = dict(zip(paper.COSTS, ("seconds_per_epoch", "milliseconds_per_user"), strict=True))
SOURCES = ("paper", "here", "difference")


@dataclass(frozen=True)
class Entry:
    """A figure: the paper's (no deviation, no runs), the mean over runs of ours, or ours less it.

    Attributes:
        data_set, row, loss, column: where it stands.
        source: of :data:`SOURCES`.
        mean, std: std is the sample standard deviation, None of fewer than two runs.
        runs: finished runs; 0 for the paper's.
    """

    data_set: str
    row: str
    loss: str
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
        entries: every figure there is.
        missing: why a line has fewer runs than it should, by its label and loss.
        verdicts: whether a line gives the paper's figures again, by its label and loss.
        notes: what a reader has to know of these runs.
    """

    table: Table
    data_set: str
    entries: list[Entry] = field(default_factory=list)
    missing: dict[tuple[str, str], str] = field(default_factory=dict)
    verdicts: dict[tuple[str, str], str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def cell(self, row: str, column: str, source: str, loss: str | None = None) -> Entry | None:
        """One figure, None if there is none; of a line with several losses, of any by default."""
        for entry in self.entries:
            place = (entry.row, entry.column, entry.source)
            if place == (row, column, source) and loss in (None, entry.loss):
                return entry
        return None


def fill(
    wanted: Reproduction, path: str, groups: Sequence[Group], why: Mapping[str, str] | None = None
) -> Filled:
    """The table for the data in ``path``.

    Args:
        wanted: the table and its runs.
        path: of ``wanted.data``.
        groups: results of runs, those of this table among them.
        why: of runs that are not finished, by name.
    """
    table, name = wanted.table, data_set_of(path)
    filled = Filled(table, name or Path(path).stem)
    results: list[dict[str, Any]] = []
    for row in table.rows:
        printed = table.printed.get(name or "", {}).get(row.printed or "", ())
        paper_has = dict(zip(table.columns, printed, strict=False))

        def add(column: str, source: str, *figures: Any, row: Row = row) -> None:
            place = filled.data_set, row.label, row.loss, column, source
            filled.entries.append(Entry(*place, *figures))

        for column, figure in paper_has.items():
            add(column, "paper", figure, None, 0)
        if row.values is None:
            filled.missing[row.label, row.loss] = row.why or "not run"
            continue
        group = _group(groups, wanted.combination(row, path))
        for column in table.columns if group is not None else ():
            assert group is not None
            numbers = (
                group.numbers(_FIELDS[column]) if column in _FIELDS
                else group.numbers(row.part, column)
            )  # fmt: skip
            mean, std = mean_std(numbers)
            if mean is None:
                continue
            add(column, "here", mean, std, len(numbers))
            if column in paper_has:
                add(column, "difference", mean - paper_has[column], std, len(numbers))
        if group is not None:
            results += group.results
            judged = verdict(table, row, name, group.results)
            if judged is not None:
                filled.verdicts[row.label, row.loss] = judged
        reason = _missing(group, len(wanted.seeds), why or {})
        if reason is not None:
            filled.missing[row.label, row.loss] = reason
    unique = {id(result): result for result in results}  # lines may read parts of the same runs
    filled.notes += _about(name, list(unique.values()))
    return filled


def _group(groups: Sequence[Group], wanted: Mapping[str, Any]) -> Group | None:
    return next((group for group in groups if group.values == wanted), None)


def _missing(group: Group | None, seeds: int, why: Mapping[str, str]) -> str | None:
    """Why runs of a line are not there; None if all are."""
    if group is None:
        return "not run yet"
    told = [f"{len(group.diverged)} of {seeds} diverged"] if group.diverged else []
    reasons = [why.get(name, "not run yet") for name in group.missing]
    for reason in dict.fromkeys(reasons):
        count = reasons.count(reason)
        told.append(reason if count == seeds else f"{count} of {seeds} seeds {reason}")
    return "; ".join(told) or None


def _about(name: str | None, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the runs have in common, in words."""
    if not results:
        return []
    notes = []
    counts = sorted({result["epochs"] for result in results})
    span = counted_epochs(counts[-1])
    if len(counts) > 1:
        span = f"{counts[0]} to {span}"
    where = "; ".join(sorted({f"{r['device']}, threads: {r['threads']}" for r in results}))
    notes.append(f"Our runs: {span}, on {where}.")
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
