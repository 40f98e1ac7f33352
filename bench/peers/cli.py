"""``python -m bench.peers``: the command line."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from adarec_fast.data import load

from .. import records
from ..machine import describe, measure_peaks, slug
from .settings import Settings, about
from .worker import SYSTEMS

# glibc returns large blocks to the system after every use; these keep them. Padded logits of
# hundreds of megabytes gain most, and whoever serves or trains on a CPU may set them.
TUNED = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296",
         "MALLOC_TOP_PAD_": "268435456"}  # fmt: skip


def worker(name: str, data: Path, tuned: bool, options: list[str]) -> dict[str, Any]:
    """Run a system in its process.

    Raises:
        RuntimeError: it failed; the message has the end of what it said.
    """
    done = subprocess.run(
        [sys.executable, "-m", "bench.peers.worker", name, "--data", str(data), *options],
        capture_output=True, text=True, env={**os.environ, **(TUNED if tuned else {})},
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{name}: " + "\n".join(done.stderr.strip().splitlines()[-3:]))
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "allocator_tuned": tuned}


def row(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The rounds of a system as one row; an epoch is its median step times its steps."""
    first = found[0]
    result = {
        key: first[key]
        for key in ("system", "version", "note", "allocator_tuned", "parameters", "steps_per_epoch")
    }
    for kind in ("wall", "cpu"):
        steps = [seconds for each in found for seconds in each[f"{kind}_seconds"]]
        median = statistics.median(steps)
        result[f"step_{kind}_seconds"] = {
            "min": min(steps), "median": median, "max": max(steps), "steps": len(steps)
        }
        result[f"epoch_{kind}_seconds"] = median * first["steps_per_epoch"]
    result["peak_bytes"] = max(each["peak_bytes"] for each in found)
    result["base_bytes"] = max(each["base_bytes"] for each in found)
    return result


def _command(files: list[Path | None]) -> str:
    """As it was typed, with the files' names in place of where they are."""
    short = {str(file): file.name for file in files if file is not None}
    words = [short.get(word, word) for word in sys.argv[1:]]
    return shlex.join(["python", "-m", "bench.peers", *words])


def main() -> int:
    """Time all in turns, train some of them, print, and perhaps save."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers")
    parser.add_argument("--data", type=Path, required=True, help="interactions, e.g. Beauty.txt")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--steps", type=int, default=4, help="counted in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=0,
                        help="also train each system so long, and rank validation")
    parser.add_argument("--train-data", type=Path, help="for that, where it is to be other data")
    parser.add_argument("--save-results", action="store_true",
                        help="write bench/results/peers-<machine>-<date>.json")
    given = parser.parse_args()
    for name in ("steps", "rounds", "threads"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} {getattr(given, name)} must be at least 1")
    data = load(given.data)
    record: dict[str, Any] = {
        "kind": "adarec_fast peers",
        "device": "cpu",
        "slug": f"peers-{slug('cpu')}",
        "date": records.now(),
        "command": _command([given.data, given.train_data]),
        **describe("cpu"),
        "peaks": measure_peaks("cpu"),
        "threads": given.threads,
        "data": {"name": given.data.stem, **about(data)},
        "settings": vars(Settings()),
        "failed": {},
        "rows": [],
        "trained": [],
    }
    # The allocator matters to those who make large temporaries.
    arms = [(name, tuned) for name in given.systems for tuned in (False, True)
            if not tuned or name in ("RecTools' SASRec", "RePlay's SASRec")]  # fmt: skip
    options = ["--steps", str(given.steps), "--threads", str(given.threads)]
    found: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for turn in range(given.rounds):
        for arm in arms:
            if arm[0] in record["failed"]:
                continue
            try:
                found.setdefault(arm, []).append(worker(arm[0], given.data, arm[1], options))
            except RuntimeError as error:
                record["failed"][arm[0]] = str(error)
                print(error, file=sys.stderr)
                continue
            seconds = found[arm][-1]["cpu_seconds"]
            how = " (allocator tuned)" if arm[1] else ""
            print(f"round {turn + 1}: {arm[0]}{how}: {statistics.median(seconds):.3g} CPU s a step",
                  flush=True)  # fmt: skip
    record["rows"] = [row(found[arm]) for arm in arms if found.get(arm)]
    for name in given.systems if given.epochs else ():
        if name in record["failed"]:
            continue
        trained = worker(name, given.train_data or given.data, True, [
            "--epochs", str(given.epochs), "--threads", str(given.threads)
        ])  # fmt: skip
        record["trained"].append({
            **{key: trained[key] for key in ("system", "epochs", "valid")},
            "data": (given.train_data or given.data).stem,
            "cpu_seconds": sum(trained["cpu_seconds"]),
        })  # fmt: skip
        print(record["trained"][-1], flush=True)
    for line in record["rows"]:
        how = " (allocator tuned)" if line["allocator_tuned"] else ""
        print(f"{line['system']}{how}: {line['epoch_cpu_seconds']:.1f} CPU s an epoch, "
              f"{line['peak_bytes'] / 2**30:.2f} GiB")  # fmt: skip
    if given.save_results:
        print(records.write(record, records.FOLDER))
    return 1 if record["failed"] else 0

