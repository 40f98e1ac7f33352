"""Kernels compiled before they are asked for, side by side: seconds instead of silent minutes.

:func:`collecting` runs code of the package on CPU tensors with the choices that a CUDA device would
make, and notes each launch in place of it. :func:`compile_all` compiles what was noted in a pool of
processes, into triton's own cache, for a device that need not be there. A later run finds every
kernel in the cache; on another machine too, if its triton comes from the same wheel, since the key
of the cache knows the compiler and the source and no path.
"""

from __future__ import annotations

import functools
import gc
import importlib
import multiprocessing
import os
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.overrides import TorchFunctionMode
from triton.backends.compiler import GPUTarget

from ..ops._library import as_on_cuda
from ._launch import Launch, recording

_EMPTY = {
    torch.empty, torch.empty_like, torch.empty_strided, Tensor.new_empty, Tensor.new_empty_strided,
}  # fmt: skip


class _Zeros(TorchFunctionMode):
    """Memory that nobody writes here holds zeros: what follows may take them for depths or ids.

    A mode of functions and not of dispatch, below which autocast is not seen.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        return made.zero_() if func in _EMPTY else made


class Collected:
    """Launches that differ for the compiler, in the order in which they were first asked for."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self.launches: dict[tuple[Any, ...], Launch] = {}

    def take(self, launches: Iterable[Launch]) -> None:
        """Keep those that are not there yet, without the memory of their tensors."""
        for launch in launches:
            key = compiled_as(launch)
            if key not in self.launches:
                light = {name: _light(value) for name, value in launch.arguments.items()}
                self.launches[key] = launch._replace(arguments=light)


def compiled_as(launch: Launch) -> tuple[Any, ...]:
    """All of a launch that the compiler sees: what triton specialises a kernel on.

    ``launch`` is anything with ``kernel``, ``arguments`` by name and ``options``.
    """
    seen = [_seen(parameter, launch.arguments[parameter.name]) for parameter in
            launch.kernel.params]  # fmt: skip
    return (launch.kernel, *seen, *sorted(launch.options.items()))


def _seen(parameter: Any, value: Any) -> Any:
    if parameter.is_constexpr or value is None:
        return str(value)
    if isinstance(value, tuple):
        return tuple(_seen(parameter, part) for part in value)
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, float):
        return "float"
    if hasattr(value, "value"):  # a constant within a tuple
        return str(value)
    wide = not -(2**31) <= value < 2**31
    return wide, None if parameter.do_not_specialize else (value == 1, value % 16 == 0)


def _light(value: Any) -> Any:
    """An argument that the compiler takes for this one; a thousand launches hold gigabytes."""
    if isinstance(value, Tensor):
        return _stand_in(value.dtype, value.data_ptr() % 16 == 0)
    if isinstance(value, tuple):
        made = map(_light, value)
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    return value


@functools.cache
def _stand_in(dtype: torch.dtype, aligned: bool) -> Tensor:
    made = torch.zeros(32, dtype=dtype)
    return made if aligned else made[1:]


@contextmanager
def collecting(architecture: int, multiprocessors: int | None = None) -> Iterator[Collected]:
    """Note the launches of what runs inside, as they would be on a device of an architecture.

    ``multiprocessors`` as for :func:`.recording`. Everything inside lives on the CPU, ops choose as
    on CUDA, and results are zero.
    """
    collected = Collected(architecture)

    def note(launch: Launch) -> None:
        collected.take([launch])

    with as_on_cuda(), recording(architecture, multiprocessors, note), _Zeros():
        yield collected


# ---------------------------------------------------------------------- compilation


class Compiled(NamedTuple):
    """What became of a kernel.

    Attributes:
        kernel: its name.
        seconds: that it took.
        error: the compiler's words, if it failed.
        found: whether triton's cache had it.
        folders: where it is in triton's cache, names of folders there.
    """

    kernel: str
    seconds: float
    error: str | None = None
    found: bool = False
    folders: tuple[str, ...] = ()


class _Driver:
    """Triton's driver, as far as compiling for a device needs one."""

    def __init__(self, architecture: int) -> None:
        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class _Anything:
    """A module that cannot be loaded here, since it is linked with CUDA's driver."""

    def __getattr__(self, name: str) -> None:
        return None


# Set before the pool forks: its processes read it, since launches hold what cannot be sent.
_waiting: list[Launch] = []
_for_another_machine = False
# Folders of the cache that the kernel at hand was looked up in.
_asked: list[str] = []


