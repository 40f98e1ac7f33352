"""Fill a folder with all that a GPU's machine would have to fetch or compile.

    wheels/          Python packages that it may lack, for this Python
    kernels/         an archive a phase of triton's cache: cubins, their descriptions, and the host
                     code of launches; each without what a phase before it has
    extension/       the CUDA extension for the architecture, and the C++ one for AVX2
    prepared.json    what all this is for
    working/         triton's cache itself, until the folder is complete

The GPU's machine must have this Python (its minor version), this torch and this triton, from the
same wheels: their versions are in the file names of what is built and in the keys of the cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .archive import folders_of, pack, unpack
from .plan import Phase
from .record import write_json

if TYPE_CHECKING:
    from adarec_fast.kernels._prewarm import Compiled

ROOT = Path(__file__).parents[2]
# What a machine with torch on it has: not carried, and not looked into for what it needs.
PRESENT = ("torch", "triton", "numpy", "pytest", "pytest-benchmark", "hypothesis", "setuptools")
# Beside the package's own requirements: tests in parallel, each with a time limit. Whole, since
# what is not installed here cannot tell what it needs.
TOOLS = ("pytest-xdist", "execnet", "pytest-timeout")
DESCRIPTION = "prepared.json"
WORKING = "working"
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def versions() -> dict[str, str]:
    """What a prepared folder fits: compared on the GPU's machine."""
    return {
        "python": sysconfig.get_python_version(),
        "torch": importlib.metadata.version("torch"),
        "triton": importlib.metadata.version("triton"),
    }


def architecture(text: str) -> int:
    """90 of ``sm_90``. Raises ValueError for anything else."""
    match = re.fullmatch(r"sm_(\d{2,3})", text)
    if match is None:
        raise ValueError(f"--arch: {text!r} is no architecture; give e.g. sm_86 or sm_90")
    return int(match[1])


def prepare(
    folder: Path, arch: str, phases: tuple[Phase, ...], jobs: int | None = None,
    limit: float = float("inf"),
) -> None:  # fmt: skip
    """Fill ``folder``; what is there already and still fits is not made again.

    Killed, it goes on where it was. ``limit``: MiB that the folder may hold in all; kernels that
    do not fit are left out, those of the last phases first.

    Raises:
        ValueError: ``arch`` is none.
        RuntimeError: a wheel could not be had, a kernel or an extension not be compiled.
    """
    number = architecture(arch)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    about = {
        "versions": versions(), "architecture": arch, "limit": limit if limit < 1e9 else None,
        "sources": sources(),
    }  # fmt: skip
    about = {**about, "complete": False, "kernels": _earlier(folder, about)}
    write_json(folder / DESCRIPTION, about)
    about["wheels"] = fetch_wheels(folder / "wheels")
    _say(started, f"{len(about['wheels'])} wheels")
    about["extension"] = build_extensions(folder / "extension", number)
    _say(started, f"extensions: {', '.join(about['extension'])}")
    compile_kernels(folder, number, phases, jobs, about, limit * 2**20, started)
    about["complete"] = True
    write_json(folder / DESCRIPTION, about)
    shutil.rmtree(folder / WORKING)
    kernels = sum(phase["kernels"] - phase["left_out"] for phase in about["kernels"].values())
    _say(started, f"{kernels} kernels; {folder} holds {size_of(folder) / 2**20:.1f} MiB")


