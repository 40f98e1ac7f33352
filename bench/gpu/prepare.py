"""Fill a folder with all that a GPU's machine would have to fetch or compile.

    wheels/          Python packages that it may lack, for this Python
    kernels.zip      triton's cache: cubins, their descriptions, and the host code of launches
    extension/       the CUDA extension for the architecture, and the C++ one for AVX2
    prepared.json    what all this is for

The GPU's machine must have this Python (its minor version), this torch and this triton, from the
same wheels: their versions are in the file names of what is built and in the keys of the cache.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .plan import Phase
from .record import write_json

ROOT = Path(__file__).parents[2]
# What a machine with torch on it has: not carried, and not looked into for what it needs.
PRESENT = ("torch", "triton", "numpy", "pytest", "pytest-benchmark", "hypothesis", "setuptools")
# Beside the package's own requirements: tests in parallel, each with a time limit.
TOOLS = ("pytest-xdist", "pytest-timeout")
DESCRIPTION = "prepared.json"
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


def prepare(folder: Path, arch: str, phases: tuple[Phase, ...], jobs: int | None = None) -> None:
    """Fill ``folder``; what is there already and still fits is not made again.

    Raises:
        ValueError: ``arch`` is none.
        RuntimeError: a wheel could not be had, a kernel or an extension not be compiled.
    """
    number = architecture(arch)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    write_json(folder / DESCRIPTION, {"versions": versions(), "architecture": arch,
                                      "complete": False})  # fmt: skip
    wheels = fetch_wheels(folder / "wheels")
    _say(started, f"{len(wheels)} wheels")
    built = build_extensions(folder / "extension", number)
    _say(started, f"extensions: {', '.join(built)}")
    kernels = compile_kernels(folder, number, phases, jobs)
    write_json(folder / DESCRIPTION, {
        "versions": versions(), "architecture": arch, "complete": True, "wheels": wheels,
        "extension": built, "kernels": kernels, "phases": [phase.name for phase in phases],
    })  # fmt: skip
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    _say(started, f"{kernels} kernels; {folder} holds {size / 2**20:.1f} MiB")


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


def compile_kernels(
    folder: Path, number: int, phases: tuple[Phase, ...], jobs: int | None
) -> int:
    """Compile what the phases ask for into ``kernels.zip``; how many kernels.

    Raises:
        RuntimeError: some did not compile; the message names the first of them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TRITON_CACHE_DIR"] = scratch
        os.environ["TRITON_STORE_BINARY_ONLY"] = "1"
        archive = folder / "kernels.zip"
        if archive.exists():
            unpack(archive, Path(scratch))
        from adarec_fast.kernels._prewarm import Compiled, compile_all

        from .kernels import collect

        collected = collect(phases, number)
        total, ready = len(collected.launches) + 1, 0

        def done(result: Compiled) -> None:
            nonlocal ready
            ready += 1
            if ready % 25 == 0 or result.error:
                print(f"{ready} of {total}: {result.kernel} {result.error or ''}", flush=True)

        results = compile_all(collected, jobs=jobs, elsewhere=True, done=done)
        failed = [result for result in results if result.error]
        if failed:
            raise RuntimeError(f"{len(failed)} kernels do not compile, the first: {failed[0]}")
        pack(Path(scratch), archive)
    return len(collected.launches)


def pack(cache: Path, archive: Path) -> None:
    """Put a cache of triton's into an archive: what a launch reads, without paths."""
    partial = archive.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for path in sorted(cache.rglob("*")):
            if path.suffix not in (".cubin", ".json", ".so"):
                continue
            data = path.read_bytes()
            if path.name.startswith("__grp__"):
                data = _relative(data)
            target.writestr(str(path.relative_to(cache)), data)
    os.replace(partial, archive)


def _relative(data: bytes) -> bytes:
    """The list of a kernel's files, by name: as triton writes it, it has their full paths."""
    paths: dict[str, str] = json.loads(data)["child_paths"]
    kept = {name: name for name in paths if name.endswith((".cubin", ".json"))}
    return json.dumps({"child_paths": kept}).encode()


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
