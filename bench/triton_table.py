"""The table of what Triton kernels cost on chip: a set of rows for each triton that compiled them.

A row's name is ``op/kernel[what it is specialised on]/D/precision/target``. In the file a row is
one line, its figures in the order of ``columns``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .triton_model import PEAKS, floors

TABLE = Path(__file__).parent / "results" / "triton-resources.json"
COLUMNS = (
    "registers", "spill_instructions", "stack_bytes", "shared_bytes", "warps",
    "blocks_per_multiprocessor", "occupancy_percent", "source",
)  # fmt: skip
# What a code object for AMD does not say.
_NOT_FOR_AMD = ("blocks_per_multiprocessor", "occupancy_percent")
SHARED_LIMIT_SM86 = 99 * 1024
# Bytes and instructions that must not grow; occupancy must not fall.
COSTS = ("stack_bytes", "spill_instructions", "shared_bytes")

Row = dict[str, Any]
Rows = dict[str, Row]


def read(path: Path = TABLE) -> dict[str, Rows]:
    """Rows by name, by the version of triton that compiled them."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    columns = document["columns"]
    return {
        triton: {
            name: {c: v for c, v in zip(columns, row, strict=True) if v is not None}
            for name, row in rows.items()
        }
        for triton, rows in document["kernels"].items()
    }


def replace(triton: str, torch: str, rows: Rows, path: Path = TABLE) -> None:
    """Put ``rows`` in the place of all that the table has of one triton; others keep theirs."""
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kernels = {
        **{other: [list(named) for named in known.items()]
           for other, known in document.get("kernels", {}).items()},
        triton: [[name, [row.get(c) for c in COLUMNS]] for name, row in sorted(rows.items())],
    }  # fmt: skip
    versions = {**document.get("versions", {}), triton: {"torch": torch}}
    sets = []
    for version in sorted(kernels):
        lines = [f"   {json.dumps(name)}: {json.dumps(row)}" for name, row in kernels[version]]
        sets.append(f"  {json.dumps(version)}: {{\n" + ",\n".join(lines) + "\n  }")
    parts = {
        "command": json.dumps("python -m bench.triton_resources"),
        "versions": json.dumps(versions, sort_keys=True),
        "columns": json.dumps(COLUMNS),
        "kernels": "{\n" + ",\n".join(sets) + "\n }",
        "model": json.dumps({"unit": "microseconds", "peaks": PEAKS, "floors": floors()}),
    }
    text = ",\n".join(f" {json.dumps(name)}: {part}" for name, part in parts.items())
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("{\n" + text + "\n}\n", encoding="utf-8")
    os.replace(partial, path)


def limits(name: str, row: Row) -> list[str]:
    """What of a row breaks the limits of sm_86, the tightest."""
    found = []
    if name.endswith("/sm_86"):
        if row["stack_bytes"] or row["spill_instructions"]:
            found.append(f"{name} spills: {row}")
        if row["shared_bytes"] > SHARED_LIMIT_SM86:
            found.append(f"{name} asks for {row['shared_bytes']} bytes of shared memory")
    return found


def complaints(rows: Rows, known_rows: Rows | None) -> list[str]:
    """What breaks limits, is missing among known rows, or is worse than they say; None: unknown."""
    found = []
    for name, row in rows.items():
        found += limits(name, row)
        if known_rows is None:
            continue
        if name not in known_rows:
            found.append(f"{name} is not in the table; write it with --stale")
            continue
        known = known_rows[name]
        for cost in COSTS:
            if row[cost] > known[cost]:
                found.append(f"{name}: {cost} {row[cost]}, {known[cost]} in the table")
        occupancy = "blocks_per_multiprocessor"
        if occupancy in row and row[occupancy] < known[occupancy]:
            found.append(f"{name}: fewer blocks a multiprocessor than in the table: {row}")
    return found


def looked_up(
    sources: Mapping[str, str], table: Mapping[str, Rows], tritons: Iterable[str]
) -> list[str]:
    """The same without compiling: rows that break limits, are missing, or are of other sources.

    Args:
        sources: fingerprints of what is launched today, by row.
        table: as ``read`` gives it.
        tritons: whose rows to look at.
    """
    found = []
    for triton in tritons:
        rows = table[triton]
        found += [
            f"triton {triton}: {line}"
            for name in sources.keys() & rows.keys()
            for line in limits(name, rows[name])
        ]
        stale = [n for n, source in sources.items() if rows.get(n, {}).get("source") != source]
        if stale:
            found.append(
                f"triton {triton}: {len(stale)} rows are missing or of other source code, "
                f"{stale[0]} the first; run python -m bench.triton_resources --stale where "
                f"triton {triton} is installed"
            )
    return sorted(found)