def _earlier(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The phases that a call before this one, for the same, has brought to their end."""
    try:
        known = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    if any(known.get(name) != value for name, value in about.items()):
        return {}
    return {
        name: phase for name, phase in known["kernels"].items()
        if (folder / "kernels" / f"{name}.zip").exists()
    }  # fmt: skip


def _say(started: float, text: str) -> None:
    print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)


# ---------------------------------------------------------------------- wheels


def missing_packages(names: Iterable[str], present: Iterable[str] = PRESENT) -> list[str]:
    """Packages that ``names`` need, as ``name==version`` of what is installed here.

    Args:
        names: of distributions that are installed.
        present: those that the other machine has, with all that they need.
    """

    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    def needs(name: str) -> list[str]:
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            return []
        # Extras have a marker that names them; other markers speak of Pythons long gone.
        wanted = [line for line in lines if "extra ==" not in line and "python_version" not in line]
        return [plain(_NAME.match(line)[0]) for line in wanted if _NAME.match(line)]  # type: ignore[index]

    def closure(start: Iterable[str], stop: set[str]) -> set[str]:
        seen: set[str] = set()
        waiting = [plain(name) for name in start]
        while waiting:
            name = waiting.pop()
            if name not in seen and name not in stop:
                seen.add(name)
                waiting += needs(name)
        return seen

    there = closure(present, set())
    found = []
    for name in sorted(closure(names, there)):
        try:
            found.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue  # of a marker that does not hold here
    return found


def fetch_wheels(folder: Path) -> list[str]:
    """Download what the other machine may lack; the names of the files.

    Raises:
        RuntimeError: pip could not.
    """
    metadata = importlib.metadata.requires("adarec_fast") if _installed("adarec_fast") else None
    own = [line for line in metadata or _declared() if "extra ==" not in line]
    names = [match[0] for line in own if (match := _NAME.match(line))]
    wanted = missing_packages([*names, *(tool for tool in TOOLS if _installed(tool))])
    wanted += [tool for tool in TOOLS if not _installed(tool)]
    folder.mkdir(exist_ok=True)
    kept = {path.name for path in folder.glob("*.whl")}
    if not kept or len(kept) < len(wanted):
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
             "--only-binary=:all:", "--dest", str(folder), *wanted],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"pip download failed: {done.stderr.strip()[-800:]}")
    return sorted(path.name for path in folder.glob("*.whl"))


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _declared() -> list[str]:
    """The project's requirements where it is not installed: of ``pyproject.toml``."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text[text.index("\ndependencies = [") :]
    return re.findall(r'"([^"]+)"', block[: block.index("]\n")])


# ---------------------------------------------------------------------- extensions


def build_extensions(folder: Path, number: int) -> list[str]:
    """The CUDA extension for an architecture and the C++ one for any processor with AVX2.

    Raises:
        RuntimeError: one could not be built.
    """
    from adarec_fast.ops import extension

    before = {name: os.environ.get(name) for name in ("ADAREC_FAST_CACHE", "ADAREC_FAST_PORTABLE")}
    os.environ["ADAREC_FAST_CACHE"], os.environ["ADAREC_FAST_PORTABLE"] = str(folder), "1"
    try:
        built = [
            extension.build("cuda", architectures=(str(number),)), extension.build("cpp")
        ]
    except extension.ExtensionError as error:
        raise RuntimeError(f"an extension could not be built: {error}") from error
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    for path in folder.iterdir():  # objects and locks are of use here alone, and large
        if path not in built:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [path.name for path in built]


# ---------------------------------------------------------------------- kernels


class _Kernels:
    """The archives of a folder and what is known of them: an archive a phase.

    Args:
        folder: the prepared one.
        about: its description, written after every phase.
        limit: bytes that the folder may have in all.
        started: of :func:`_say`.
    """

    def __init__(
        self, folder: Path, about: dict[str, Any], limit: float, started: float
    ) -> None:
        self.folder, self.about, self.limit, self.started = folder, about, limit, started
        self.archives, self.cache = folder / "kernels", folder / WORKING
        self.archives.mkdir(exist_ok=True)
        self.cache.mkdir(exist_ok=True)
        self.phases: dict[str, dict[str, Any]] = about["kernels"]
        self.carried: set[str] = set()
        for path in sorted(self.archives.glob("*.zip")):
            unpack(path, self.cache)
            if path.stem in self.phases:
                self.carried |= folders_of(path)
            else:  # of other sources: what is still the same is found in the cache
                path.unlink()

    def add(self, phase: Phase, results: list[Compiled]) -> None:
        """Pack what no archive has."""
        archive = self.archives / f"{phase.name}.zip"
        wanted = dict.fromkeys(name for result in results for name in result.folders)
        new = [name for name in wanted if name not in self.carried]
        room = self.limit - size_of(self.folder)
        left = set(pack(self.cache, archive, new, room))
        lost = sum(1 for result in results if left.intersection(result.folders))
        self.carried.update(name for name in new if name not in left)
        self.phases[phase.name] = {
            "kernels": len(results), "left_out": lost, "bytes": archive.stat().st_size
        }  # fmt: skip
        write_json(self.folder / DESCRIPTION, self.about)
        size = archive.stat().st_size / 2**20
        _say(self.started, f"{phase.name}: {len(results)} kernels; {size:.1f} MiB are new")
        if lost:
            print(
                f"{phase.name}: {lost} of {len(results)} kernels are left out, for the folder may "
                f"hold {self.limit / 2**20:g} MiB: the device's machine will compile them",
                flush=True,
            )  # fmt: skip


def compile_kernels(
    folder: Path, number: int, phases: tuple[Phase, ...], jobs: int | None,
    about: dict[str, Any], limit: float, started: float,
) -> None:  # fmt: skip
    """Compile what each phase asks for into an archive of its own, the most valuable first.

    Raises:
        RuntimeError: some did not compile; the message names the first of them.
    """
    os.environ["TRITON_CACHE_DIR"] = str((folder / WORKING).resolve())
    os.environ["TRITON_STORE_BINARY_ONLY"] = "1"
    from .kernels import compile_phase

    found = _Kernels(folder, about, limit, started)
    for phase in phases:
        if phase.name in found.phases:
            _say(started, f"{phase.name}: as it was")
            continue
        results = compile_phase(phase, number, jobs, _Progress())
        if results is None:
            continue
        failed = [result for result in results if result.error]
        if failed:
            raise RuntimeError(f"{len(failed)} kernels do not compile, the first: {failed[0]}")
        found.add(phase, results)


class _Progress:
    """A line for every 25 kernels, and for each that fails."""

    def __init__(self) -> None:
        self.ready = 0

    def __call__(self, result: Compiled) -> None:
        self.ready += 1
        if self.ready % 25 == 0 or result.error:
            print(f"{self.ready} kernels: {result.kernel} {result.error or ''}", flush=True)


def size_of(folder: Path) -> int:
    """Bytes of a prepared folder, without what is in it only while it is prepared."""
    return sum(
        path.stat().st_size for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] != WORKING
    )  # fmt: skip


def sources() -> str:
    """A hash of all code that decides which kernels a phase asks for."""
    found = hashlib.sha256()
    for name in ("adarec_fast", "kernels", "bench", "tests"):
        for path in sorted((ROOT / name).rglob("*.py")):
            found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()
