"""Triton's cache as archives that another machine can unpack: what a launch reads, without paths.

Standard library alone: :mod:`.use` unpacks before there are any packages.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_READ = (".cubin", ".json", ".so")  # of a kernel's folder, by a launch
_END = 150  # bytes, about, that the list at the end of an archive has for each file


def pack(
    cache: Path, archive: Path, folders: Iterable[str] | None = None, room: float = float("inf")
) -> list[str]:
    """Put folders of a cache of triton's into an archive.

    Args:
        cache: triton's.
        archive: written anew.
        folders: their names, the most wanted first; None: all.
        room: bytes that the archive may have.

    Returns:
        Folders that had no room.
    """
    names = sorted(path.name for path in cache.iterdir()) if folders is None else list(folders)
    partial = archive.with_suffix(".partial")
    left, end = [], 0
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for name in names:
            files = [path for path in sorted((cache / name).glob("*")) if path.suffix in _READ]
            # No file grows by compression, so that what fits so fits.
            size = sum(path.stat().st_size + _END for path in files)
            if partial.stat().st_size + size + end > room:
                left.append(name)
                continue
            for path in files:
                data = path.read_bytes()
                if path.name.startswith("__grp__"):
                    data = _relative(data)
                target.writestr(f"{name}/{path.name}", data)
                end += _END
            assert target.fp is not None
            target.fp.flush()
    os.replace(partial, archive)
    return left


def _relative(data: bytes) -> bytes:
    """The list of a kernel's files, by name: as triton writes it, it has their full paths."""
    paths: dict[str, str] = json.loads(data)["child_paths"]
    kept = {name: name for name in paths if name.endswith((".cubin", ".json"))}
    return json.dumps({"child_paths": kept}).encode()


def folders_of(archive: Path) -> set[str]:
    """Names of the folders in an archive."""
    with zipfile.ZipFile(archive) as source:
        return {name.partition("/")[0] for name in source.namelist()}


def unpack(archive: Path, cache: Path) -> int:
    """The inverse of :func:`pack`, into a folder of this machine; how many kernels."""
    kernels = 0
    with zipfile.ZipFile(archive) as source:
        source.extractall(cache)
        for name in source.namelist():
            path = cache / name
            kernels += path.suffix == ".cubin"
            if path.name.startswith("__grp__"):
                files: dict[str, Any] = json.loads(path.read_bytes())["child_paths"]
                here = {file: str(path.parent / file) for file in files}
                path.write_text(json.dumps({"child_paths": here}), encoding="utf-8")
    return kernels
