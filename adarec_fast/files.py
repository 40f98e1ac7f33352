"""Files written as a plain ``open`` would leave them, and yet whole; and locks between processes.

A name may be a link, a pipe, a device, one of several names of a file, or a file of another owner:
what it is stays what it is, and gets the new content. New files have the mode that the umask gives.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from safetensors.torch import save_file as _save_file
from torch import Tensor

_OWN_DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|thread-self))/fd/(\d+)")
_MOST_LINKS = 40  # as Linux
_numbers = itertools.count()


@contextlib.contextmanager
def replacing(path: Path, *, temporary: str | None = None) -> Iterator[Path]:
    """Where to write what ``path`` is to hold when the block ends; after an error it holds what it
    held.

    A regular file is replaced by a rename, once the new one is on the disk, and keeps its mode and
    owner. What a rename would turn into something else (a pipe, a device, a file with further
    names, a mounted one) is written into at the end, and so is an open descriptor such as
    ``/dev/stdout``. Symbolic links are followed.

    Args:
        path: to be written; its folder must be there.
        temporary: name of the new file before it is renamed; by default one that no other writer
            has.

    Raises:
        OSError: it cannot be written, as ``open`` would find.
    """
    place = _followed(path)
    old = None if isinstance(place, int) else _status(place)
    if old is not None and stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if isinstance(place, Path) and not place.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place))
    if old is not None and not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    with contextlib.ExitStack() as undone:
        if isinstance(place, Path) and _may_be_renamed(place, old):
            name = temporary or f".{place.name[:40]}.{os.getpid()}.{next(_numbers)}"
            scratch = place.with_name(name)
            undone.callback(scratch.unlink, missing_ok=True)
            yield scratch
            if _made_alike(scratch, old):
                flush_to_disk(scratch)
                try:
                    os.replace(scratch, place)
                    return
                except OSError as error:
                    if error.errno != errno.EBUSY:  # a mount of its own, as containers have
                        raise
        else:
            scratch = Path(undone.enter_context(tempfile.TemporaryDirectory())) / "content"
            yield scratch
        _pour(scratch, place)


def _followed(path: Path) -> Path | int:
    """What a chain of links ends at: a path that is no link, or a descriptor of this process."""
    at = os.fspath(path)
    for _ in range(_MOST_LINKS):
        if own := _OWN_DESCRIPTOR.fullmatch(at):
            return int(own[1])
        try:
            to = os.readlink(at)
        except OSError:  # no link, or nothing there
            return Path(at)
        at = os.path.join(os.path.dirname(at), to)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _may_be_renamed(place: Path, old: os.stat_result | None) -> bool:
    if old is None:
        return True
    return (
        stat.S_ISREG(old.st_mode) and old.st_nlink == 1
        and os.access(place.parent, os.W_OK | os.X_OK)
    )  # fmt: skip


def _made_alike(scratch: Path, old: os.stat_result | None) -> bool:
    """Whether the new file could be given the mode and the owner of the old one."""
    if old is None:
        return True
    new = scratch.stat()
    try:
        if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
            os.chown(scratch, old.st_uid, old.st_gid)
        if stat.S_IMODE(new.st_mode) != stat.S_IMODE(old.st_mode):
            os.chmod(scratch, stat.S_IMODE(old.st_mode))
    except PermissionError:
        return False
    return True


def _pour(scratch: Path, place: Path | int) -> None:
    if isinstance(place, int):
        if place == 1 and sys.stdout is not None:
            sys.stdout.flush()
        place = os.dup(place)  # with its own offset: what was appended to is not cut off
    with scratch.open("rb") as source, open(place, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """safetensors' own, which would leave a new file to its owner alone, whatever the umask."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    _save_file(dict(tensors), path)
    path.chmod(mode)


def scratch_folder(beside: Path) -> Path:
    """Make a folder beside another, of a name that nobody has."""
    while True:
        folder = beside.with_name(f".{beside.name[:40]}-{os.getpid()}-{next(_numbers)}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder


def try_lock(file: IO[Any]) -> bool:
    """Take an open file's lock; whether it was free.

    Raises:
        OSError: the file system gives no locks; nobody need hold this one.
    """
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # EWOULDBLOCK
        return False
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for, then hold, the lock file ``path`` against other processes.

    Raises:
        OSError: it cannot be written, or the file system gives no locks.
    """
    import fcntl

    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise OSError(error.errno, f"cannot be locked: {error.strerror}", str(path)) from error
        yield
