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
    # Whether the library is for the processor at hand alone.
    native: bool = False


class Target(NamedTuple):
    """Processors that one set of kernels is for: the compiler's name for them, and the flags of
    ``/proc/cpuinfo`` that they have."""

    name: str
    march: str
    needs: frozenset[str]


PORTABLE = "ADAREC_FAST_PORTABLE"
_V2 = frozenset(["cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"])
_V3 = _V2 | frozenset(["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"])
_V4 = _V3 | frozenset(["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"])
# Best first.
_TARGETS = {
    "x86_64": (
        Target("avx512", "x86-64-v4", _V4),
        Target("avx2", "x86-64-v3", _V3),
        Target("generic", "x86-64-v2", _V2),
    ),
    "aarch64": (Target("generic", "armv8-a", frozenset()),),
}
_SAID = {
    "": "this processor", "avx512": "AVX-512", "avx2": "AVX2", "generic": "any processor",
}
_SAME_MACHINE = {"AMD64": "x86_64", "arm64": "aarch64"}


def targets() -> tuple[Target, ...]:
    """What this kind of machine has kernels for, best first; empty for another kind."""
    machine = platform.machine()
    return _TARGETS.get(_SAME_MACHINE.get(machine, machine), ())


def missing(target: Target) -> list[str]:
    """What this machine's processor lacks for a target; nothing where the system hides it."""
    flags = _processor().get("flags")
    return [] if flags is None else sorted(target.needs - set(flags.split()))


def asked_target() -> Target | None:
    """The target that ``ADAREC_FAST_PORTABLE`` names; ``1`` is AVX2, or all there is on ARM.

    Raises:
        ExtensionError: it names none.
    """
    value = os.environ.get(PORTABLE, "")
    if value in ("", "0"):
        return None
    known = {target.name: target for target in targets()}
    known["1"] = known.get("avx2", next(iter(known.values())))
    if value not in known:
        raise ExtensionError(f"{PORTABLE}={value!r} is not one of {', '.join(known)}")
    return known[value]


def best_target() -> Target | None:
    """The best target that the processor at hand can run, or None."""
    return next((target for target in targets() if not missing(target)), None)


@functools.cache
def _processor() -> dict[str, str]:
    """``model name`` and ``flags`` of the first processor; empty where the system hides them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    fields = (line.partition(":") for line in text.splitlines())
    wanted = ("model name", "flags", "Features", "CPU part")
    found = {key.strip(): value.strip() for key, _, value in fields if key.strip() in wanted}
    # ARM's names for the two.
    names = {"Features": "flags", "CPU part": "model name"}
    return {names.get(key, key): value for key, value in found.items()}


def _torch_folder() -> Path:
    return Path(torch.__file__).resolve().parent


def _gomp() -> str:
    # Torch's own copy: a second OpenMP runtime would not follow torch.set_num_threads.
    found = sorted((_torch_folder() / "lib").glob("libgomp*.so*"))
    return shlex.quote(str(found[0])) if found else "-lgomp"


def _host_flags(processor: str = "") -> str:
    flags = [
        "-std=c++20", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden",
        *filter(None, [processor]),
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


def _plan_cpp(target: Target | None) -> Plan:
    # Bindings only check and forward: optimising torch's headers would cost build time for
    # nothing. They run anywhere, so that libraries for several targets share them. They are one
    # unit, the longest, so it goes first.
    units = [Unit(SOURCES / "bindings.cpp", "cxx", f"-O1 {_host_flags()} {_torch_flags()}")]
    if target is not None:
        processor = f"-march={target.march}"
    else:
        processor = "-march=native" if "x86" in platform.machine() else "-mcpu=native"
    # Instrumented code takes gcc ten times as long to optimise, and only tests run it.
    level = "-O1" if os.environ.get("ADAREC_FAST_SANITIZE") else "-O3"
    kernel = f"{level} {_host_flags(processor)}"
    units += [Unit(p, "cxx", kernel) for p in sorted((SOURCES / "cpu").glob("*.cpp"))]
    return Plan(
        "adarec_fast_cpp", units, f"{_link_flags('torch_cpu', 'c10')} {_gomp()}",
        f"C++ extension for {_SAID.get('' if target is None else target.name)}",
        native=target is None,
    )


def _plan_cuda(architectures: tuple[str, ...]) -> Plan:
    targets = " ".join(f"-gencode arch=compute_{a},code=sm_{a}" for a in architectures)
    # What lies in the toolkit is found when it is needed: see _ninja_file.
    kernel = f"-O3 -std=c++17 {targets} -Xcompiler -fPIC $host $cuda_includes"
    units = [Unit(p, "nvcc", kernel) for p in sorted((SOURCES / "cuda").glob("*.cu"))]
    # Only the kernels take time, so the host's part may run on any processor.
    bound = f"-O1 {_host_flags()} {_torch_flags()} $cuda_includes"
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
    # Links resolved, so that the order is that of an installation without links as well.
    waiting = [source.resolve()]
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


def key(plan: Plan) -> str:
    """Hash of all that decides a library's contents."""
    return digest(environment(plan), *(f"{u.source.name} {content(u.source)}" for u in plan.units))


def make_plan(
    backend: str, architectures: tuple[str, ...] | None = None, target: Target | None = None
) -> Plan:
    """What is to be built: for CUDA's ``architectures`` (None: of the devices there are), or the
    C++ extension for ``target`` (None: what ``ADAREC_FAST_PORTABLE`` names, else this processor).

    Raises:
        ExtensionError: an unknown backend, a machine of another kind, no CUDA.
    """
    if backend not in BACKENDS:
        raise ExtensionError(f"backend={backend!r} is not one of {', '.join(BACKENDS)}")
    if os.environ.get("ADAREC_FAST_NO_EXT") == "1":
        raise ExtensionError("ADAREC_FAST_NO_EXT=1 is set")
    if not targets() or platform.system() != "Linux":
        raise ExtensionError(
            f"written for Linux on x86-64 and aarch64, not {platform.system()} on "
            f"{platform.machine()}"
        )
    if backend == "cpp":
        return _plan_cpp(target or asked_target())
    if torch.version.cuda is None:
        raise NotForThisMachine(f"torch {torch.__version__} is not a CUDA build")
    return _plan_cuda(architectures or _toolkit.device_architectures())
