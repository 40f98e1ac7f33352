"""Machine, versions, the card's peaks, and what the ops would choose."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess

import torch

from adarec_fast.ops import backend_report

from ...machine import describe, measure_peaks, slug
from ..phase import Results

_PACKAGES = ("triton", "pydantic", "pytest", "hypothesis")
_ASKED = (
    "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit,"
    "temperature.gpu,utilization.gpu"
)


def run(results: Results) -> None:
    """The parts of the record that every other phase relies on."""
    device = results.settings.device
    found = describe(device)
    for name in _PACKAGES:
        found["versions"][name] = _version(name)
    results.put(**found, slug=slug(device))
    results.say(f"{found['machine']} {found['versions']}")
    if shutil.which("nvidia-smi"):
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        values = [value.strip() for value in answer.stdout.strip().split(",")]
        results.put(nvidia_smi=dict(zip(_ASKED.split(","), values, strict=False)))
    if device == "cuda":
        torch.zeros(1, device=device)
        results.put(peaks=measure_peaks(device))
        results.say(f"peaks: {results.found['peaks']}")
    results.put(ops={row["op"]: f"{row['backend']}: {row['reason']}"
                     for row in backend_report(device)})  # fmt: skip
    results.put(summary=", ".join(
        f"{name} {value:g}" for name, value in results.found.get("peaks", {}).items()
    ))  # fmt: skip


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
