"""What every test may rely on: seeds, threads, poisoned memory, backends and real data."""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Two threads of a busy machine must not spin for each other; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Where it is set, no import is kept compiled: each of the processes that tests start would then
# compile torch's modules anew, for 3 to 6 seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Helpers, and the builders of one op's cases that tests of its kernels use.
sys.path.insert(0, str(Path(__file__).parent / "ops"))
sys.path.insert(0, str(Path(__file__).parent / "support"))

# torch is imported where it is used: the process that only shares the suite out does without, and
# its workers need not wait for it.
if TYPE_CHECKING:
    from helpers import Backend

# Each of them imports torch, and some start processes of their own.
_MOST_PROCESSES = 8
# Tests of these take a minute each: begun last, one process would wait for the other.
_LONG = ("test_triton_interpreter.py", "test_cuda_host.py", "test_distributed.py")

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    import patched_once
    from helpers import APPROXIMATE

    patched_once.patch()
    if os.environ.get(APPROXIMATE) == "1":
        import approximate

        approximate.patch()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Share the whole suite over the cores, where no part of it and no `-n` is asked for.

    A file or two start sooner in one process, and a benchmark is timed in one (`bench/`, whose
    command never comes here).
    """
    options = config.option
    chosen = config.args_source == config.ArgsSource.ARGS or options.keyword or options.markexpr
    if chosen or options.usepdb or options.collectonly or hasattr(config, "workerinput"):
        return
    if getattr(options, "numprocesses", 0) is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        options.numprocesses = min(cores or 1, _MOST_PROCESSES)
        options.dist = "worksteal"


def pytest_configure() -> None:
    """Processes that tests start are no workers of this session."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
        del os.environ[name]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import and collect without garbage collection, and leave what was made out of later ones.

    All of it stays, 600,000 objects: to look through them again and again takes seconds.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()
        # It would look like leaks when the interpreter ends; pytest collects five times before.
        atexit.register(gc.unfreeze)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Let every other worker read the folders backwards.

    A test's module is compiled with its assertions, which takes half of the time of collecting it,
    and kept: what one worker compiled the other finds.
    """
    report = yield
    worker = getattr(collector.config, "workerinput", {}).get("workerid", "gw0")
    if isinstance(collector, pytest.Directory) and int(worker.removeprefix("gw")) % 2:
        report.result.reverse()
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave long sweeps out unless `-m` speaks; leave CUDA tests out where there is no device."""
    import torch

    from adarec_fast.ops._library import collecting

    if hasattr(config, "workerinput"):  # The workers must agree.
        items.sort(key=lambda item: item.path)
    items.sort(key=lambda item: item.path.name not in _LONG)
    # By marker: a checkout in a folder of that name has it among every test's keywords.
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("-m"):
            item.add_marker(pytest.mark.skip(reason="a long sweep; run it with `pytest -m slow`"))
        if item.get_closest_marker("gpu") and not (torch.cuda.is_available() or collecting()):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a suite's tests the backends and variants that :class:`OpSuite` speaks of."""
    import torch
    from helpers import backends_for
    from helpers_suite import OpSuite

    suite = metafunc.cls
    if suite is None or not issubclass(suite, OpSuite):
        return
    names = list(suite.variants)
    quiet = [name for name in names if name not in suite.noisy]
    for fixture, chosen in (("build", names), ("quiet", quiet), ("main", names[:1])):
        if fixture in metafunc.fixturenames:
            builds = [suite.variants[name] for name in chosen]
            metafunc.parametrize(fixture, builds, ids=chosen)
    every = backends_for(suite.op, metafunc.definition.name)
    for fixture, wanted in (
        ("backend", every),
        ("rival", [p for p in every if p.values[0].name != "reference"]),
        ("exact", [p for p in every if torch.float64 in p.values[0].dtypes]),
    ):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, wanted, indirect=True)


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """A fixed seed, and one thread: two cost more than they bring for tensors this small."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)


def _available(backend: Backend) -> Backend:
    from helpers import available

    return available(backend)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    """One of `backends_for(op)`."""
    return _available(request.param)


@pytest.fixture
def rival(request: pytest.FixtureRequest) -> Backend:
    """One of them that is not the reference."""
    return _available(request.param)


@pytest.fixture
def exact(request: pytest.FixtureRequest) -> Backend:
    """One of them that computes in float64."""
    return _available(request.param)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fill memory that was only allocated: NaN in floats, the greatest value in integers.

    It holds for `torch.empty`, its relatives and `at::empty` in C++, so that a result that nobody
    wrote cannot look right because the allocator gave back an old one.
    """
    import torch

    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.utils.deterministic.fill_uninitialized_memory = before[2]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run the test with one and with two threads."""
    import torch

    from adarec_fast.ops._library import collecting

    if not collecting():  # the results are not looked at
        torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of `ADAREC_FAST_DATA`, with Beauty.txt in it."""
    folder = os.environ.get("ADAREC_FAST_DATA")
    if not folder:
        pytest.skip("ADAREC_FAST_DATA does not name a folder with Beauty.txt")
    if not (Path(folder) / "Beauty.txt").is_file():
        pytest.skip(f"ADAREC_FAST_DATA={folder} has no Beauty.txt")
    return Path(folder)
