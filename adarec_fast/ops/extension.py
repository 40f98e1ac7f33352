"""The C++ and CUDA extensions: brought by a wheel, or built by ninja on first use, cached, and
loaded once.

A wheel of ``adarec-fast build --wheel`` brings the C++ extension for the torch that it was built
with (:mod:`._prebuilt`). Any other installation builds: ``csrc/`` travels with the package. The CPU
library holds ``csrc/cpu`` and ``csrc/bindings``; where torch is a CUDA build and nvcc is there, a
second one holds ``csrc/cuda``. A library is cached by the hash of its sources, flags, torch version
and processor (the CUDA one: architectures) in ``$ADAREC_FAST_CACHE`` (else
``$XDG_CACHE_HOME/adarec_fast``, else ``~/.cache/adarec_fast``), and built under a file lock, so
that processes started together build once.

Environment:
    ADAREC_FAST_NO_EXT=1     never build or load; other backends run.
    ADAREC_FAST_PORTABLE     build for these processors instead of the one at hand: ``avx512``,
                             ``avx2`` (or ``1``), ``generic`` (any; on ARM the only one).
    ADAREC_FAST_SANITIZE     compiler sanitizers, e.g. ``address,undefined`` (for tests).
    CXX, NVCC, CUDA_HOME     compilers, where ``c++`` and ``nvcc`` are not the ones wanted; ``CXX``
                             may have arguments or a launcher, ``ccache g++ -fno-plt``.
    TORCH_CUDA_ARCH_LIST     what ``adarec-fast build`` makes CUDA libraries for, e.g. ``8.0 8.6``,
                             with or without a device; else for the devices there are.
"""

from __future__ import annotations

import functools
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..files import locked as locked
from . import _plans, _prebuilt
from ._library import Implementation, provide
from ._ninja import compile_plans
from ._plans import Plan, Target, digest, environment, key, make_plan
from ._toolkit import ExtensionError as ExtensionError
from ._toolkit import NotForThisMachine as NotForThisMachine

# What it costs to do without a library, and what would help. The figures are those of
# bench/README.md, "packed eager, over ours": a training step of 256 histories, one user's answer.
_SLOWER = {
    "cpp": " (a training step takes about 6 times as long, a recommendation 9 times; a C++ "
    "compiler and `adarec-fast build` bring the extension)",
    "cuda": "",
}


