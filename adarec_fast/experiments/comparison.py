"""A comparison of arms: every finished run as a row, and what differs from the baseline.

::

    compare.json               one row a run, differences with intervals, machine and versions
    compare-ranks.safetensors  DATA/PART: uint16 [runs, users], the ranks that intervals are made
                               of, in the order of the rows of that data set; DATA/sparse: bool
                               [users]. Two bytes a run, user and part; it may be left out
    compare.md compare.csv     the tables
    runs/                      the sweep

The table can be made again from the first file alone. With the second, intervals are computed
anew, against another baseline too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from ..config import ConfigError, file_names
from ..models.pretrained import CheckpointError, read_weights
from ..ranking.comparison import CONFIDENCE, METRICS, RESAMPLES, Difference, compare
from ..ranking.ranks import user_metrics
from ..training import load_run
from ..training.checkpoint import read_json, write_atomically
from ..training.run_folder import describe_environment, fingerprint
from .arms import Arms
from .definition import RESULT, run_name
from .result import PARTS, measure, plain_difference, read_ranks, sparse_masks, write_ranks

COMPARISON = "compare.json"
KIND, _FORMAT = "adarec_fast comparison", 1
GROUPS = ("all", "sparse")
_MOST = 2**16 - 1  # of uint16; a rank that far down is a miss, wherever it is
_EXACT = 1e-9


class Comparison(NamedTuple):
    """What ``compare.json`` holds, and the ranks beside it.

    Attributes:
        report: JSON-able.
        ranks: tensors by name; empty where they were left out.
    """

    report: dict[str, Any]
    ranks: dict[str, Tensor]


def collect(
    arms: Arms, data: Sequence[Path], seeds: Sequence[int], runs: Path, command: str
) -> Comparison:
    """Read what is finished in a sweep's folder.

    Args:
        arms: what was run.
        data: files, known by their names without suffix.
        seeds: seeds of each.
        runs: the sweep's folder.
        command: how the report is made again, for its reader.

    Raises:
        ConfigError: two files have one name.
        CheckpointError: a file of a run is damaged.
    """
    found, tensors = _finished(arms, data, seeds, runs)
    here = describe_environment(torch.device("cpu"), ())
    report = {
        "kind": KIND,
        "format": _FORMAT,
        "date": here["time"],
        "command": command,
        "machine": {"cpu": here["cpu"], "cores": _cores(), "threads": here["threads"]},
        "versions": {n: here[n] for n in ("adarec_fast", "python", "torch", "numpy")},
        "commit": here["commit"],
        "baseline": arms.baseline,
        "confidence": CONFIDENCE,
        "notes": list(arms.notes),
        "shared": {s: arms.shared.section(s) for s in ("data", "model", "train")},
        "arms": arms.arms,
        "seeds": list(seeds),
        **found,
    }  # fmt: skip
    return against(Comparison(report, tensors), arms.baseline)


def _finished(
    arms: Arms, data: Sequence[Path], seeds: Sequence[int], runs: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``data``, ``runs``, ``missing`` and ``diverged`` of a report, and its ranks."""
    names = [path.stem for path in data]
    if len(set(names)) < len(names):
        raise ConfigError(f"--data: two files are called {max(names, key=names.count)}; rename one")
    rows: list[dict[str, Any]] = []
    lost: dict[str, list[dict[str, Any]]] = {"missing": [], "diverged": []}
    ranks: dict[str, list[Tensor]] = {}
    sets: dict[str, dict[str, Any]] = {}
    sparse: dict[str, dict[str, Tensor]] = {}
    combinations = arms.sweep([str(path) for path in data], seeds).combinations
    keys = arms.keys(names, seeds)
    for (arm, name, seed), combination in zip(keys, combinations, strict=True):
        run_dir = runs / run_name(combination)
        key = {"arm": arm, "data": name, "seed": seed}
        path = run_dir / RESULT
        result: dict[str, Any] = read_json(path) if path.exists() else {"status": "missing"}
        if result["status"] in lost:
            lost[result["status"]].append(key)
            continue
        result, kept = _complete(run_dir, result)
        rows.append({**key, "run": run_dir.name, **row_of(result)})
        for part in PARTS:
            ranks.setdefault(f"{name}/{part}", []).append(kept[part].clamp(max=_MOST))
        if name not in sets or arm == arms.baseline:
            sparse[name] = {mask: found for mask, found in kept.items() if mask not in PARTS}
            sets[name] = {**result["data"], "sparse_users": int(kept["sparse"].sum())}
    tensors = {
        **{name: torch.stack(found).to(torch.uint16) for name, found in ranks.items()},
        **{f"{name}/{mask}": found for name, masks in sparse.items()
           for mask, found in masks.items()},
    }
    return {"data": sets, "runs": rows, **lost}, tensors