def _start(architecture: int) -> None:
    from triton.runtime import driver

    driver.set_active(_Driver(architecture))
    _note_folders()
    if _for_another_machine:
        build = importlib.import_module("triton.runtime.build")
        setattr(build, "_load_module_from_path", lambda *_: _Anything())  # noqa: B010, private


def _note_folders() -> None:
    from triton.runtime.cache import FileCacheManager

    manager = triton.knobs.cache.manager_class or FileCacheManager

    class Noting(manager):  # type: ignore[misc, valid-type]
        def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
            super().__init__(key, override=override, dump=dump)
            if not (override or dump):
                _asked.append(key)

    triton.knobs.cache.manager_class = Noting


def _compile(number: int) -> tuple[int, Compiled]:
    """Compile one kernel, and the host code of its launch where this triton has any."""
    if number < 0:
        return number, _timed("host code", _host_code)
    launch = _waiting[number]
    return number, _timed(launch.kernel.__name__.strip("_"), lambda: _kernel(launch))


def _timed(name: str, function: Callable[[], None]) -> Compiled:
    started = time.perf_counter()
    error, found = None, True
    _asked.clear()

    def listen(*, cache_hit: bool, **_: Any) -> None:
        nonlocal found
        found = found and cache_hit

    triton.knobs.compilation.listener = listen
    try:
        function()
    except Exception as reason:  # one kernel's trouble is no other's; who asked decides
        error = f"{type(reason).__name__}: {reason}".strip()
    folders = tuple(dict.fromkeys(_asked))
    return Compiled(name, time.perf_counter() - started, error, found, folders)


def _kernel(launch: Launch) -> None:
    ordered = [launch.arguments[name] for name in launch.kernel.arg_names]
    launch.kernel.device_caches.clear()  # of the device that the parent process has
    compiled = launch.kernel.run(
        *ordered, grid=launch.grid, warmup=True, **launch.options, enable_fp_fusion=True
    )
    nvidia = importlib.import_module("triton.backends.nvidia.driver")
    if hasattr(nvidia, "make_launcher"):  # triton 3.6: a module of C for each signature
        nvidia.CudaLauncher(compiled.src, compiled.metadata)


def _host_code() -> None:
    """What triton's driver builds when it is first asked for."""
    importlib.import_module("triton.backends.nvidia.driver").CudaUtils()


@contextmanager
def _library_to_link(needed: bool) -> Iterator[None]:
    """A libcuda.so.1 without contents, where the machine has no driver: only its name is used."""
    if not needed:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.c"
        empty.write_text("", encoding="utf-8")
        subprocess.run(
            [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1",
             str(empty), "-o", f"{folder}/libcuda.so.1"], check=True, capture_output=True,
        )  # fmt: skip
        before = os.environ.get("TRITON_LIBCUDA_PATH")
        os.environ["TRITON_LIBCUDA_PATH"] = folder
        try:
            yield
        finally:
            os.environ.pop("TRITON_LIBCUDA_PATH")
            if before is not None:
                os.environ["TRITON_LIBCUDA_PATH"] = before


def compile_all(
    collected: Collected, *, jobs: int | None = None, elsewhere: bool = False,
    done: Callable[[Compiled], object] = lambda _: None,
) -> list[Compiled]:
    """Compile what was collected, unless triton's cache has it.

    Args:
        collected: by :func:`collecting`.
        jobs: processes; None: one a core.
        elsewhere: the device is on another machine; this one needs no driver.
        done: called in this process as each kernel is ready, failed ones included.

    Returns:
        One :class:`Compiled` for the driver's host code, and one a kernel, in the order of
        ``collected``. Failures are told, not raised.
    """
    global _for_another_machine
    _waiting[:] = collected.launches.values()
    # The longest would best come first; without times, the largest sources stand for them.
    order = sorted(range(len(_waiting)), key=lambda number: -len(_waiting[number].kernel.src))
    _for_another_machine = elsewhere
    jobs = max(1, min(jobs or len(os.sched_getaffinity(0)), len(_waiting) + 1))
    results: dict[int, Compiled] = {}
    gc.collect()  # a process of gigabytes cannot be forked, however little of it is in use
    with _library_to_link(elsewhere), warnings.catch_warnings():
        # Forked: a process that imports torch and triton anew takes longer than a kernel.
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(
            jobs, initializer=_start, initargs=(collected.architecture,)
        ) as pool:
            for number, result in pool.imap_unordered(_compile, [-1, *order]):
                results[number] = result
                done(result)
    _waiting.clear()
    return [results[number] for number in sorted(results)]


def cache_folder() -> Path:
    """Where triton keeps what it compiled."""
    return Path(triton.knobs.cache.dir)
