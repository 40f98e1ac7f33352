"""A wheel that carries the C++ extension: a pure wheel of a checkout, the libraries added."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
import io
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ..files import replacing
from . import _plans, _prebuilt, extension
from ._toolkit import ExtensionError

_CHECKOUT = Path(__file__).resolve().parents[2]
_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "adarec_fast", "kernels", "csrc")


def build_wheel(folder: Path, *, verbose: bool = True) -> Path:
    """Build the C++ extension for every kind of processor of this machine's family, the one at
    hand or not, and put it into a wheel of this checkout.

    Args:
        folder: where the wheel goes; made where it is not there.
        verbose: say on stderr what is built.

    Returns:
        The wheel's path.

    Raises:
        ExtensionError: no checkout, no compiler, a failing one, or pip cannot build the wheel.
        OSError: ``folder`` cannot be written.
    """
    if not (_CHECKOUT / "pyproject.toml").is_file():
        raise ExtensionError(
            f"a wheel is built from a checkout of adarec_fast, and {_CHECKOUT} is none: "
            "pip install -e CHECKOUT, and call this command again"
        )
    targets = _plans.targets()
    libraries = extension.build_for(targets, verbose=verbose)
    inside = Path("adarec_fast", _prebuilt.FOLDER.name)
    added: dict[str, bytes] = {}
    rows = []
    for target, library in zip(targets, libraries, strict=True):
        name = f"adarec_fast_cpp-{target.name}.so"
        added[str(inside / name)] = library.read_bytes()
        rows.append(_prebuilt.row(target, name, added[str(inside / name)]))
    held = json.dumps(_prebuilt.manifest(rows), indent=2) + "\n"
    added[str(inside / _prebuilt.MANIFEST)] = held.encode()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        pure = _pure_wheel(Path(scratch))
        tag = f"py3-none-linux_{platform.machine()}"
        made = folder / pure.name.replace("py3-none-any", tag)
        with replacing(made) as path:
            _add(pure, added, tag, path)
    return made


def _pure_wheel(scratch: Path) -> Path:
    """What ``pip wheel`` makes of the checkout, in a copy: a build leaves files behind."""
    litter = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", _prebuilt.FOLDER.name)
    for name in _SOURCES:
        place = _CHECKOUT / name
        if place.is_dir():
            shutil.copytree(place, scratch / "source" / name, symlinks=True, ignore=litter)
        else:
            (scratch / "source").mkdir(exist_ok=True)
            shutil.copy(place, scratch / "source")
    line = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(scratch / "dist")]
    done = subprocess.run(
        [*line, *_isolation(), str(scratch / "source")], capture_output=True, text=True,
        errors="replace", stdin=subprocess.DEVNULL, check=False,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-12:]
        raise ExtensionError("pip wheel failed:\n  " + "\n  ".join(said))
    (made,) = (scratch / "dist").glob("adarec_fast-*-py3-none-any.whl")
    return made


def _isolation() -> list[str]:
    """pip fetches setuptools for a build, unless what is here will do."""
    try:
        major = int(importlib.metadata.version("setuptools").partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return []
    return ["--no-build-isolation"] if major >= 77 else []


def _add(pure: Path, added: dict[str, bytes], tag: str, path: Path) -> None:
    """Write ``pure`` with further files, as a wheel for ``tag``."""
    with zipfile.ZipFile(pure) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        (record,) = (n for n in old.namelist() if n.endswith(".dist-info/RECORD"))
        about = record.replace("RECORD", "WHEEL")
        text = old.read(about).decode()
        changed = text.replace("Tag: py3-none-any", f"Tag: {tag}")
        changed = changed.replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
        fresh = {about: changed.encode(), **added}
        rows = [r for r in csv.reader(io.StringIO(old.read(record).decode())) if r]
        rows = [r for r in rows if r[0] not in (record, *fresh)]
        for info in old.infolist():
            if info.filename not in (record, about):
                new.writestr(info, old.read(info), zipfile.ZIP_DEFLATED)
        for name, data in fresh.items():
            new.writestr(_info(name), data)
            state = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
            rows.append([name, f"sha256={state.decode()}", str(len(data))])
        written = io.StringIO()
        csv.writer(written, lineterminator="\n").writerows([*rows, [record, "", ""]])
        new.writestr(_info(record), written.getvalue())


def _info(name: str) -> zipfile.ZipInfo:
    """A file that everybody may read, with a fixed time: the same files make the same wheel."""
    info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
    info.external_attr = 0o100644 << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info
