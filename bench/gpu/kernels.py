"""Which kernels the phases ask for, collected without a GPU."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from adarec_fast.kernels._launch import recording
from adarec_fast.kernels._prewarm import Collected, collecting
from adarec_fast.ops import _library
from adarec_fast.ops._library import Implementation, as_on_cuda

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
        if phase.name == "tests":
            _collect_tests(collected)
        else:
            work = getattr(
                importlib.import_module(f"bench.gpu.phases.{phase.name}"), "kernels", None
            )
            if work is None:
                continue
            with collecting(architecture) as found:
                work("cpu")
            collected.take(found.launches.values())
        say(f"{phase.name}: {len(collected.launches) - before} kernels that no phase before has")
    return collected


def _collect_tests(collected: Collected) -> None:
    """Run the tests marked ``gpu`` on the CPU: values by packed PyTorch, launches noted beside."""
    from .phases.tests import files

    said = io.StringIO()
    with as_on_cuda(), _noting(collected), contextlib.redirect_stdout(said):
        status = pytest.main(
            [*(str(ROOT / name) for name in files()), "-m", "gpu", "-q",
             "-p", "no:cacheprovider", "--tb=line",
             "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")],
        )  # fmt: skip
    if status != pytest.ExitCode.OK:
        raise RuntimeError(
            "the tests marked gpu do not pass on the CPU, so that what they launch is not known:\n"
            + said.getvalue()[-2000:]
        )


@contextlib.contextmanager
def _noting(collected: Collected) -> Iterator[None]:
    """Each op of the triton backend has the values of packed PyTorch, and its launches noted."""
    real = _library.implementation

    def implementation(name: str, backend: str) -> Implementation:
        found = real(name, backend)
        if backend != "triton":
            return found
        plain = real(name, "packed")
        return Implementation(
            *(_both(collected, a, b) for a, b in zip(found, plain, strict=True))
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
    collected: Collected, launcher: Callable[..., Any], plain: Callable[..., Any]
) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        with recording(collected.architecture) as launches, torch.no_grad():
            launcher(*arguments)
        collected.take(launches)
        return plain(*arguments)

    return run