def against(found: Comparison, baseline: str) -> Comparison:
    """The same with its differences from a baseline, computed anew where there are ranks.

    Raises:
        ConfigError: there is no such arm, or no ranks to compare another baseline with.
    """
    report = found.report
    if baseline not in report["arms"]:
        raise ConfigError(
            f"baseline={baseline!r} must be one of {', '.join(map(repr, report['arms']))}"
        )
    if not found.ranks:
        if report["runs"] and baseline != report["baseline"]:
            raise ConfigError(
                f"baseline={baseline!r}: the stored intervals are against {report['baseline']!r}; "
                f"another baseline needs the ranks, {ranks_name(Path(COMPARISON))} beside "
                f"{COMPARISON}"
            )
        return Comparison({"resamples": RESAMPLES, "differences": [], **report}, {})
    differences = [
        {"data": name, "part": part, "users": group, "arm": arm, **plain_difference(one)}
        for name in report["data"]
        for part in PARTS
        for group in GROUPS
        for arm, several in _differences(found, name, part, group, baseline).items()
        for one in several
    ]
    made = {"baseline": baseline, "resamples": RESAMPLES, "differences": differences}
    return Comparison({**report, **made}, found.ranks)


def _differences(
    found: Comparison, name: str, part: str, group: str, baseline: str
) -> dict[str, list[Difference]]:
    rows = [row for row in found.report["runs"] if row["data"] == name]
    own = next((row for row in rows if row["arm"] == baseline), None)
    sparse = found.ranks.get(f"{name}/sparse_{part}", found.ranks[f"{name}/sparse"])
    if own is None or (group == "sparse" and not bool(sparse.any())):
        return {}
    systems: dict[str, dict[int, Tensor]] = {}
    for row, ranks in zip(rows, found.ranks[f"{name}/{part}"], strict=True):
        # Of histories that an arm cuts, others are sparse than of the baseline's.
        if group == "all" or row["source"]["fingerprint"] == own["source"]["fingerprint"]:
            systems.setdefault(row["arm"], {})[row["seed"]] = ranks
    return compare(systems, baseline, chosen=sparse if group == "sparse" else None)


def _complete(
    run_dir: Path, result: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A result and its ranks; what an earlier version left out is measured now."""
    masked = result.get("config", {}).get("train", {}).get("seen_mask")
    if masked is not None:
        kept = read_ranks(run_dir, result["data"]["fingerprint"], masked)
        if kept is not None:
            return result, kept
    run = load_run(run_dir)
    if fingerprint(run.data) != result["data"]["fingerprint"]:
        raise CheckpointError(f"{run_dir}: not the data that {RESULT} describes")
    figures, ranks = measure(run)
    del figures["environment"]  # it was another
    write_ranks(run, ranks)
    tested = {n: figures[n] for part in PARTS for n in (part, f"{part}_sparse")}
    return {**figures, **result, **tested}, {**ranks, **sparse_masks(run.split)}


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def row_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """What ``result.json`` says, but for paths of the machine and what is said elsewhere."""
    row = {n: v for n, v in result.items() if n not in ("combination", "source", "data")}
    file, content = file_names(result["source"]["data"]), result["data"]["fingerprint"]
    return {**row, "source": {**result["source"], "data": file, "fingerprint": content}}


def write(folder: Path, found: Comparison) -> int:
    """Write ``compare.json`` and the ranks; returns the ranks' bytes."""
    path = folder / COMPARISON
    # A run a line: what a later one adds is a line of the difference.
    parts = [f" {json.dumps(name)}: {by_line(value)}" for name, value in found.report.items()]
    write_atomically(path, "{\n" + ",\n".join(parts) + "\n}\n")
    content = save(dict(found.ranks))
    write_atomically(folder / ranks_name(path), content)
    return len(content)


def by_line(value: Any) -> str:
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return json.dumps(value)
    return "[\n" + ",\n".join(f"  {json.dumps(entry)}" for entry in value) + "\n ]"


def read(path: Path) -> Comparison:
    """Inverse of :func:`write`; ``path`` is ``compare.json``, by whatever name.

    Raises:
        CheckpointError: it is no such file, is damaged, or the ranks beside it are another's.
    """
    report = read_json(path)
    if (report.get("kind"), report.get("format")) != (KIND, _FORMAT):
        raise CheckpointError(f"{path}: not {KIND!r} of format {_FORMAT}; compare writes one")
    beside = path.with_name(ranks_name(path))
    if not beside.exists():
        return Comparison(report, {})
    ranks = read_weights(beside)
    for name in report["data"]:
        rows = [row for row in report["runs"] if row["data"] == name]
        for part in PARTS:
            found = ranks.get(f"{name}/{part}", torch.zeros(0))
            if found.shape[0] != len(rows) or any(
                abs(float(user_metrics(one, metric).mean()) - row[part][metric]) > _EXACT
                for one, row in zip(found, rows, strict=True)
                for metric in METRICS
            ):
                raise CheckpointError(
                    f"{beside}: not the ranks of {path.name}: {part} of {name} differs; write both "
                    "again, or leave the ranks out"
                )
    return Comparison(report, ranks)


def ranks_name(path: Path) -> str:
    """The name of the file of ranks that belongs to a ``compare.json`` of any name."""
    return f"{path.stem}-ranks.safetensors"
