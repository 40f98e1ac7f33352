"""The C++ and CUDA extensions: built by ninja on first use, cached, loaded once.

``csrc/`` travels with the package. The CPU library holds ``csrc/cpu`` and ``csrc/bindings``; where
torch is a CUDA build and nvcc is there, a second one holds ``csrc/cuda``. A library is cached by
the hash of its sources, flags, torch version and processor (the CUDA one: architectures) in
``$ADAREC_FAST_CACHE`` (else ``$XDG_CACHE_HOME/adarec_fast``, else ``~/.cache/adarec_fast``), and
built under a file lock, so that processes started together build once.

Environment:
    ADAREC_FAST_NO_EXT=1     never build or load; other backends run.
    ADAREC_FAST_PORTABLE=1   build for AVX2 (x86-64-v3) instead of the machine at hand.
    ADAREC_FAST_SANITIZE     compiler sanitizers, e.g. ``address,undefined`` (for tests).
    CXX, NVCC, CUDA_HOME     compilers, where ``c++`` and ``nvcc`` are not the ones wanted.
    TORCH_CUDA_ARCH_LIST     what ``adarec-fast build`` makes CUDA libraries for, e.g. ``8.0 8.6``,
                             with or without a device; else for the devices there are.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import _toolkit
from ._library import Implementation, provide
from ._toolkit import ExtensionError as ExtensionError
from ._toolkit import NotForThisMachine as NotForThisMachine

SOURCES = Path(__file__).resolve().parent.parent / "csrc"
BACKENDS = ("cpp", "cuda")
_PREFIX = "prefix.h"
_NINJA_RULES = """\
ninja_required_version = 1.5
rule compile
  command = $tool $flags -c $in -o $out # $content
rule header
  command = $tool $flags -x c++-header -c $in -o $out # $content
rule link
  command = $cxx $in -o $out $flags
