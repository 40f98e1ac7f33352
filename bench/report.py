"""Rebuild the pages' tables and the picture of them: ``python -m bench.report [--check]``.

A table stands between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->`` in README.md,
bench/README.md or a page of adarec_fast/docs. NAME is one of

    targets, step, ops, phases          with ``-cpu`` or ``-cuda`` behind it: the newest record of
                                        that device type, of CPUs one table for each instruction
                                        set; of a GPU, whose run may still be to come, a line that
                                        says so
    speed-cpu                           the whole model, instruction sets side by side
    predicted-train, -large, -beside    of ``predicted.json``
    quality, serving, ...               of the newest result of its kind (:mod:`bench.tables`)

``adarec_fast/docs/speed.svg`` is drawn of the newest record of a CPU (:mod:`bench.picture`).
A CPU's record that does not say instructions, peaks and the caches' state is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import picture, records, summary, tables
from .harness import COMPILED, EAGER, PACKED
from .predict import SAVED, table
from .tables import markdown

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "adarec_fast" / "docs"
_BLOCK = re.compile(r"(<!-- bench:([\w-]+) -->\n)(.*?)(<!-- /bench:\2 -->)", re.DOTALL)
_MARKER = re.compile(r"<!-- /?bench:([\w-]+) -->")
_BASELINES = (EAGER, COMPILED, PACKED)
Record = dict[str, Any]


class ReportError(ValueError):
    """A marker that cannot be filled; the message names it."""


def pages() -> Iterator[Path]:
    """The pages that have a table."""
    for page in (ROOT / "README.md", ROOT / "bench" / "README.md", *sorted(DOCS.glob("*.md"))):
        if page.exists() and _MARKER.search(page.read_text(encoding="utf-8")):
            yield page


def _source(record: Record) -> str:
    machine, versions = record["machine"], record["versions"]
    gpu = f"{machine['gpu']}, " if "gpu" in machine else ""
    return (
        f"\n{gpu}{machine['cpu']}, {machine['cores']} cores{_conditions(record)}; torch "
        f"{versions['torch']}; {record['date']}; `{record['command']}`; medians.\n"
    )


def _conditions(record: Record) -> str:
    """What a CPU's times depend on."""
    instructions, peaks = record["machine"].get("instructions"), record["peaks"]
    if instructions is None:
        return ""
    return (
        f", {instructions}, peaks {peaks['gflops']:.0f} GFLOP/s and {peaks['gbps']:.0f} GB/s, "
        f"caches {record['caches']}"
    )


def targets(record: Record) -> str:
    """Every target that was measured, and whether it is met."""
    rows = []
    for comparison in summary.comparisons(record["rows"]):
        for judged in summary.judge(comparison, record["device"]):
            reached, verdict = str(judged).rsplit(": ", 1)
            rows.append([comparison.name, reached, verdict])
    return markdown(["what", "reached of target", ""], rows) + _source(record)


def _times(record: Record, wanted: Callable[[str], bool], below: Callable[[Record], str]) -> str:
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
    return markdown(header, rows) + below(record)


def speed(found: list[Record]) -> str:
    """The whole model's times, of each instruction set side by side, with the files' names."""
    cells: dict[str, dict[int, list[str]]] = {}
    for place, record in enumerate(found):
        for comparison in summary.comparisons(record["rows"]):
            ours = comparison.ours
            if ours is None or ours["subject"] not in _WHOLE:
                continue
            ratio, share = comparison.ratio(PACKED), ours.get("share_of_roofline")
            cells.setdefault(comparison.name, {})[place] = [
                summary.milliseconds(ours),
                "–" if ratio is None else f"{ratio:.1f}x",
                "–" if share is None else f"{share:.0%}",
            ]
    header = ["what"]
    for record in found:
        name = record["machine"].get("instructions", "")
        header += [f"{name}: ours", "packed eager, over ours", "of the roofline"]
    rows = [
        [name, *(cell for place in range(len(found)) for cell in of.get(place, ["–"] * 3))]
        for name, of in cells.items()
    ]
    below = "".join(
        tables.source(record, f"bench/results/{records.file_name(record)}").replace(
            " cores;", f" cores{_conditions(record)};"
        ) for record in found
    )  # fmt: skip
    return markdown(header, rows) + below


