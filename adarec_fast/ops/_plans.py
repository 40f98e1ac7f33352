"""What decides an extension's contents: sources, flags, torch, the processor; and their hash."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import platform
import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from . import _toolkit
from ._toolkit import ExtensionError, NotForThisMachine

SOURCES = Path(__file__).resolve().parent.parent / "csrc"
BACKENDS = ("cpp", "cuda")


class Unit(NamedTuple):
    """One file to compile; ``tool`` is "cxx" or "nvcc"."""

    source: Path
    tool: str
    flags: str


class Plan(NamedTuple):
    """All that decides a library's contents. Which compiler is there does not: a machine without
    one can load what another has built."""

    name: str
    units: list[Unit]
    link_flags: str
    summary: str
    # A header that the units of this tool and these flags share, compiled once.
    prefix: Unit | None = None
    # Whether the library is for the processor at hand alone.
    native: bool = False


def _processor() -> dict[str, str]:
    """``model name`` and ``flags`` of the first processor; empty where the system hides them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    fields = (line.partition(":") for line in text.splitlines())
    wanted = ("model name", "flags")
    return {key.strip(): value.strip() for key, _, value in fields if key.strip() in wanted}


def _torch_folder() -> Path:
    return Path(torch.__file__).resolve().parent


def _gomp() -> str:
    # Torch's own copy: a second OpenMP runtime would not follow torch.set_num_threads.
    found = sorted((_torch_folder() / "lib").glob("libgomp*.so*"))
    return shlex.quote(str(found[0])) if found else "-lgomp"


def _portable() -> bool:
    return os.environ.get("ADAREC_FAST_PORTABLE") == "1"


def _host_flags(processor: str) -> str:
    flags = [
        "-std=c++20", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden",
        f"-march={processor}",
        # Vector types as template arguments lose an alignment attribute that is not needed here;
        # gcc's own intrinsic headers read registers that they call undefined.
        "-Wall", "-Wno-ignored-attributes", "-Wno-maybe-uninitialized", "-Wno-uninitialized",
        "-Wno-unknown-pragmas",
    ]
    sanitize = os.environ.get("ADAREC_FAST_SANITIZE")
    if sanitize:
        flags += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=undefined", "-g",
                  "-fno-omit-frame-pointer"]
    return " ".join(flags)


def _torch_flags() -> str:
    include = _torch_folder() / "include"
    return " ".join([
        "-fopenmp", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        f"-isystem {shlex.quote(str(include))}",
        f"-isystem {shlex.quote(str(include / 'torch/csrc/api/include'))}",
    ])


def _link_flags(*libraries: str) -> str:
    folder = shlex.quote(str(_torch_folder() / "lib"))
    sanitize = os.environ.get("ADAREC_FAST_SANITIZE")
    extra = [f"-fsanitize={sanitize}"] if sanitize else []
    return " ".join(["-shared", f"-L{folder}", *(f"-l{name}" for name in libraries), *extra])


def compiler() -> list[str]:
    """The C++ compiler's program, found, and its arguments: ``CXX`` as a shell would split it.

    Raises:
        ExtensionError: there is none, or ``CXX`` names none.
    """
    chosen = os.environ.get("CXX", "").strip()
    if shutil.which(chosen):  # a path with blanks
        return [str(shutil.which(chosen))]
    try:
        words = shlex.split(chosen)
    except ValueError as error:
        raise ExtensionError(f"CXX={chosen!r} is no command: {error}") from None
    for name in words[:1] or ["c++", "g++", "clang++"]:
        found = shutil.which(name)
        if found:
            return [found, *words[1:]]
    if words:
        told = f": {words[0]!r}" if len(words) > 1 else ""
        raise ExtensionError(f"CXX={chosen!r}{told} is not a program")
    raise ExtensionError(
        "no C++ compiler found (looked for c++, g++, clang++); install one or set CXX"
    )


def host_compiler(words: list[str]) -> list[str]:
    """nvcc's options for that compiler: it takes one program, without a launcher before it."""
    programs = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    options = words[len(programs) :]
    return ["-ccbin", programs[-1], *(part for word in options for part in ("-Xcompiler", word))]


