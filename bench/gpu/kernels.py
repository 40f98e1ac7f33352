"""Which kernels the phases ask for, collected without a GPU."""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from adarec_fast.kernels._launch import recording
from adarec_fast.kernels._prewarm import Collected, Compiled, collecting, compile_all
from adarec_fast.ops import _library
from adarec_fast.ops._library import Implementation, as_on_cuda

from .phases.tests import files
from .plan import Phase

ROOT = Path(__file__).parents[2]


def collect(
    phases: tuple[Phase, ...], architecture: int, say: Callable[[str], object] = print
) -> Collected:
    """The launches of the phases, each once.

    Raises:
        RuntimeError: the tests could not be run through.
    """
    collected = Collected(architecture)
    for phase in phases:
        before = len(collected.launches)
        if collect_phase(phase, collected):
            new = len(collected.launches) - before
            say(f"{phase.name}: {new} kernels that no phase before has")
    return collected


def collect_phase(phase: Phase, collected: Collected) -> bool:
    """Add a phase's launches to ``collected``; whether it has any of its own.

    Raises:
        RuntimeError: the tests could not be run through.
    """
    if phase.name == "tests":
        collect_tests(collected, [str(ROOT / name) for name in files()])
        return True
    work = getattr(importlib.import_module(f"bench.gpu.phases.{phase.name}"), "kernels", None)
    if work is None:
        return False
    with collecting(collected.architecture) as found:
        work("cpu")
    collected.take(found.launches.values())
    return True


def compile_phase(
    phase: Phase, architecture: int, jobs: int | None = None,
    done: Callable[[Compiled], object] = lambda _: None,
) -> list[Compiled] | None:  # fmt: skip
    """List a phase's kernels and compile or find them, in a process of its own as on the device.

    What one phase loads and leaves behind is so none of the next one's. None: it has no kernels.

    Raises:
        RuntimeError: they could not be listed; the process has said why.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def work() -> None:
        collected = Collected(architecture)
        found = collect_phase(phase, collected)
        theirs.send(compile_all(collected, jobs=jobs, elsewhere=True, done=done) if found else None)

    process = context.Process(target=work)
    process.start()
    theirs.close()
    try:
        results: list[Compiled] | None = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the kernels of the phase {phase.name} could not be listed") from None
    process.join()
    return results


def collect_tests(collected: Collected, names: list[str]) -> None:
    """Run the tests marked ``gpu`` on the CPU: values by packed PyTorch, launches noted beside.

    Args:
        collected: gets what they launch, that of the most telling tests first.
        names: files or tests.

    Raises:
        RuntimeError: some do not pass, so that what they launch is not known; all are named.
    """
    said = io.StringIO()
    layouts = _Layouts()
    with as_on_cuda(), _noting(collected, layouts), contextlib.redirect_stdout(said):
        status = pytest.main(
            [*names, "-m", "gpu", "-q", "-p", "no:cacheprovider", "-p", "bench.gpu.outcomes",
             "--tb=line", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")],
            plugins=[layouts],
        )  # fmt: skip
    if status != pytest.ExitCode.OK:
        raise RuntimeError(
            "the tests marked gpu do not pass on the CPU, so that what they launch is not known:\n"
            + said.getvalue()[-10_000:]
        )


class _Layouts:
    """What packed PyTorch keeps for its backward pass, and how the launcher has it.

    Each backend saves what it likes, so that the launcher's backward pass cannot take what packed
    PyTorch saved. It gets a tensor of the shape and dtype that its own forward pass made, which is
    all that a launch depends on. Known by its memory: autograd hands out another tensor.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, torch.Size, torch.dtype]] = {}

    def learn(self, found: Any, made: Any) -> Any:
        """Results of packed PyTorch and of the launcher: the first, to be known again."""
        if isinstance(found, tuple):
            pairs = zip(found, made, strict=True)
            return tuple(self.learn(one, other) for one, other in pairs)
        if not isinstance(found, Tensor) or (found.shape, found.dtype) == (made.shape, made.dtype):
            return found
        if not found.numel():  # memory to be known by
            found = found.new_empty(1).as_strided(found.shape, found.stride())
        self._known[found.untyped_storage().data_ptr()] = found, made.shape, made.dtype
        return found

    def own(self, argument: Any) -> Any:
        """The argument, or zeros in its place as the launcher would have made it."""
        if not isinstance(argument, Tensor):
            return argument
        known = self._known.get(argument.untyped_storage().data_ptr())
        if known is None or (argument.shape, argument.dtype) != (known[0].shape, known[0].dtype):
            return argument
        return argument.new_zeros(known[1], dtype=known[2])

    def pytest_runtest_teardown(self) -> None:
        """A test's memory is freed, and may come back as another's."""
        self._known.clear()


@contextlib.contextmanager
def _noting(collected: Collected, layouts: _Layouts) -> Iterator[None]:
    """Each op of the triton backend has the values of packed PyTorch, and its launches noted."""
    real = _library.implementation

    def implementation(name: str, backend: str) -> Implementation:
        found = real(name, backend)
        if backend != "triton":
            return found
        plain = real(name, "packed")
        return Implementation(
            *(_both(collected, layouts, a, b) for a, b in zip(found, plain, strict=True))
        )

    users = [
        "adarec_fast.ops._library", "adarec_fast.models.encoders.plan",
        "adarec_fast.ranking.recommender",
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        for module in users:
            stack.enter_context(mock.patch(f"{module}.implementation", implementation))
        yield


def _both(
    collected: Collected, layouts: _Layouts, launcher: Callable[..., Any],
    plain: Callable[..., Any],
) -> Callable[..., Any]:  # fmt: skip
    def run(*arguments: Any) -> Any:
        with recording(collected.architecture) as launches, torch.no_grad():
            made = launcher(*map(layouts.own, arguments))
        collected.take(launches)
        return layouts.learn(plain(*arguments), made)

    return run
