"""``environment.json`` of a run, an entry a start: what its figures depend on."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models.pretrained import CheckpointError
from ..version import __version__
from .checkpoint import read_json, write_atomically

ENVIRONMENT = "environment.json"


def write_environment(run_dir: Path, device: torch.device, command: Sequence[str]) -> None:
    """Add this start of the run to ``environment.json``."""
    path = run_dir / ENVIRONMENT
    starts = read_json(path).get("starts") if path.exists() else []
    if not isinstance(starts, list):
        raise CheckpointError(f"{path}: starts must be a list; remove the file to begin another")
    starts.append(describe_environment(device, command))
    write_atomically(path, json.dumps({"starts": starts}, indent=2) + "\n")


def describe_environment(device: torch.device, command: Sequence[str]) -> dict[str, Any]:
    """What a figure depends on: versions, machine, threads, commit, command."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "adarec_fast": __version__,
        "commit": _git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "command": list(command),
    }


def default_command() -> list[str]:
    """The command line of this process."""
    return list(sys.argv)


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:  # not Linux
        return platform.processor()
    return platform.processor()


def _git_commit() -> str | None:
    """The package's commit, when it runs from a checkout of its own."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):  # no git, or one that hangs
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
