"""Result files: ``bench/results/<machine>-<date>.json``, one a run."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

from .cell import Session, shares
from .machine import describe, slug

FOLDER = Path(__file__).parent / "results"
KIND = "adarec_fast benchmarks"
CACHES = "hot, but where a row's form says flushed"


def now() -> str:
    """The time of a record."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def make(session: Session, command: list[str]) -> dict[str, Any]:
    """A run's record: machine, versions, command, peaks and one row a cell.

    The command is given as it was typed, with the current folder in place of its full name.
    """
    here = str(Path.cwd())
    words = [word.replace(here + os.sep, "").replace(here, ".") for word in command]
    return {
        "kind": KIND,
        "device": session.device,
        "slug": slug(session.device),
        "date": now(),
        "command": shlex.join(words),
        **describe(session.device),
        "peaks": session.peaks,
        "caches": CACHES,
        "rows": session.rows,
    }


def file_name(record: dict[str, Any]) -> str:
    """What a record's file is called."""
    return f"{record['slug']}-{record['date'][:10]}.json"


def _path(record: dict[str, Any], folder: Path) -> Path:
    return folder / file_name(record)


def joined(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A run's record with those comparisons of an earlier run that it did not make again.

    The earlier run must be of the same day, machine and versions; its command stands before. A
    machine that others share shows its peak at times: the higher one of both holds for all rows.
    """
    path = _path(record, folder)
    if not path.exists():
        return record
    old = json.loads(path.read_text(encoding="utf-8"))
    same = ("kind", "device", "versions")
    cores = (old.get("machine", {}).get(name) for name in ("cpu", "cores"))
    if any(old.get(name) != record[name] for name in same) or list(cores) != [
        record["machine"][name] for name in ("cpu", "cores")
    ]:
        return record

    def comparison(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(
            row[name] for name in ("subject", "form", "workload", "hidden_size", "direction")
        )

    again = {comparison(row) for row in record["rows"]}
    kept = [row for row in old["rows"] if comparison(row) not in again]
    if not kept:
        return record
    peaks = {
        name: max(peak, old["peaks"].get(name, peak)) for name, peak in record["peaks"].items()
    }
    rows = [
        {**row, **shares(row["gflops"], row["gbps"], peaks)} if "gflops" in row else row
        for row in [*kept, *record["rows"]]
    ]
    return {
        **record, "command": f"{old['command']}; {record['command']}", "peaks": peaks,
        "rows": rows,
    }  # fmt: skip


def write(record: dict[str, Any], folder: Path) -> Path:
    """Write a record under its name, whole or not at all; a second one of a day replaces the
    first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(record, folder)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(rounded(record), file, indent=1)
            file.write("\n")
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def rounded(value: Any) -> Any:
    """Floats to five significant digits: no more is measured."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def newest(device: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """The latest record of a device type, or None; other JSON files are passed over.

    Raises:
        ValueError: a file that does not parse.
    """
    return max(_all(device, folder), key=lambda record: record["date"], default=None)


def of_each_instruction_set(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The latest record of a CPU with each set of vector instructions, sets by name.

    Raises:
        ValueError: a file that does not parse, or a record that does not say what its figures
            depend on: instructions, peaks, the state of the caches.
    """
    found: dict[str, dict[str, Any]] = {}
    for record in sorted(_all("cpu", folder), key=lambda record: record["date"]):
        said = {**record, "instructions": record["machine"].get("instructions")}
        for what in ("instructions", "peaks", "caches"):
            if not said.get(what):
                raise ValueError(
                    f"{file_name(record)}: no {what!r}: a time means nothing without what it was "
                    "measured with"
                )
        found[said["instructions"]] = record
    return [found[name] for name in sorted(found, reverse=True)]


def _all(device: str, folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not valid JSON: {error}") from None
        wanted = isinstance(record, dict) and record.get("kind") == KIND
        if wanted and record["device"] == device:
            found.append(record)
    return found
