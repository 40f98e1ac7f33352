"""A comparison as text: for a terminal, as Markdown, as CSV."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ..ranking.comparison import METRICS, Interval
from .comparison import GROUPS
from .summary import mean_std, to_csv

_WORDS = {"test": "test", "valid": "validation"}
_SECONDS = ("train_seconds", "valid_seconds")
_ALONE = "without_memory"


@dataclass(frozen=True)
class Line:
    """An arm on a data set.

    Attributes:
        data, arm: names.
        runs: rows of ``compare.json``, a seed each.
        missing, diverged: how many seeds are not finished, and how many diverged.
        differences: from the baseline by (part, users, metric); empty for the baseline itself.
    """

    data: str
    arm: str
    runs: tuple[Mapping[str, Any], ...]
    missing: int
    diverged: int
    differences: Mapping[tuple[str, str, str], Mapping[str, Any]]

    def figure(self, part: str, users: str, metric: str) -> tuple[float | None, float | None]:
        """Mean and deviation over seeds of a metric; None where there are too few."""
        name = part if users == "all" else f"{part}_sparse"
        found = [(run.get(name) or {}).get(metric) for run in self.runs]
        return mean_std([value for value in found if value is not None])

    def mean(self, name: str) -> float | None:
        """Mean over seeds of a number of the rows; None if a row lacks it."""
        found = [run.get(name) for run in self.runs]
        known = [float(value) for value in found if value is not None]
        return statistics.fmean(known) if known and len(known) == len(found) else None

    @property
    def hours(self) -> float | None:
        """Training, validation and memory of a run, the mean over seeds."""
        parts = [self.mean(name) for name in _SECONDS]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        # Rows of before say nothing of a memory's time.
        return (sum(known) + (self.mean("memory_seconds") or 0.0)) / 3600

    def without_memory(self) -> Line | None:
        """The same runs with their memory left out; None where one has none."""
        if not self.runs or any(_ALONE not in run for run in self.runs):
            return None
        return replace(self, runs=tuple(run[_ALONE] for run in self.runs), differences={})


def lines(report: Mapping[str, Any], data: str) -> list[Line]:
    """The arms of one data set, in their order."""

    def of(entries: Sequence[Mapping[str, Any]], arm: str) -> list[Mapping[str, Any]]:
        return [entry for entry in entries if (entry["data"], entry["arm"]) == (data, arm)]

    return [
        Line(
            data=data,
            arm=arm,
            runs=tuple(of(report["runs"], arm)),
            missing=len(of(report["missing"], arm)),
            diverged=len(of(report["diverged"], arm)),
            differences={
                (entry["part"], entry["users"], entry["metric"]): entry
                for entry in of(report["differences"], arm)
            },
        )
        for arm in report["arms"]
    ]


def rich_tables(report: Mapping[str, Any], part: str) -> list[Table]:
    """For a terminal of 80 columns: a table a data set, of the first metric's differences.

    Below an arm's name stand its number of seeds and the time that a run of it took.
    """
    made = []
    first, *others = METRICS
    for data in report["data"]:
        table = Table(
            box=box.SIMPLE_HEAD, title=Text(_title(report, data, part)), title_justify="left",
            padding=(0, 1, 0, 0),
        )  # fmt: skip
        table.add_column("arm", overflow="fold")
        table.add_column("users")
        # The baseline's name below its word, so that the first column has room for its second line.
        for name in (first, f"less\n{report['baseline']}", "from", "to", *others):
            table.add_column(Text(name), justify="right", no_wrap="\n" not in name)
        for line in lines(report, data):
            for group in GROUPS:
                found = line.differences.get((part, group, first))
                numbers = [] if found is None else [found["difference"], *found["over_users"]]
                label = line.arm if group == "all" else f"  n={_seeds(line)}, {_hours(line)}"
                table.add_row(
                    Text(label), group, _mean(line, part, group, first),
                    *([_signed(number) for number in numbers] or [""] * 3),
                    *(_mean(line, part, group, metric).partition("±")[0] for metric in others),
                )  # fmt: skip
        made.append(table)
    return made


def markdown(report: Mapping[str, Any], part: str) -> str:
    """A section a data set: all users, sparse ones, and what the arms cost."""
    parts = []
    for data in report["data"]:
        arms = lines(report, data)
        parts.append(f"## {_title(report, data, part)}\n")
        for group in GROUPS:
            header = [f"{group} users", "seeds"]
            for metric in METRICS:
                header += [metric, f"less {report['baseline']}", "over users", "over seeds"]
            rows = [
                [line.arm, _seeds(line), *_compared(line, part, group)] for line in arms
            ]
            parts.append(_markdown(header, rows))
        alone = [line for each in arms if (line := each.without_memory()) is not None]
        if alone:
            header = ["memory left out", "seeds"]
            header += [f"{group} {metric}" for group in GROUPS for metric in METRICS]
            rows = [
                [line.arm, _seeds(line),
                 *(_mean(line, part, group, metric) for group in GROUPS for metric in METRICS)]
                for line in alone
            ]  # fmt: skip
            parts.append(_markdown(header, rows))
        names = [f"{_WORDS['valid']} {metric}" for metric in METRICS]
        parts.append(
            _markdown(
                ["arm", *names, "parameters", "epochs, best of run", "training, a run"],
                [[line.arm, *(_mean(line, "valid", "all", metric) for metric in METRICS),
                  _count(line.mean("parameters")), _epochs(line), _hours(line)]
                 for line in arms],
            )
        )  # fmt: skip
    return "\n".join([*parts, *(f"{note}\n" for note in notes(report))])


def csv_text(report: Mapping[str, Any]) -> str:
    """A line an arm and data set, with every figure of both parts."""
    rows = []
    for data in report["data"]:
        for line in lines(report, data):
            row: dict[str, Any] = {
                "data": data, "arm": line.arm, "seeds": len(line.runs), "missing": line.missing,
                "diverged": line.diverged, "parameters": line.mean("parameters"),
                "hours": line.hours, "best_epoch": line.mean("best_epoch"),
                "epochs": line.mean("epochs"),
            }  # fmt: skip
            for part in _WORDS:
                for group in GROUPS:
                    for metric in METRICS:
                        name = f"{part} {group} {metric}"
                        row[f"{name} mean"], row[f"{name} std"] = line.figure(part, group, metric)
                        found = line.differences.get((part, group, metric))
                        ends = (found or {}).get("over_seeds") or (None, None)
                        users = (None, None) if found is None else found["over_users"]
                        row[f"{name} difference"] = None if found is None else found["difference"]
                        for what, (low, high) in (("users", users), ("seeds", ends)):
                            row[f"{name} {what} low"], row[f"{name} {what} high"] = low, high
            rows.append(row)
    return to_csv(rows)


def notes(report: Mapping[str, Any]) -> list[str]:
    """What a reader has to know, a sentence or more each."""
    found = [
        "Means ± standard deviations over seeds. Differences are paired with "
        f"{report['baseline']}, seed by seed and user by user; {report['confidence']:.0%} "
        f"intervals over users ({report['resamples']:,} resamples, of means over seeds) and over "
        "seeds (Student's t); bold where all there are leave out zero. Sparse users have at most "
        "5 items of history. Training is a run's, with its validation and its memory.",
    ]
    where = {f"{run['device']}, threads: {run['threads']}" for run in report["runs"]}
    versions, machine = report["versions"], report["machine"]
    found.append(
        f"{len(report['runs'])} runs on {'; '.join(sorted(where)) or 'nothing yet'}; "
        f"{machine['cpu']}, {machine['cores']} cores; torch {versions['torch']}, adarec_fast "
        f"{versions['adarec_fast']}; {report['date']}."
    )
    for word in ("missing", "diverged"):
        if report[word]:
            what = "not finished" if word == "missing" else "diverged"
            found.append(f"{len(report[word])} runs {what}: a mean is of fewer seeds.")
    limited = sum(
        run["status"] == "finished" and run["epochs"] > 1 for run in report["runs"]
    )
    if limited:
        found.append(
            f"{limited} runs ended at their greatest number of epochs, not by early stopping."
        )
    return [*found, *report["notes"]]


def _title(report: Mapping[str, Any], data: str, part: str) -> str:
    about = report["data"][data]
    return (
        f"{data}, {_WORDS[part]}: {about['users']:,} users, {about['sparse_users']:,} of them "
        f"sparse, {about['items']:,} items"
    )


def _compared(line: Line, part: str, group: str) -> list[str]:
    cells = []
    for metric in METRICS:
        cells.append(_mean(line, part, group, metric))
        found = line.differences.get((part, group, metric))
        if found is None:
            cells += ["", "", ""]
            continue
        value, ends = _signed(found["difference"]), (found["over_users"], found["over_seeds"])
        sure = all(Interval(*end).excludes_zero for end in ends if end is not None)
        cells.append(f"**{value}**" if sure else value)
        cells += ["" if end is None else _interval(end) for end in ends]
    return cells


def _mean(line: Line, part: str, group: str, metric: str) -> str:
    mean, std = line.figure(part, group, metric)
    if mean is None:
        return "–"
    return f"{mean:.4f}" if std is None else f"{mean:.4f}±{std:.4f}"


def _seeds(line: Line) -> str:
    total = len(line.runs) + line.missing + line.diverged
    return f"{total}" if total == len(line.runs) else f"{len(line.runs)} of {total}"


def _epochs(line: Line) -> str:
    best, run = line.mean("best_epoch"), line.mean("epochs")
    return "–" if best is None or run is None else f"{best:.1f} of {run:.1f}"


def _hours(line: Line) -> str:
    if line.hours is None:
        return "–"
    minutes = 60 * line.hours
    return f"{minutes:.1f} min" if minutes < 120 else f"{line.hours:.1f} h"


def _count(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _interval(ends: Sequence[float]) -> str:
    return f"{ends[0]:+.4f} to {ends[1]:+.4f}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cut = [["---"] + ["--:"] * (len(header) - 1)]
    lines = ([cell.replace("|", "\\|") for cell in row] for row in [header, *cut, *rows])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
