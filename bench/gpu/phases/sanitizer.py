"""compute-sanitizer's memcheck over a small training step and a request."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

from ..phase import Results

_USERS = 64
_PROGRAM = f"""
import torch
from bench.gpu.work import exercised
exercised(64, "ieee", "cuda", batches=({_USERS},), supervisions=("prefix", "all"))
torch.cuda.synchronize()
"""


def run(results: Results) -> None:
    """The number of errors, and the first of them."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        results.put(summary="compute-sanitizer is not there")
        return
    done = subprocess.run(
        [tool, "--tool", "memcheck", "--print-limit", "20", sys.executable, "-c", _PROGRAM],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    text = done.stdout + done.stderr
    counted = re.search(r"ERROR SUMMARY: (\d+) error", text)
    results.put(
        errors=int(counted[1]) if counted else None, exit_status=done.returncode,
        output=text.splitlines()[-60:] if done.returncode or not counted else [],
        summary=f"{counted[1]} errors" if counted else "no summary: see output",
    )  # fmt: skip


def kernels(device: str) -> None:
    """Every launch of :func:`run`."""
    from ..work import exercised

    exercised(64, "ieee", device, batches=(_USERS,), supervisions=("prefix", "all"))
