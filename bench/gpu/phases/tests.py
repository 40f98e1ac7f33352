"""The tests marked ``gpu``, in parallel, each with a time limit, the most telling first."""

from __future__ import annotations

import collections
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from ..phase import Results

_EACH = 60  # seconds; a kernel that hangs must not take the rest with it
_WORKERS = 8  # processes share the card; more would wait for its memory and for each other


def run(results: Results) -> None:
    """Counts by outcome, and the end of every failure."""
    outcomes = Path(results.settings.out) / "tests.jsonl"
    outcomes.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "pytest", "tests", "-m", "gpu", "-q", "-p", "no:cacheprovider",
        "-p", "bench.gpu.outcomes", "--outcomes", str(outcomes), "--tb=short",
    ]  # fmt: skip
    if importlib.util.find_spec("xdist"):
        workers = min(_WORKERS, os.cpu_count() or 1)
        command += ["-n", str(workers), "--dist", "load", "--maxschedchunk", "4"]
    if importlib.util.find_spec("pytest_timeout"):
        command += ["--timeout", str(_EACH), "--timeout-method", "thread"]
    process = subprocess.Popen(command)
    while process.poll() is None:
        time.sleep(2)
        _read(results, outcomes)
    _read(results, outcomes)
    results.put(exit_status=process.returncode)


def _read(results: Results, outcomes: Path) -> None:
    if not outcomes.exists():
        return
    rows = []
    for line in outcomes.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the line that is being written
            break
    counts = collections.Counter(row["outcome"] for row in rows)
    results.put(
        counts=dict(counts), failures=[row for row in rows if row["outcome"] == "failed"],
        slowest=sorted(rows, key=lambda row: -row["seconds"])[:10],
        summary=", ".join(f"{number} {name}" for name, number in counts.most_common()),
    )  # fmt: skip