def _plan_cpp() -> Plan:
    host = _host_flags("x86-64-v3" if _portable() else "native")
    bound = _torch_flags()
    kernels = sorted((SOURCES / "cpu").glob("*.cpp"))
    bindings = [
        SOURCES / "bindings.cpp",
        *(p for p in sorted((SOURCES / "bindings").glob("*.cpp")) if p.stem[-5:] != "_cuda"),
    ]
    # Bindings only check and forward: optimising torch's headers would cost build time for
    # nothing. They take the longest, so they go first.
    units = [Unit(p, "cxx", f"-O1 {host} {bound}") for p in bindings]
    # Instrumented code takes gcc ten times as long to optimise, and only tests run it.
    level = "-O1" if os.environ.get("ADAREC_FAST_SANITIZE") else "-O3"
    units += [Unit(p, "cxx", f"{level} {host}") for p in kernels]
    return Plan(
        "adarec_fast_cpp", units, f"{_link_flags('torch_cpu', 'c10')} {_gomp()}",
        f"C++ extension for {'AVX2' if _portable() else 'this processor'}",
        Unit(SOURCES / "bindings/common.h", "cxx", units[0].flags), native=not _portable(),
    )


def _plan_cuda(architectures: tuple[str, ...]) -> Plan:
    targets = " ".join(f"-gencode arch=compute_{a},code=sm_{a}" for a in architectures)
    # What lies in the toolkit is found when it is needed: see _ninja_file.
    kernel = f"-O3 -std=c++17 {targets} -Xcompiler -fPIC $host $cuda_includes"
    units = [Unit(p, "nvcc", kernel) for p in sorted((SOURCES / "cuda").glob("*.cu"))]
    # Only the kernels take time, so the host's part may run on any processor.
    bound = f"-O1 {_host_flags('x86-64-v3')} {_torch_flags()} $cuda_includes"
    units += [Unit(p, "cxx", bound) for p in sorted((SOURCES / "bindings").glob("*_cuda.cpp"))]
    if not units:
        raise ExtensionError("this installation holds no CUDA sources")
    libraries = _link_flags("torch_cpu", "torch_cuda", "c10", "c10_cuda")
    # A machine that builds need not be one that can load: what is missing shows here.
    flags = f"-Wl,--no-undefined {libraries} $cuda_runtime"
    names = ", ".join(f"sm_{a}" for a in architectures)
    return Plan("adarec_fast_cuda", units, flags, f"CUDA extension for {names}")


@functools.cache
def _read(path: Path, modified: int) -> bytes:
    return path.read_bytes()


def _local_files(source: Path) -> list[Path]:
    """The source and every file of csrc it includes, directly or not, sorted."""
    seen: set[Path] = set()
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        text = _read(path, path.stat().st_mtime_ns).decode()
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE):
            for folder in (path.parent, SOURCES):
                if (folder / name).is_file():
                    waiting.append((folder / name).resolve())
                    break
    return sorted(seen)


def digest(*parts: str | bytes) -> str:
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()[:20]


def content(source: Path) -> str:
    return digest(*(_read(path, path.stat().st_mtime_ns) for path in _local_files(source)))


def environment(plan: Plan) -> str:
    """Hash of all that decides the objects, less the sources' contents.

    Folders do not: a library that was built elsewhere by the same torch is found. A C library does
    for code of this processor alone: one that is for others is to run beside a newer one, too.
    """
    processor = _processor() if plan.native else {}
    parts = [*sorted({f"{unit.tool} {unit.flags}" for unit in plan.units}), plan.link_flags]
    for folder, name in ((_torch_folder(), "<torch>"), (SOURCES, "<csrc>")):
        parts = [part.replace(str(folder), name) for part in parts]
    return digest(
        plan.name, *parts, torch.__version__, str(torch.version.cuda), platform.machine(),
        *(platform.libc_ver() if plan.native else ()), processor.get("model name", ""),
        processor.get("flags", ""),
    )


def make_plan(backend: str, architectures: tuple[str, ...] | None = None) -> Plan:
    if backend not in BACKENDS:
        raise ExtensionError(f"backend={backend!r} is not one of {', '.join(BACKENDS)}")
    if os.environ.get("ADAREC_FAST_NO_EXT") == "1":
        raise ExtensionError("ADAREC_FAST_NO_EXT=1 is set")
    if platform.machine() not in ("x86_64", "AMD64") or platform.system() != "Linux":
        raise ExtensionError(
            f"written for Linux on x86-64, not {platform.system()} on {platform.machine()}"
        )
    if not {"avx2", "fma"} <= set(_processor().get("flags", "avx2 fma").split()):
        raise ExtensionError("the processor has no AVX2 and FMA")
    if backend == "cpp":
        return _plan_cpp()
    if torch.version.cuda is None:
        raise NotForThisMachine(f"torch {torch.__version__} is not a CUDA build")
    return _plan_cuda(architectures or _toolkit.device_architectures())