def phases(record: Record) -> str:
    """How each phase of ``python -m bench.gpu`` ended, and what it says of itself."""
    rows = [
        [name, phase["status"], f"{phase['seconds']:.0f} s" if "seconds" in phase else "–",
         phase.get("summary") or ""]
        for name, phase in record.get("phases", {}).items()
    ]  # fmt: skip
    return markdown(["phase", "ended", "took", ""], rows) + _source(record)


_WHOLE = ("training step", "recommend", "Beauty epoch")
_NOT_YET = (
    "Nothing has been measured on a GPU yet; `python -m bench.gpu` on a machine with a card makes "
    "the file that this table is built from.\n"
)
TABLES: dict[str, Callable[[Record], str]] = {
    "targets": targets,
    "step": lambda record: _times(record, lambda subject: subject in _WHOLE, _source),
    "ops": lambda record: _times(record, lambda subject: subject not in _WHOLE, _source),
    "phases": phases,
}


def predicted(workload: str) -> str:
    """What the ops of a step should take on GPUs, before anybody has measured it.

    Of the workload ``beside``: what is in no step, for 8,192 histories.

    Raises:
        ReportError: no such workload.
    """
    document = json.loads(SAVED.read_text(encoding="utf-8"))
    known = document["predicted"]["64"]
    if workload not in (*known, "beside"):
        words = ", ".join((*known, "beside"))
        raise ReportError(f"bench:predicted-{workload} is unknown; choose from {words}")
    below = f"\nus, forward + backward; `{document['command']}`.\n"
    if workload == "beside":
        return markdown(*table(known["large"], "beside")) + below
    return markdown(*table(known[workload])) + below


def result(name: str, folder: Path) -> str:
    """The table of the newest result file of a kind.

    Raises:
        ReportError: there is none.
    """
    beginning, make = tables.TABLES[name]
    found = {
        path: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob(f"{beginning}*.json"))
    }
    if not found:
        raise ReportError(f"bench:{name}: {folder} has no {beginning}*.json")
    newest = max(found, key=lambda path: found[path]["date"])
    return make(found[newest], f"bench/results/{newest.name}")


def build(name: str, folder: Path) -> str:
    """The table of a marker.

    Raises:
        ReportError: an unknown name, or no result of the CPU.
    """
    if name in tables.TABLES:
        return result(name, folder)
    kind, _, device = name.rpartition("-")
    if kind == "predicted":
        return predicted(device)
    if name == "speed-cpu":
        return speed(_of_cpus(name, folder))
    if kind not in TABLES or device not in summary.TARGETS:
        known = ", ".join([f"{kind}-{device}" for kind in TABLES for device in summary.TARGETS]
                          + ["speed-cpu", "predicted-train", "predicted-large", "predicted-beside",
                             *tables.TABLES])  # fmt: skip
        raise ReportError(f"bench:{name} is unknown; choose from {known}")
    if device == "cpu":
        return "\n".join(TABLES[kind](record) for record in _of_cpus(name, folder))
    record = records.newest(device, folder)
    return _NOT_YET if record is None else TABLES[kind](record)


def _of_cpus(name: str, folder: Path) -> list[Record]:
    found = records.of_each_instruction_set(folder)
    if not found:
        raise ReportError(f"bench:{name}: {folder} has no result of a cpu run")
    return found


def run(readme: Path, folder: Path, *, check: bool) -> int:
    """Rebuild, or with ``check`` only compare; the exit status: 1 if the page differs.

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
    _replace(readme, rebuilt)
    print(f"{readme.name}: {len(paired)} tables rebuilt")
    return 0


def draw(path: Path, folder: Path, *, check: bool) -> int:
    """Draw the picture again, or with ``check`` only compare; 1 if it differs.

    Raises:
        ReportError: no result of the CPU.
    """
    record = records.newest("cpu", folder)
    if record is None:
        raise ReportError(f"{path.name}: {folder} has no result of a cpu run")
    drawn = picture.draw(record)
    if path.exists() and path.read_text(encoding="utf-8") == drawn:
        return 0
    if check:
        print(f"{path.name} differs from the results; run python -m bench.report")
        return 1
    _replace(path, drawn)
    print(f"{path.name} drawn")
    return 0


def _replace(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o644)
    os.replace(temporary, path)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it differs")
    options = parser.parse_args(arguments)
    try:
        done = [run(page, records.FOLDER, check=options.check) for page in pages()]
        done.append(draw(DOCS / "speed.svg", records.FOLDER, check=options.check))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return max(done)


if __name__ == "__main__":
    sys.exit(main())