"""


class _Unit(NamedTuple):
    """One file to compile; ``tool`` is "cxx" or "nvcc"."""

    source: Path
    tool: str
    flags: str


class _Plan(NamedTuple):
    """All that decides a library's contents. Which compiler is there does not: a machine without
    one can load what another has built."""

    name: str
    units: list[_Unit]
    link_flags: str
    summary: str
    # A header that the units of this tool and these flags share, compiled once.
    prefix: _Unit | None = None
    # Whether the library is for the processor at hand alone.
    native: bool = False


def cache_dir() -> Path:
    """Where built libraries are kept."""
    chosen = os.environ.get("ADAREC_FAST_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "adarec_fast"


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


def _compiler() -> str:
    chosen = os.environ.get("CXX")
    for name in [chosen] if chosen else ["c++", "g++", "clang++"]:
        found = shutil.which(name)
        if found:
            return shlex.quote(found)
    raise ExtensionError(
        f"CXX={chosen!r} is not a program" if chosen
        else "no C++ compiler found (looked for c++, g++, clang++); install one or set CXX"
    )


def _plan_cpp() -> _Plan:
    host = _host_flags("x86-64-v3" if _portable() else "native")
    bound = _torch_flags()
    kernels = sorted((SOURCES / "cpu").glob("*.cpp"))
    bindings = [
        SOURCES / "bindings.cpp",
        *(p for p in sorted((SOURCES / "bindings").glob("*.cpp")) if p.stem[-5:] != "_cuda"),
    ]
    # Bindings only check and forward: optimising torch's headers would cost build time for
    # nothing. They take the longest, so they go first.
    units = [_Unit(p, "cxx", f"-O1 {host} {bound}") for p in bindings]
    # Instrumented code takes gcc ten times as long to optimise, and only tests run it.
    level = "-O1" if os.environ.get("ADAREC_FAST_SANITIZE") else "-O3"
    units += [_Unit(p, "cxx", f"{level} {host}") for p in kernels]
    return _Plan(
        "adarec_fast_cpp", units, f"{_link_flags('torch_cpu', 'c10')} {_gomp()}",
        f"C++ extension for {'AVX2' if _portable() else 'this processor'}",
        _Unit(SOURCES / "bindings/common.h", "cxx", units[0].flags), native=not _portable(),
    )


def _plan_cuda(architectures: tuple[str, ...]) -> _Plan:
    targets = " ".join(f"-gencode arch=compute_{a},code=sm_{a}" for a in architectures)
    # What lies in the toolkit is found when it is needed: see _ninja_file.
    kernel = f"-O3 -std=c++17 {targets} -Xcompiler -fPIC -ccbin $cxx $cuda_includes"
    units = [_Unit(p, "nvcc", kernel) for p in sorted((SOURCES / "cuda").glob("*.cu"))]
    # Only the kernels take time, so the host's part may run on any processor.
    bound = f"-O1 {_host_flags('x86-64-v3')} {_torch_flags()} $cuda_includes"
    units += [_Unit(p, "cxx", bound) for p in sorted((SOURCES / "bindings").glob("*_cuda.cpp"))]
    if not units:
        raise ExtensionError("this installation holds no CUDA sources")
    libraries = _link_flags("torch_cpu", "torch_cuda", "c10", "c10_cuda")
    # A machine that builds need not be one that can load: what is missing shows here.
    flags = f"-Wl,--no-undefined {libraries} $cuda_runtime"
    names = ", ".join(f"sm_{a}" for a in architectures)
    return _Plan("adarec_fast_cuda", units, flags, f"CUDA extension for {names}")


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


def _digest(*parts: str | bytes) -> str:
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()[:20]


def _content(source: Path) -> str:
    return _digest(*(_read(path, path.stat().st_mtime_ns) for path in _local_files(source)))


def _environment(plan: _Plan) -> str:
    """Hash of all that decides the objects, less the sources' contents.

    Folders do not: a library that was built elsewhere by the same torch is found. A C library does
    for code of this processor alone: one that is for others is to run beside a newer one, too.
    """
    processor = _processor() if plan.native else {}
    parts = [*sorted({f"{unit.tool} {unit.flags}" for unit in plan.units}), plan.link_flags]
    for folder, name in ((_torch_folder(), "<torch>"), (SOURCES, "<csrc>")):
        parts = [part.replace(str(folder), name) for part in parts]
    return _digest(
        plan.name, *parts, torch.__version__, str(torch.version.cuda), platform.machine(),
        *(platform.libc_ver() if plan.native else ()), processor.get("model name", ""),
        processor.get("flags", ""),
    )


def _library(plan: _Plan) -> Path:
    contents = [f"{u.source.name} {_content(u.source)}" for u in plan.units]
    return cache_dir() / f"{plan.name}-{_digest(_environment(plan), *contents)}.so"


def _ninja() -> str:
    # The package's binary need not be on PATH, e.g. when python is started by its full name.
    if importlib.util.find_spec("ninja") is not None:
        import ninja

        candidate = Path(ninja.BIN_DIR) / "ninja"
        if candidate.exists():
            return str(candidate)
    found = shutil.which("ninja")
    if found is None:
        raise ExtensionError("ninja is not there; pip install ninja")
    return found


def _escape(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def _edge(rule: str, unit: _Unit, target: str, flags: str = "", needs: str = "") -> str:
    # The contents' hash is part of the command, so ninja does not depend on file times.
    return (
        f"build {target}: {rule} {_escape(unit.source)}{needs}\n"
        f"  tool = ${unit.tool}\n"
        f"  flags = {unit.flags} -I{shlex.quote(str(SOURCES))}{flags}\n"
        f"  content = {_content(unit.source)}\n"
    )


def _ninja_file(plan: _Plan, folder: Path) -> str:
    lines = [f"cxx = {_compiler()}\n"]
    if any(unit.tool == "nvcc" for unit in plan.units):
        kit = _toolkit.toolkit(_compiler())
        includes = (f"-isystem {shlex.quote(str(folder))}" for folder in kit.includes)
        lines.append(f"nvcc = {shlex.quote(str(kit.nvcc))}\n")
        lines.append(f"cuda_includes = {' '.join(includes)}\n")
        lines.append(f"cuda_runtime = {shlex.quote(str(kit.runtime))}\n")
    lines.append(_NINJA_RULES)
    objects = []
    if plan.prefix is not None:
        header = plan.prefix._replace(source=folder / _PREFIX)
        lines.append(_edge("header", header, f"{_PREFIX}.gch"))
    for unit in plan.units:
        objects.append(f"objects/{unit.source.parent.name}_{unit.source.name}.o")
        prefixed = plan.prefix is not None and unit[1:] == plan.prefix[1:]
        extra = (f" -include {_PREFIX}", f" || {_PREFIX}.gch") if prefixed else ()
        lines.append(_edge("compile", unit, objects[-1], *extra))
    lines.append(
        f"build {plan.name}.so: link {' '.join(objects)}\n  flags = {plan.link_flags}\n"
    )
    return "".join(lines)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` against other processes."""
    import fcntl

    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _compile(plan: _Plan, library: Path, folder: Path) -> None:
    """Run ninja in ``folder``; the library appears under its name whole or not at all."""
    folder.mkdir(exist_ok=True)
    if plan.prefix is not None:
        # What a compiler reads that does not take to the compiled header.
        text = f'#include "{plan.prefix.source}"\n'
        (folder / _PREFIX).write_text(text, encoding="utf-8")
    (folder / "build.ninja").write_text(_ninja_file(plan, folder), encoding="utf-8")
    done = subprocess.run([_ninja(), "-C", str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        lines = [s for s in done.stdout.splitlines() if re.search("error|fatal", s.lower())]
        lines = (lines or done.stdout.splitlines() or done.stderr.splitlines())[:12]
        raise ExtensionError("the compiler failed:\n  " + "\n  ".join(lines))
    # It is large, and quickly made again for the next change.
    (folder / f"{_PREFIX}.gch").unlink(missing_ok=True)
    staged = library.with_name(f"{library.name}.{os.getpid()}")
    shutil.copyfile(folder / f"{plan.name}.so", staged)
    os.replace(staged, library)


def _plan(backend: str, architectures: tuple[str, ...] | None = None) -> _Plan:
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


def build(
    backend: str = "cpp", *, architectures: tuple[str, ...] | None = None, verbose: bool = True
) -> Path:
    """Build a backend's library unless it is in the cache.

    Args:
        backend: ``"cpp"`` or ``"cuda"``.
        architectures: what a CUDA library is for, e.g. ``("86",)`` for sm_86; None: the devices
            there are.
        verbose: say on stderr, in one line, what is built, how long it took and where it lies.

    Returns:
        The library's path.

    Raises:
        NotForThisMachine: a CUDA library, where torch is no CUDA build, no device is there to
            build for, or no nvcc.
        ExtensionError: no compiler, a failing one, a cache that cannot be written, or an unfit
            machine.
    """
    plan = _plan(backend, architectures)
    library = _library(plan)
    if library.exists():
        return library
    folder = cache_dir() / f"build-{_environment(plan)}"
    started = time.perf_counter()
    ending = "failed"
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        _say(verbose, f"adarec_fast: building the {plan.summary} ({len(plan.units)} files) ... ")
        try:
            with locked(folder.with_suffix(".lock")):
                # Another process may have built it while this one waited for the lock.
                if library.exists():
                    ending = "another process did"
                else:
                    _compile(plan, library, folder)
                    ending = "done"
        finally:
            elapsed = time.perf_counter() - started
            _say(verbose, f"{ending} in {elapsed:.1f} s: {library}\n")
    except OSError as error:
        raise ExtensionError(
            f"cannot write {cache_dir()} ({error.strerror}); set ADAREC_FAST_CACHE to a writable "
            f"folder"
        ) from error
    return library


def _say(verbose: bool, text: str) -> None:
    if verbose:
        sys.stderr.write(text)
        sys.stderr.flush()


@functools.cache
def _load(backend: str) -> str | None:
    """Load a backend's library once a process; the reason if it cannot be had, else None."""
    try:
        library = build(backend)
        try:
            torch.ops.load_library(str(library))
        except OSError as error:
            raise ExtensionError(f"cannot load {library}: {error}") from error
    except ExtensionError as error:
        # A machine without a GPU or nvcc is no reason to warn; `adarec-fast info` says it.
        usual = isinstance(error, NotForThisMachine) or not torch.cuda.is_available()
        if backend == "cpp" or not usual:
            warnings.warn(
                f"adarec_fast: the {backend} extension is not used, slower backends run instead: "
                f"{error}",
                RuntimeWarning,
                stacklevel=2,
            )
        return str(error)
    return None


def unavailable(backend: str) -> str | None:
    """Why a backend's library cannot be used, or None. Builds and loads it on the first call.

    The first failure of a process warns (RuntimeWarning), once.
    """
    return _load(backend)


def functions(name: str, backend: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """An op's forward and backward in a backend's library.

    Raises:
        ExtensionError: the library cannot be had, or does not hold the op.
    """
    reason = unavailable(backend)
    if reason is not None:
        raise ExtensionError(f"backend {backend!r} cannot run {name}: {reason}")
    namespace = getattr(torch.ops, f"adarec_fast_{backend}")
    if not hasattr(namespace, f"{name}_fwd"):
        raise ExtensionError(f"the {backend} extension has no op {name}")
    forward = getattr(namespace, f"{name}_fwd").default
    if not hasattr(namespace, f"{name}_bwd"):
        return forward, _no_backward
    return forward, getattr(namespace, f"{name}_bwd").default


def _no_backward(*_: Any) -> Any:
    raise ExtensionError("this op has no gradient")


provide("cpp", lambda name: Implementation(*functions(name, "cpp")), lambda: unavailable("cpp"))
provide("cuda", lambda name: Implementation(*functions(name, "cuda")), lambda: unavailable("cuda"))