def cache_dir() -> Path:
    """Where built libraries are kept.

    Raises:
        ExtensionError: there is no home, and no other folder was named.
    """
    chosen = os.environ.get("ADAREC_FAST_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser()
        return (Path(base) if base else Path.home() / ".cache") / "adarec_fast"
    except RuntimeError:  # HOME is not set, and the system does not know the user
        raise ExtensionError(
            "there is no home folder to keep what is built in (HOME is not set, and user "
            f"{os.getuid()} has no entry); set ADAREC_FAST_CACHE to a writable folder"
        ) from None


def _library(plan: Plan) -> Path:
    return cache_dir() / f"{plan.name}-{key(plan)}.so"


def build(
    backend: str = "cpp", *, architectures: tuple[str, ...] | None = None, verbose: bool = True
) -> Path:
    """Build a backend's library, unless this installation brings it or it is in the cache.

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
    plan = make_plan(backend, architectures)
    if backend == "cpp":
        try:
            brought = _brought()
            if brought is not None:
                return brought
        except _prebuilt.Unfit as reason:
            why = f"the extension that this installation brings {reason}; "
            return _compiled([plan], verbose, why)[0]
    return _compiled([plan], verbose)[0]


def build_for(targets: Sequence[Target], *, verbose: bool = True) -> list[Path]:
    """Build the C++ extension for several kinds of processor, be it this one or not, as
    :func:`build` does; a library each."""
    return _compiled([make_plan("cpp", target=target) for target in targets], verbose)


def _brought() -> Path | None:
    """The C++ library that the installation brings for this processor or the one asked for."""
    target = _plans.asked_target() or _plans.best_target()
    return _prebuilt.find(make_plan("cpp", target=target), target)


def _compiled(plans: Sequence[Plan], verbose: bool, why: str = "") -> list[Path]:
    libraries = {_library(plan): plan for plan in plans}
    if all(library.exists() for library in libraries):
        return list(libraries)
    folder = cache_dir() / f"build-{digest(*map(environment, plans))}"
    summary = ", ".join(dict.fromkeys(plan.summary for plan in plans))
    files = len({unit for plan in plans for unit in plan.units})
    started = time.perf_counter()
    ending = "failed"
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        _say(verbose, f"adarec_fast: {why}building the {summary} ({files} files) ... ")
        try:
            with locked(folder.with_suffix(".lock")):
                # Another process may have built it while this one waited for the lock.
                if all(library.exists() for library in libraries):
                    ending = "another process did"
                else:
                    compile_plans(libraries, folder, lambda done: _say(verbose, f"{done}% ... "))
                    ending = "done"
        finally:
            elapsed = time.perf_counter() - started
            _say(verbose, f"{ending} in {elapsed:.1f} s: {', '.join(map(str, libraries))}\n")
    except OSError as error:
        raise ExtensionError(
            f"cannot write {cache_dir()} ({error.strerror}); set ADAREC_FAST_CACHE to a writable "
            f"folder"
        ) from error
    return list(libraries)


_LOADED: dict[str, Path] = {}


def _say(verbose: bool, text: str) -> None:
    if verbose:
        sys.stderr.write(text)
        sys.stderr.flush()


@functools.cache
def _load(backend: str) -> str | None:
    """Load a backend's library once a process; the reason if it cannot be had, else None."""
    try:
        _check_processor()
        library = build(backend)
        try:
            _open(library)
        except ExtensionError as reason:
            if library.parent != _prebuilt.FOLDER:
                raise
            # Its builder's C library may be newer.
            library = _compiled([make_plan(backend)], True, f"{reason}; ")[0]
            _open(library)
        _LOADED[backend] = library
    except ExtensionError as error:
        # A machine without a GPU or nvcc is no reason to warn; `adarec-fast info` says it.
        usual = isinstance(error, NotForThisMachine) or not torch.cuda.is_available()
        if backend == "cpp" or not usual:
            warnings.warn(
                f"adarec_fast: the {backend} extension is not used, slower backends run instead"
                f"{_SLOWER[backend]}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
        return str(error)
    return None


def _open(library: Path) -> None:
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        # torch says only that it could not; the loader's own words are the cause of that.
        reason = str(error.__cause__ or error).removeprefix(f"{library}: ")
        raise ExtensionError(
            f"cannot load {library}: {reason}; remove it to have it built again, or set "
            "ADAREC_FAST_CACHE to a folder that programs may run from (not mounted noexec)"
        ) from error


def _check_processor() -> None:
    target = _plans.asked_target()
    lacking = [] if target is None else _plans.missing(target)
    if lacking:
        raise ExtensionError(
            f"{_plans.PORTABLE}={os.environ[_plans.PORTABLE]}: this processor has no "
            f"{', '.join(lacking)}; a library for it can be built here, but not run"
        )


def loaded(backend: str) -> str | None:
    """Which library runs a backend's ops, and whether it was built here; None where none does.
    Builds and loads it as :func:`unavailable` does."""
    if unavailable(backend) is not None:
        return None
    library = _LOADED[backend]
    if library.parent == _prebuilt.FOLDER:
        return f"{library} (came with the installation)"
    try:
        _brought()
    except _prebuilt.Unfit as reason:
        return f"{library} (built here: what came with the installation {reason})"
    return f"{library} (built here)"


def unavailable(backend: str) -> str | None:
    """Why a backend's library cannot be used, or None. Builds and loads it on the first call.

    The first failure of a process warns (RuntimeWarning), once.
    """
    return _load(backend)


def functions(name: str, backend: str) -> tuple[Callable[..., Any], ...]:
    """An op's forward and backward in a backend's library, and the pair that keeps, if there.

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
    pairs = ("bwd", "keep", "resume") if hasattr(namespace, f"{name}_keep") else ("bwd",)
    return forward, *(getattr(namespace, f"{name}_{suffix}").default for suffix in pairs)


def _no_backward(*_: Any) -> Any:
    raise ExtensionError("this op has no gradient")


provide("cpp", lambda name: Implementation(*functions(name, "cpp")), lambda: unavailable("cpp"))
provide("cuda", lambda name: Implementation(*functions(name, "cuda")), lambda: unavailable("cuda"))
