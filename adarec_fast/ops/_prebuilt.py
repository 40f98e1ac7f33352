"""Libraries that an installation brings: found by a manifest, used where they fit this machine.

A wheel of ``adarec-fast build --wheel`` holds ``adarec_fast/prebuilt/``: the C++ extension for
several targets, and ``manifest.json``, which says for each its file, its SHA-256 and its key, the
hash of all that decides a library's contents (sources, flags, torch). A key that is not the one
wanted here, e.g. because torch is another version, is no fault: the library is then built on first
use.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from . import _plans
from ._plans import Plan, Target
from ._toolkit import ExtensionError

FOLDER = Path(__file__).resolve().parent.parent / "prebuilt"
MANIFEST = "manifest.json"
VERSION = 1


class Unfit(ExtensionError):
    """What this installation brings is not for this machine; the message says why."""


def row(target: Target, file: str, library: bytes) -> dict[str, str]:
    """A manifest's row: ``target``, ``file``, ``key`` and ``sha256`` of a built library."""
    key = _plans.key(_plans.make_plan("cpp", target=target))
    return {
        "target": target.name, "file": file, "key": key,
        "sha256": hashlib.sha256(library).hexdigest(),
    }


def manifest(rows: list[dict[str, str]]) -> dict[str, Any]:
    """What ``manifest.json`` holds: its version, torch's, and a row a library."""
    return {"version": VERSION, "torch": torch.__version__, "libraries": rows}


@functools.cache
def read() -> dict[str, Any] | None:
    """The manifest, or None where this installation brings nothing.

    Raises:
        Unfit: it is not one, or is of another version of this package.
    """
    path = FOLDER / MANIFEST
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Unfit(f"has a manifest that cannot be read: {path}: {error}") from error
    if not isinstance(held, dict) or held.get("version") != VERSION:
        raise Unfit(f"has no manifest of version {VERSION}: {path}")
    return held


def find(plan: Plan, target: Target | None) -> Path | None:
    """The library for a target (None: the best that the processor runs), or None where this
    installation brings none at all.

    Args:
        plan: the target's.
        target: which.

    Raises:
        Unfit: it brings some, but none that fits, or a damaged one.
    """
    held = read()
    if held is None:
        return None
    if held["torch"] != torch.__version__:
        raise Unfit(f"was built for torch {held['torch']}, and this is {torch.__version__}")
    rows = {row["target"]: row for row in held["libraries"]}
    name = "" if target is None else target.name
    if name not in rows:
        raise Unfit(f"is for {', '.join(rows)}, not for {name or 'this processor'}")
    wanted = rows[name]
    if wanted["key"] != _plans.key(plan):
        raise Unfit("was built from other sources or with other flags")
    path = FOLDER / wanted["file"]
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise Unfit(f"cannot be read: {error}") from error
    if found != wanted["sha256"]:
        raise Unfit(f"is damaged: {path} is not the file that {MANIFEST} names")
    return path
