"""Starts the phases, kills those that are over their time, and keeps what they wrote."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import record as records
from .plan import Phase, share

ROOT = Path(__file__).parents[2]
_TAIL = 25  # lines of a phase's output that a record keeps of a phase that failed
_END = 5.0  # seconds that a killed process has to be gone
_SHOWN = 12  # and that are printed


class Settings(NamedTuple):
    """What every phase is told, as JSON.

    Attributes:
        out: folder for files beside the record (a trace, a log).
        record: the result file so far, to read what earlier phases found.
        device: ``"cuda"``; tests have others.
        data: a file of interactions for the phase ``beauty``, or None.
    """

    out: str
    record: str
    device: str = "cuda"
    data: str | None = None


def run(
    phases: Sequence[Phase],
    budget: float,
    folder: Path,
    settings: Settings,
    *,
    command: str,
    merge: bool = False,
    environment: dict[str, str] | None = None,
    module: str = "bench.gpu.phase",
    started: float | None = None,
) -> records.Record:
    """Run phases one after the other; the record, which is also in ``folder``.

    Args:
        phases: in order.
        budget: seconds for all of them.
        folder: where the result file is.
        settings: for the phases; ``record`` is filled in here.
        command: as it was typed.
        merge: keep what a file of the same card and day has and this run does not measure again.
        environment: of the phases' processes.
        module: what is started; tests have one of their own.
        started: when the budget began, of ``time.monotonic``; None: now.
    """
    started = time.monotonic() if started is None else started
    record = records.new(command)
    path: Path | None = None
    for number, phase in enumerate(phases):
        left = budget - (time.monotonic() - started)
        limit = share(phase, phases[number + 1 :], left)
        if limit is None:
            records.add_phase(record, phase.name, {}, {"status": "no time left"})
        else:
            told = settings._replace(record=str(path or ""))
            found, about = _one(phase, limit, told, environment, module)
            records.add_phase(record, phase.name, found, about)
        previous, path = path, records.path_of(record, folder)
        if previous not in (None, path):
            previous.unlink(missing_ok=True)  # it had no name of a card yet
        records.write_json(path, _with_older(record, path, merge, previous == path))
    print_summary(record, time.monotonic() - started)
    if path is not None:
        print(f"results: {path}", flush=True)
    return record


_older: dict[Path, records.Record | None] = {}


def _with_older(
    record: records.Record, path: Path, merge: bool, ours: bool
) -> records.Record:
    """The record, joined with the file that was there before this run."""
    if not merge:
        return record
    if not ours:  # the first time that this run writes there
        try:
            _older[path] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            _older[path] = None
    older = _older.get(path)
    if older is None:
        return record
    try:
        return records.merged(older, record)
    except ValueError as reason:
        print(f"{path} is replaced, not merged: {reason}", flush=True)
        _older[path] = None
        return record


def _one(
    phase: Phase,
    limit: float,
    settings: Settings,
    environment: dict[str, str] | None,
    module: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a phase in a session of its own: what it wrote, and how it ended."""
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    result, log = out / f"{phase.name}.partial", out / "log.txt"
    result.unlink(missing_ok=True)
    print(f"--- {phase.name}: {phase.about} (at most {limit:.0f} s)", flush=True)
    began = time.monotonic()
    with log.open("ab") as output:
        start = output.tell()
        # A file, not a pipe: what the phase starts may outlive it and hold a pipe open.
        process = subprocess.Popen(
            [sys.executable, "-m", module, phase.name, str(result), f"{limit:.1f}",
             json.dumps(settings._asdict())],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=environment, start_new_session=True,
        )  # fmt: skip
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=limit)
        status = process.poll()
        _kill(process)
    words = {None: "killed: its time was over", 0: "done"}.get(status, f"failed ({status})")
    about: dict[str, Any] = {
        "status": words, "seconds": time.monotonic() - began, "limit": limit,
    }  # fmt: skip
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    if status != 0:
        about["output"] = lines[-_TAIL:]
    print("\n".join(lines[-_SHOWN:]), flush=True)
    print(f"    {phase.name}: {words}, {about['seconds']:.1f} s", flush=True)
    try:
        found = json.loads(result.read_text(encoding="utf-8"))
        result.unlink()
    except FileNotFoundError:
        found = {}
    return found, about


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the whole session of a phase, at once: what it wrote is in place already."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver that hangs holds it for ever
        process.wait(timeout=_END)


def print_summary(record: records.Record, seconds: float) -> None:
    """The last thing printed: a line a phase."""
    print(f"\n{record['machine'].get('gpu')}, {seconds:.0f} s in all")
    for name, phase in record["phases"].items():
        took = f"{phase['seconds']:6.1f} s" if "seconds" in phase else "       –"
        print(f"  {name:12s} {took}  {phase['status']:28s} {phase.get('summary', '')}")
    sys.stdout.flush()
