"""Whether a line of ours gives the paper's figures again, within what runs differ by anyway."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from . import paper
from .independent import INDEPENDENT
from .tables import Row, Table

SEEDS = 3
RULE = (
    "Within noise, of the means of all columns: reproduced: HR@20 and NDCG@20 differ by at most 4% "
    "from the paper's, HR@5 and NDCG@5 by 6% (Yelp: all by 8%); plausible: between the paper's and "
    "what others report for the system on the same file, two standard errors allowed; else no. "
    f"With fewer than {SEEDS} seeds the number of them stands behind it."
)
_TOLERANCE = {"HR@5": 0.06, "NDCG@5": 0.06, "HR@20": 0.04, "NDCG@20": 0.04}
_ON_YELP = 0.08
_ALLOWED_ERRORS = 2


def verdict(
    table: Table, row: Row, data_set: str | None, results: Sequence[Mapping[str, Any]]
) -> str | None:
    """The judgement of a line; None where there is nothing to judge.

    Args:
        table: whose line it is.
        row: the line.
        data_set: the paper's name of the data; None if it is none of the paper's.
        results: ``result.json`` of each finished run of the line.

    Returns:
        ``"reproduced"``, ``"plausible"`` or ``"no: above"`` (``below``, or ``mixed`` where columns
        disagree), with the number of seeds behind it where these are few and the number of runs
        that early stopping did not end; or why the figures cannot be compared.
    """
    printed = table.printed.get(data_set or "", {}).get(row.printed or "")
    if not results or printed is None or not set(table.columns) <= set(paper.METRICS):
        return None
    if row.system.published is None:
        return "no comparable figure"
    if row.loss != row.system.published:
        return "not comparable: another loss"
    about = paper.DATA_SETS[data_set or ""]
    sizes = {(result["data"]["users"], result["data"]["items"]) for result in results}
    if sizes != {(about.users, about.items)}:
        return "not comparable: other data"
    ours = [
        statistics.fmean(result[row.part][column] for result in results)
        for column in table.columns
    ]
    found = _judge(table.columns, ours, printed, _reported(row, data_set or ""), data_set or "")
    count = len(results)
    told = [] if count >= SEEDS else [f"{count} seed{'' if count == 1 else 's'}"]
    limited = sum(result["status"] == "finished" for result in results)
    if limited:
        told.append("ended by --epochs" if limited == count else f"{limited} by --epochs")
    return f"{found} ({', '.join(told)})" if told else found


def standard_error(mean: float, users: int) -> float:
    """Of a mean over users: exact for a hit rate, an upper bound for NDCG, whose terms are <= 1."""
    return math.sqrt(mean * (1 - mean) / users)


def _judge(
    columns: Sequence[str],
    ours: Sequence[float],
    printed: Sequence[float],
    reported: Mapping[str, Sequence[float]],
    data_set: str,
) -> str:
    users, sides, near = paper.DATA_SETS[data_set].users, set(), True
    for column, mean, figure in zip(columns, ours, printed, strict=True):
        tolerance = _ON_YELP if data_set == "Yelp" else _TOLERANCE[column]
        near &= abs(mean - figure) <= tolerance * figure
        known = (figure, *reported.get(column, ()))
        margins = [(value, _ALLOWED_ERRORS * standard_error(value, users)) for value in known]
        if mean < min(value - margin for value, margin in margins):
            sides.add("below")
        elif mean > max(value + margin for value, margin in margins):
            sides.add("above")
    if near:
        return "reproduced"
    if not sides:
        return "plausible"
    return f"no: {sides.pop() if len(sides) == 1 else 'mixed'}"


def _reported(row: Row, data_set: str) -> dict[str, list[float]]:
    """Independent figures by column; of cut histories there are none."""
    if "truncate" in (row.values or {}):
        return {}
    found: dict[str, list[float]] = {}
    for one in INDEPENDENT[data_set].get(row.printed or "", ()):
        for column, figure in zip(paper.METRICS, one.figures, strict=True):
            if figure is not None:
                found.setdefault(column, []).append(figure)
    return found
