"""Nsight Compute on the kernels that the profile found slowest: what holds them up."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from typing import Any

from ..phase import Results

_KERNELS = 4
_SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "WarpStateStats", "LaunchStats")
_USERS = 8192
_PROGRAM = f"""
import torch
from bench.gpu.work import exercised
exercised(64, "tf32", "cuda", batches=({_USERS},))
torch.cuda.synchronize()
"""
# Without a profile to read: what the cost model calls the dearest.
_USUAL = ("_sublayers_backward_kernel", "_weights_kernel", "_backward_kernel", "_scan_kernel")


def run(results: Results) -> None:
    """Metrics of one launch of each, at a large batch."""
    tool = shutil.which("ncu")
    if tool is None:
        results.put(summary="ncu is not there")
        return
    names = _slowest(results)
    for name in names:
        command = [
            tool, "--clock-control", "none", "--kernel-name", f"regex:^{re.escape(name)}$",
            "--launch-count", "1", "--csv", "--page", "details",
            *(word for section in _SECTIONS for word in ("--section", section)),
            sys.executable, "-c", _PROGRAM,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        metrics = read_csv(done.stdout)
        if metrics:
            results.add("kernels", {"kernel": name, "metrics": metrics})
        else:
            text = (done.stdout + done.stderr).splitlines()
            results.add("failed", {"kernel": name, "output": text[-15:]})
        results.say(f"{name}: {len(metrics)} metrics")
        measured = [entry["kernel"] for entry in results.found.get("kernels", [])]
        results.put(summary=f"measured {', '.join(measured) or 'none'} of {', '.join(names)}")


def _slowest(results: Results) -> list[str]:
    for profile in results.earlier("profile").get("profiles", []):
        if profile["workload"] == "large":
            ours = [k["kernel"] for k in profile["kernels"] if k["kernel"].startswith("_")]
            return ours[:_KERNELS]
    return list(_USUAL)


def read_csv(text: str) -> dict[str, Any]:
    """``section: metric`` to value and unit, of the page ``details`` as CSV."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    found = {}
    for row in csv.DictReader(lines):
        if row.get("Metric Name"):
            key = f"{row['Section Name']}: {row['Metric Name']}"
            found[key] = f"{row['Metric Value']} {row.get('Metric Unit') or ''}".strip()
    return found


def kernels(device: str) -> None:
    """Every launch of :func:`run`."""
    from ..work import exercised

    exercised(64, "tf32", device, batches=(_USERS,))
