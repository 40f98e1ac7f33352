"""The benchmarks with their baselines on the card, an op at a time.

Each run of pytest writes a record of its own, so that a time that is over costs one op.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ..phase import Results

# A step and the ops that have a target first.
_RUNS = (
    ("step", "train"), ("moe_aggregate", "train,large"), ("hda_trajectory", "large"),
    ("recommend", None), ("encoder_layer", "train"), ("linear_cross_entropy", "train"),
    ("depth_controller", "train"), ("mlp_expert", "train"), ("level_infonce", "train"),
    ("score_topk", None), ("epoch", None),
)  # fmt: skip


def run(results: Results) -> None:
    """Rows of :mod:`bench.cell`, as ``pytest bench/ --bench-device cuda`` has them."""
    for op, workloads in _RUNS:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable, "-m", "pytest", "bench", "--benchmark-only", "-q", "--op", op,
                "--bench-device", "cuda", "--benchmark-max-time", "0.3", "--save-results",
                "--results-dir", folder, "-p", "no:cacheprovider", "--tb=line",
                "--time-budget", f"{max(results.left - 20, 5):.0f}",
            ]  # fmt: skip
            if workloads:
                command += ["--workload", workloads]
            if op == "epoch":
                command += ["-k", "not Peers and not beside"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            results.say("\n".join(done.stdout.splitlines()[-12:]))
            written = list(Path(folder).glob("*.json"))
            if done.returncode or not written:
                results.add("failed", {"op": op, "output": done.stdout.splitlines()[-25:]})
            for path in written:
                for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
                    results.add("rows", row)
        failed = [entry["op"] for entry in results.found.get("failed", [])]
        results.put(summary=f"{len(results.found.get('rows', []))} rows; failed: "
                            f"{', '.join(failed) or 'none'}")  # fmt: skip
