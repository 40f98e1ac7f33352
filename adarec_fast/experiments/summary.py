"""Means and standard deviations of a sweep's results over its seeds."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..training.checkpoint import read_json, write_atomically
from .definition import RESULT, Sweep, exclusive, run_name, without_seeds

SUMMARY_JSON, SUMMARY_CSV = "summary.json", "summary.csv"
PARTS = ("test", "test_sparse", "valid")
METRICS = ("HR@5", "NDCG@5", "HR@10", "NDCG@10", "HR@20", "NDCG@20")
TIMES = ("seconds_per_epoch", "milliseconds_per_user", "best_epoch")


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone.

    Attributes:
        values: what the group sets, by key.
        results: ``result.json`` of each finished run.
        diverged, missing: names of runs that diverged, and of those not finished.
    """

    values: dict[str, Any]
    results: tuple[dict[str, Any], ...]
    diverged: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def numbers(self, part: str, metric: str | None = None) -> list[float]:
        """A figure of every finished run: ``("test", "NDCG@20")`` or ``("best_epoch",)``.

        Runs that have no such figure (``test_sparse`` without sparse users) are left out.
        """
        found = [result.get(part) for result in self.results]
        if metric is not None:
            found = [None if part is None else part.get(metric) for part in found]
        return [float(number) for number in found if number is not None]

    def mean_std(self, part: str, metric: str | None = None) -> tuple[float | None, float | None]:
        """Mean, and sample standard deviation (over n - 1); None where there are too few runs."""
        return mean_std(self.numbers(part, metric))


def mean_std(numbers: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean (None of nothing) and sample standard deviation (None of fewer than two)."""
    if not numbers:
        return None, None
    return statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None


def summarise(
    folder: Path, combinations: Sequence[Mapping[str, Any]] | None = None
) -> list[Group]:
    """What is finished in a sweep's folder, in the order of its combinations.

    Args:
        folder: of the sweep.
        combinations: which of its combinations; all of them by default.

    Raises:
        SweepError: the folder holds no sweep.
        CheckpointError: a file does not parse.
    """
    groups: dict[str, Group] = {}
    for combination in Sweep.load(folder).combinations if combinations is None else combinations:
        values = without_seeds(combination)
        key, name = run_name(values), run_name(combination)
        path = folder / name / RESULT
        result = read_json(path) if path.exists() else None
        group = groups.get(key, Group(values, ()))
        if result is None:
            group = Group(values, group.results, group.diverged, (*group.missing, name))
        elif result["status"] == "diverged":
            group = Group(values, group.results, (*group.diverged, name), group.missing)
        else:
            group = Group(values, (*group.results, result), group.diverged, group.missing)
        groups[key] = group
    return list(groups.values())


def write_summary(folder: Path) -> list[Group]:
    """Write ``summary.json`` and ``summary.csv``, and return what is in them."""
    # Read and written under one lock: what a second process adds meanwhile is not lost.
    with exclusive(folder):
        groups = summarise(folder)
        rows = [row(group) for group in groups]
        write_atomically(folder / SUMMARY_JSON, json.dumps({"groups": rows}, indent=1) + "\n")
        write_atomically(folder / SUMMARY_CSV, to_csv(rows))
    return groups


def row(group: Group) -> dict[str, Any]:
    """A group as one flat row: its values, the number of runs, ``test/NDCG@20 mean``, ..."""
    flat: dict[str, Any] = {
        **group.values,
        "runs": len(group.results),
        "diverged": len(group.diverged),
        "missing": len(group.missing),
    }
    figures: list[tuple[str, str | None]] = [(part, m) for part in PARTS for m in METRICS]
    for part, metric in (*figures, *((time, None) for time in TIMES)):
        mean, std = group.mean_std(part, metric)
        name = part if metric is None else f"{part}/{metric}"
        flat[f"{name} mean"], flat[f"{name} std"] = mean, std
    return flat


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of any keys as CSV text; None and NaN are left empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for values in rows:
        writer.writerow({name: _cell(value) for name, value in values.items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
