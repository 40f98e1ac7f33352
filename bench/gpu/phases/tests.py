"""The tests marked ``gpu``, in parallel, each with a time limit, the most telling first."""

from __future__ import annotations

import collections
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from ..phase import Results

ROOT = Path(__file__).parents[3]
# How a test comes to be marked gpu: by the marker, or by the backends of an op's suite.
_MARKED = re.compile(r"mark\.gpu|OpSuite|backends_for")
_EACH = 60  # seconds; a kernel that hangs must not take the rest with it
_WORKERS = 8  # processes share the card; more would wait for its memory and for each other


def run(results: Results) -> None:
    """Counts by outcome, and the end of every failure."""
    outcomes = Path(results.settings.out) / "tests.jsonl"
    outcomes.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "pytest", *files(), "-m", "gpu", "-q", "-p", "no:cacheprovider",
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


def files() -> list[str]:
    """Files with tests marked ``gpu``, from the root of the checkout.

    The others take a worker seconds to import, and some need packages that no bare machine has:
    one that cannot be imported would end the phase before its first test.
    """
    found = (path for path in (ROOT / "tests").rglob("test_*.py")
             if _MARKED.search(path.read_text(encoding="utf-8")))  # fmt: skip
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


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
