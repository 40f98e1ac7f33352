"""Rebuild the README's tables from the committed results: ``python -m bench.report [--check]``.

A table stands between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``. NAME is one of
``targets``, ``step``, ``ops``, ``phases`` with ``-cpu`` or ``-cuda`` behind it, and shows the
newest result file of that device type; of a GPU, whose run may still be to come, a line that says
so. ``predicted-train`` and ``predicted-large`` are of ``predicted.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import records, summary
from .harness import COMPILED, EAGER, PACKED
from .predict import SAVED, table

README = Path(__file__).parents[1] / "README.md"
_BLOCK = re.compile(r"(<!-- bench:([\w-]+) -->\n)(.*?)(<!-- /bench:\2 -->)", re.DOTALL)
_MARKER = re.compile(r"<!-- /?bench:([\w-]+) -->")
_BASELINES = (EAGER, COMPILED, PACKED)
Record = dict[str, Any]


class ReportError(ValueError):
    """A marker that cannot be filled; the message names it."""


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _source(record: Record) -> str:
    machine, versions = record["machine"], record["versions"]
    gpu = f"{machine['gpu']}, " if "gpu" in machine else ""
    return (
        f"\n{gpu}{machine['cpu']}, {machine['cores']} cores; torch {versions['torch']}; "
        f"{record['date']}; `{record['command']}`; medians.\n"
    )


def targets(record: Record) -> str:
    """Every target that was measured, and whether it is met."""
    rows = []
    for comparison in summary.comparisons(record["rows"]):
        for judged in summary.judge(comparison, record["device"]):
            reached, verdict = str(judged).rsplit(": ", 1)
            rows.append([comparison.name, reached, verdict])
    return _table(["what", "reached of target", ""], rows) + _source(record)


def _times(record: Record, wanted: Callable[[str], bool]) -> str:
    rows = []
    for comparison in summary.comparisons(record["rows"]):
        ours = comparison.ours
        if ours is None or not wanted(ours["subject"]):
            continue
        ratios = (comparison.ratio(variant) for variant in _BASELINES)
        rows.append([
            comparison.name,
            f"{summary.milliseconds(ours)} ({ours['variant']})",
            *("–" if ratio is None else f"{ratio:.1f}x" for ratio in ratios),
            "–" if ours.get("share_of_roofline") is None else f"{ours['share_of_roofline']:.0%}",
        ])  # fmt: skip
    header = ["what", "ours", *(f"{name}, over ours" for name in _BASELINES), "of the roofline"]
    return _table(header, rows) + _source(record)


def phases(record: Record) -> str:
    """How each phase of ``python -m bench.gpu`` ended, and what it says of itself."""
    rows = [
        [name, phase["status"], f"{phase['seconds']:.0f} s" if "seconds" in phase else "–",
         phase.get("summary") or ""]
        for name, phase in record.get("phases", {}).items()
    ]  # fmt: skip
    return _table(["phase", "ended", "took", ""], rows) + _source(record)


_WHOLE = ("training step", "recommend", "Beauty epoch")
_NOT_YET = (
    "Nothing has been measured on a GPU yet; `python -m bench.gpu` on a machine with a card makes "
    "the file that this table is built from.\n"
)
TABLES: dict[str, Callable[[Record], str]] = {
    "targets": targets,
    "step": lambda record: _times(record, lambda subject: subject in _WHOLE),
    "ops": lambda record: _times(record, lambda subject: subject not in _WHOLE),
    "phases": phases,
}


def predicted(workload: str) -> str:
    """What the ops of a step should take on GPUs, before anybody has measured it.

    Raises:
        ReportError: no such workload.
    """
    document = json.loads(SAVED.read_text(encoding="utf-8"))
    known = document["predicted"]["64"]
    if workload not in known:
        raise ReportError(f"bench:predicted-{workload} is unknown; choose from {', '.join(known)}")
    return _table(*table(known[workload])) + f"\nus, forward + backward; `{document['command']}`.\n"


def build(name: str, folder: Path) -> str:
    """The table of a marker.

    Raises:
        ReportError: an unknown name, or no result of the CPU.
    """
    kind, _, device = name.rpartition("-")
    if kind == "predicted":
        return predicted(device)
    if kind not in TABLES or device not in summary.TARGETS:
        known = ", ".join(f"{kind}-{device}" for kind in TABLES for device in summary.TARGETS)
        raise ReportError(f"bench:{name} is unknown; choose from {known}")
    record = records.newest(device, folder)
    if record is None and device == "cuda":
        return _NOT_YET
    if record is None:
        raise ReportError(f"bench:{name}: {folder} has no result of a {device} run")
    return TABLES[kind](record)


def run(readme: Path, folder: Path, *, check: bool) -> int:
    """Rebuild, or with ``check`` only compare; the exit status: 1 if the README differs.

    Raises:
        ReportError: a marker that cannot be filled, or that has no end.
    """
    text = readme.read_text(encoding="utf-8")
    marked = {match.group(1) for match in _MARKER.finditer(text)}
    paired = {match.group(2) for match in _BLOCK.finditer(text)}
    if not marked:
        print(f"{readme.name}: no bench markers, nothing to rebuild")
        return 0
    if marked != paired:
        names = ", ".join(sorted(marked - paired))
        raise ReportError(f"{readme.name}: bench:{names}: a beginning or an end is missing")
    rebuilt = _BLOCK.sub(lambda m: m[1] + build(m[2], folder) + m[4], text)
    if rebuilt == text:
        print(f"{readme.name}: {len(paired)} tables are those of the results")
        return 0
    if check:
        print(f"{readme.name} differs from the results; run python -m bench.report")
        return 1
    handle, temporary = tempfile.mkstemp(dir=readme.parent, prefix=f".{readme.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(rebuilt)
    os.chmod(temporary, readme.stat().st_mode & 0o777)
    os.replace(temporary, readme)
    print(f"{readme.name}: {len(paired)} tables rebuilt")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it differs")
    options = parser.parse_args(arguments)
    if not README.exists():
        print("there is no README.md, nothing to rebuild")
        return 0
    try:
        return run(README, records.FOLDER, check=options.check)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
