"""Make a prepared folder's contents take effect in the processes of a run.

Standard library alone: this is what gives the rest its packages.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

from .archive import unpack
from .prepare import DESCRIPTION, sources, versions


class NotPrepared(ValueError):
    """The folder is none that ``--prepare`` filled, or is for another machine."""


def use(folder: Path, scratch: Path) -> tuple[dict[str, str], list[str]]:
    """Unpack into ``scratch``; the environment of the run's processes, and what does not fit.

    Args:
        folder: filled by :func:`.prepare.prepare`.
        scratch: an empty folder of this machine.

    Raises:
        NotPrepared: it has no description, or was not completed.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotPrepared(
            f"{folder} has no {DESCRIPTION}; fill it with python -m bench.gpu --prepare"
        ) from None
    if not description.get("complete"):
        raise NotPrepared(f"{folder} was not prepared to the end; run --prepare again")
    complaints = [
        f"{name} is {have}, {folder} was prepared for {description['versions'].get(name)}"
        for name, have in versions().items()
        if have != description["versions"].get(name)
    ]
    if description.get("sources") != sources():
        complaints.append(f"{folder} was prepared for other sources")
    if complaints:
        complaints.append("kernels will be compiled here")
    left_out = sum(phase["left_out"] for phase in description["kernels"].values())
    if left_out:
        complaints.append(f"{left_out} kernels had no room in {folder} and will be compiled here")
    site, cache = scratch / "site", scratch / "triton"
    for wheel in sorted((folder / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(site)
    cache.mkdir()
    for archive in sorted((folder / "kernels").glob("*.zip")):
        unpack(archive, cache)
    shutil.copytree(folder / "extension", scratch / "extension")
    # Behind what the machine has, whose packages fit each other: PYTHONPATH would stand before.
    start = scratch / "start"
    start.mkdir()
    text = f"import sys\nsys.path.append({str(site)!r})\n"
    (start / "sitecustomize.py").write_text(text, encoding="utf-8")
    path = [part for part in (str(start), os.environ.get("PYTHONPATH")) if part]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(path), "TRITON_CACHE_DIR": str(cache),
        "ADAREC_FAST_CACHE": str(scratch / "extension"), "ADAREC_FAST_PORTABLE": "1",
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    return environment, complaints
