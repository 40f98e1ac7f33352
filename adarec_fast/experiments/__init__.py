"""Experiments of many runs: sweeps that can be resumed; comparisons and the paper's tables."""

from __future__ import annotations

from .definition import Sweep, SweepError, parse_grid
from .runner import RunOutcome, run_sweep
from .summary import Group, summarise, write_summary

__all__ = [
    "Group",
    "RunOutcome",
    "Sweep",
    "SweepError",
    "parse_grid",
    "run_sweep",
    "summarise",
    "write_summary",
]
