"""Checkpoints of a run: whole or not there, whatever the instant at which the process dies.

A checkpoint is a plain folder (it survives copying and archiving, which a symbolic link might
not): a model folder, what resuming needs, and ``manifest.json`` with the SHA-256 of every file.
``NAME`` is replaced in this order:

1. ``NAME.new`` is written; its files and the folder itself are flushed to the disk;
2. ``NAME`` is renamed to ``NAME.old``, then ``NAME.new`` to ``NAME``;
3. ``NAME.old`` is removed.

A rename is atomic, so a death in 1 leaves the previous ``NAME``, a death in 3 the new one. Between
the two renames of 2 there is no ``NAME``, but ``NAME.old`` and ``NAME.new`` are both whole: readers
take the old one (:func:`find_checkpoint`), the next writer brings back the new (:func:`recover`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from ..documents import DocumentError, parse_json, read_text, shown
from ..files import flush_to_disk, replacing, save_file
from ..models import memory
from ..models.pretrained import (
    ABOUT_FEATURES,
    FEATURES,
    WEIGHTS,
    CheckpointError,
    read_weights,
)

MANIFEST = "manifest.json"
STATE_TENSORS, STATE_VALUES = "training_state.safetensors", "training_state.json"
_NEW, _OLD = ".new", ".old"
_FORMAT = 1
_SUFFIXES = (".json", ".safetensors")
_FULL = (errno.ENOSPC, errno.EDQUOT)


def save_checkpoint(
    run_dir: Path,
    name: str,
    fill: Callable[[Path], None],
    about: Mapping[str, Any],
    size: int | None = None,
) -> None:
    """Replace the checkpoint ``run_dir / name`` as a whole.

    Where ``run_dir / name`` is a link, what it leads to is replaced.

    Args:
        run_dir: an existing folder, locked by this process.
        name: ``"best"`` or ``"last"``.
        fill: writes the files into the empty folder it is given.
        about: JSON-able facts for the manifest.
        size: bytes that ``fill`` is about to write, for the message if the disk is full.

    Raises:
        CheckpointError: the disk is full or refuses; the previous checkpoint is as it was, and
            nothing of the new one is left.
    """
    recover(run_dir, name)
    target, fresh, old = _folders(run_dir, name)
    existed = target.exists()
    try:
        with disk_errors(fresh, size):
            fresh.mkdir()
            fill(fresh)
            names = sorted(path.name for path in fresh.iterdir())
            manifest = {
                "format": _FORMAT,
                "name": name,
                **about,
                "sha256": {file: _sha256(fresh / file) for file in names},
            }
            (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            for path in (*fresh.iterdir(), fresh):
                flush_to_disk(path)
            if existed:
                os.rename(target, old)
            os.rename(fresh, target)
            flush_to_disk(target.parent)
    except BaseException:
        # What the disk refuses here too is left to recover().
        with contextlib.suppress(OSError):
            replaced = old.exists() or not existed
            if replaced and target.exists():
                os.rename(target, fresh)
            if old.exists():
                os.rename(old, target)
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover(run_dir: Path, name: str) -> None:
    """Finish or undo what a process that died left of replacing ``name``.

    Only for the one process that may write: it removes temporary folders.
    """
    target, fresh, old = _folders(run_dir, name)
    with disk_errors(target):
        if not target.exists() and old.exists():
            os.rename(fresh if fresh.exists() else old, target)
            flush_to_disk(target.parent)
        for leftover in (fresh, old):
            if leftover.exists():
                shutil.rmtree(leftover)


def find_checkpoint(run_dir: Path, name: str) -> Path | None:
    """The whole checkpoint of that name, or None if there is none; changes nothing."""
    _, _, old = _folders(run_dir, name)
    return next((folder for folder in (run_dir / name, old) if folder.exists()), None)


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """Check every file against the manifest, and return the manifest.

    Raises:
        CheckpointError: a file is missing, unreadable, truncated or altered; it is named.
    """
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != _FORMAT:
        raise CheckpointError(
            f"{folder / MANIFEST}: format {manifest.get('format')!r} is not {_FORMAT}, the only "
            "one this version reads"
        )
    name = folder.name.removesuffix(_OLD)
    if manifest.get("name", name) != name:
        raise CheckpointError(
            f"{folder}: not its own content: {MANIFEST} says that it is {shown(manifest['name'])}"
        )
    sums = manifest.get("sha256")
    if not isinstance(sums, dict):
        raise CheckpointError(f"{folder / MANIFEST}: sha256 must map file names to checksums")
    unlisted = {p.name for p in folder.iterdir() if p.suffix in _SUFFIXES} - {MANIFEST, *sums}
    if unlisted:
        raise CheckpointError(
            f"{folder / min(unlisted)}: not of this checkpoint: {MANIFEST} does not list it"
        )
    for file, expected in sums.items():
        if not file or file != Path(file).name:
            raise CheckpointError(f"{folder / MANIFEST}: {shown(file)} is no file's name")
        path = folder / file
        try:
            found = _sha256(path)
        except FileNotFoundError:
            raise CheckpointError(
                f"{path}: no such file, though {MANIFEST} lists it; take the folder from a copy"
            ) from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        if found != expected:
            raise CheckpointError(
                f"{path}: truncated or altered: its SHA-256 is {found}, {MANIFEST} says "
                f"{expected}; take the folder from a copy"
            )
    return manifest


def ranks_by(folder: Path) -> str | None:
    """What a checkpoint's rankings follow from: the SHA-256 of its weights, and of the files of its
    memory and of its items' features where it has them; None if the manifest has none of them.

    Raises:
        CheckpointError: there is no manifest, or it does not parse.
    """
    return rankings_of(read_json(folder / MANIFEST))


def rankings_of(manifest: Mapping[str, Any]) -> str | None:
    """The same, of a manifest that was read."""
    sums = manifest.get("sha256")
    if not isinstance(sums, dict):
        return None
    files = (WEIGHTS, memory.TENSORS, memory.VALUES, FEATURES, ABOUT_FEATURES)
    return ":".join(str(sums[name]) for name in files if name in sums) or None


def write_state(folder: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able values of a training state into an existing folder."""
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        folder / STATE_TENSORS,
    )
    (folder / STATE_VALUES).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of :func:`write_state`; the tensors own their memory.

    Raises:
        CheckpointError: a file is missing or does not parse, or a tensor is not finite.
    """
    path = folder / STATE_TENSORS
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; the folder cannot be resumed")
    # Copies lie on allocator-aligned addresses as the originals did: some CPU kernels round
    # differently on others, and resuming must be exact.
    tensors = {name: tensor.clone() for name, tensor in read_weights(path).items()}
    return tensors, read_json(folder / STATE_VALUES)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file is missing, is not UTF-8, does not parse, or holds no object.
    """
    try:
        values = parse_json(read_text(path, largest=None))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except DocumentError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a {type(values).__name__}, not a JSON object")
    return values


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a small file whole, see :func:`adarec_fast.files.replacing`.

    Raises:
        CheckpointError: the disk is full or refuses; what was there stays.
    """
    content = data.encode() if isinstance(data, str) else data
    with disk_errors(path, len(content)), replacing(path, temporary=path.name + _NEW) as fresh:
        fresh.write_bytes(content)


@contextlib.contextmanager
def disk_errors(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn what a disk may refuse inside into a :class:`CheckpointError` naming a file.

    ``size`` is how many bytes were to be written, where that is known.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        # safetensors reports the system's error as text only.
        full = number in _FULL or any(f"os error {code})" in str(error) for code in _FULL)
        where = getattr(error, "filename", None) or path
        if full:
            free = shutil.disk_usage(path.parent).free / 2**20
            need = "" if size is None else f"{size / 2**20:.1f} MiB are to be written, "
            raise CheckpointError(
                f"{where}: the disk is full ({need}{free:.1f} MiB are left on the file system of "
                f"{path.parent}); free some space there and resume; earlier checkpoints are intact"
            ) from error
        raise CheckpointError(f"{where}: cannot be written: {error}") from error


def _folders(run_dir: Path, name: str) -> tuple[Path, Path, Path]:
    target = Path(os.path.realpath(run_dir / name))
    fresh, old = (target.with_name(target.name + suffix) for suffix in (_NEW, _OLD))
    return target, fresh, old


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
