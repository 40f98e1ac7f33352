"""Why CUDA is not used on this machine, in a sentence that says what would help.

``torch.cuda.is_available()`` alone says no, be it for want of a card, of a driver new enough for
torch's CUDA, or because torch was built without it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import NamedTuple

import torch

# Driver versions that each CUDA needs at least:
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html, table 1.
_DRIVERS = {11: 450, 12: 525, 13: 580}
# PyTorch's own index for the oldest CUDA of a major version that it still builds for.
_INDEX = "https://download.pytorch.org/whl/{}"
_INDICES = {11: "cu118", 12: "cu126", 13: "cu130"}
_PROC = Path("/proc/driver/nvidia/version")
_DEVICES = Path("/dev")


class Card(NamedTuple):
    """An NVIDIA card as the system sees it, torch or not."""

    name: str
    driver: str


def cards() -> list[Card]:
    """What ``nvidia-smi`` lists; without it, one unnamed card if the kernel's driver is loaded."""
    program = shutil.which("nvidia-smi")
    if program is not None:
        try:
            answer = subprocess.run(
                [program, "--query-gpu=name,driver_version", "--format=csv,noheader"],
                capture_output=True, text=True, timeout=10, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            answer = None
        if answer is not None and answer.returncode == 0:
            lines = [line.split(",") for line in answer.stdout.splitlines() if "," in line]
            return [Card(name.strip(), driver.strip()) for name, driver in lines]
    try:
        text = _PROC.read_text(encoding="utf-8")
    except OSError:
        return []
    found = re.search(r"Kernel Module[^\d]*(\d+\.\d+[\d.]*)", text)
    return [Card("an NVIDIA card", found[1] if found else "unknown")]


def why_no_cuda() -> str | None:
    """Why torch sees no CUDA device, and the remedy; None if it sees one.

    Says nothing of what a machine without a card cannot help: see :func:`cards`.
    """
    if torch.cuda.is_available():
        return None
    if torch.version.hip is not None:
        return f"torch {torch.__version__} is built for ROCm and finds no device"
    there = cards()
    if torch.version.cuda is None:
        if not there:
            return "torch is a CPU build, and no NVIDIA card is visible"
        index = _INDEX.format(_suitable(there[0].driver))
        return (
            f"torch {torch.__version__} is a CPU build, though there is {there[0].name} with "
            f"driver {there[0].driver}: pip install --force-reinstall torch --index-url {index}"
        )
    if not there:
        return (
            f"torch is built for CUDA {torch.version.cuda}, but no NVIDIA card or driver is "
            "visible: neither nvidia-smi nor /proc/driver/nvidia answers (in a container: was it "
            "started with --gpus all?)"
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1", "NoDevFiles"):
        return f"CUDA_VISIBLE_DEVICES={hidden!r} hides {there[0].name}: unset it"
    card, major = there[0], int(torch.version.cuda.partition(".")[0])
    needed = _DRIVERS.get(major, max(_DRIVERS.values()))
    version = re.match(r"\d+", card.driver)
    if version is not None and int(version[0]) < needed:
        index = _INDEX.format(_suitable(card.driver))
        return (
            f"{card.name} has driver {card.driver}, and torch {torch.__version__} is built for "
            f"CUDA {torch.version.cuda}, which needs driver {needed} or newer: update the driver, "
            f"or pip install --force-reinstall torch --index-url {index}"
        )
    if not list(_DEVICES.glob("nvidia[0-9]*")):
        return (
            f"{card.name} has driver {card.driver}, but there is no /dev/nvidia0 to open (in a "
            "container: was it started with --gpus all?)"
        )
    return (
        f"{card.name} with driver {card.driver} is there and torch {torch.__version__} for CUDA "
        f"{torch.version.cuda} does not see it; python -c 'import torch; torch.zeros(1).cuda()' "
        "shows the driver's own error"
    )


def _suitable(driver: str) -> str:
    """The index of PyTorch whose CUDA a driver can run."""
    version = re.match(r"\d+", driver)
    number = int(version[0]) if version else 0
    fitting = [major for major, least in _DRIVERS.items() if number >= least]
    return _INDICES[max(fitting, default=min(_DRIVERS))]


def why_no_launcher() -> str | None:
    """What triton lacks to build the host code of a launch: a C compiler or Python's headers."""
    chosen = os.environ.get("CC")
    names = [chosen] if chosen else ["gcc", "clang"]  # what triton looks for
    if not any(map(shutil.which, names)):
        told = f"CC={chosen!r} is not a program" if chosen else "there is no gcc or clang"
        return f"{told}, and triton compiles its launches with one: install gcc, or set CC"
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not headers.is_file():
        return (
            f"there is no {headers}, which triton's launches are compiled with: install Python's "
            "headers (Debian, Ubuntu: apt install python3-dev)"
        )
    return None
