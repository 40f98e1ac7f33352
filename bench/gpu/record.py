"""The result file: it grows after every phase, and by every run of a day on the same card.

A file is ``bench/results/<gpu>-<date>.json``, in the form of :mod:`bench.records`, with a mapping
``phases`` beside its rows. Standard library alone: see :mod:`bench.gpu`.
"""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from pathlib import Path
from typing import Any

KIND = "adarec_fast benchmarks"  # as in bench.records, which imports torch
NO_PEAKS = {"gflops": float("nan"), "gbps": float("nan")}
_ROW = ("subject", "form", "workload", "hidden_size", "direction", "variant", "precision")
Record = dict[str, Any]


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all; floats to five digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(_rounded(value), file, indent=1)
            file.write("\n")
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        # JSON has no NaN, and readers of other languages stop at Python's.
        return float(f"{value:.5g}") if value - value == 0 else None
    return value


def new(command: str) -> Record:
    """A record before its first phase; ``environment`` gives it machine, versions and peaks."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return {
        "kind": KIND, "device": "cuda", "slug": "cuda-unknown", "date": now, "command": command,
        "machine": {"gpu": "unknown", "cpu": "unknown", "cores": os.cpu_count()},
        "versions": {"torch": "unknown"}, "peaks": dict(NO_PEAKS), "rows": [], "phases": {},
    }  # fmt: skip


def path_of(record: Record, folder: Path) -> Path:
    """Where it is written."""
    return folder / f"{record['slug']}-{record['date'][:10]}.json"


def add_phase(record: Record, name: str, found: dict[str, Any], about: dict[str, Any]) -> None:
    """Take up what a phase wrote, and how it ended.

    ``found`` may hold ``rows`` (measurements, which replace older ones of the same thing), the
    parts of the record that ``environment`` gives, and anything else, which goes under
    ``phases``.
    """
    found = dict(found)
    for key in ("machine", "versions", "peaks", "slug"):
        if key in found:
            record[key] = found.pop(key)
    rows = found.pop("rows", [])
    again = {_name(row) for row in rows}
    record["rows"] = [row for row in record["rows"] if _name(row) not in again] + rows
    record["phases"][name] = {**about, **found}


def _name(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(part) for part in _ROW)


def merged(old: Record, record: Record) -> Record:
    """A record with what an earlier one of the same card and day has and it has not.

    Raises:
        ValueError: of another card or of other versions.
    """
    for part, name in (("machine", "gpu"), ("versions", "torch"), ("versions", "triton")):
        ours, theirs = record[part].get(name), old.get(part, {}).get(name)
        if ours != theirs:
            raise ValueError(f"it is of {name} {theirs}, this run of {ours}")
    result = {**record, "command": f"{old['command']}; {record['command']}"}
    result["phases"], result["rows"] = dict(old.get("phases", {})), list(old["rows"])
    rows = {"rows": record["rows"]}
    add_phase(result, "", rows, {})
    del result["phases"][""]
    result["phases"].update(record["phases"])
    return result
