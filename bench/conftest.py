"""Options and fixtures of the benchmarks, and the table at their end."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from . import records, summary
from .cell import Cell, Group, Session
from .harness import replay_clock
from .machine import measure_peaks
from .op_case import OpCase
from .workloads import SIZES, WORKLOADS

_DEFAULT_BUDGET = 540.0  # of the ten minutes that a run may take
_SESSION = pytest.StashKey[Session]()
_DEADLINE = pytest.StashKey[float]()
_SAVED = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("adarec_fast benchmarks")
    group.addoption(
        "--workload", metavar="NAMES",
        help=f"comma-separated, of {', '.join(WORKLOADS)}; default: what each subject chooses",
    )  # fmt: skip
    group.addoption(
        "--op", metavar="NAMES",
        help="comma-separated names of ops, or step, recommend, epoch, systems",
    )  # fmt: skip
    group.addoption(
        "--hidden-size", metavar="NUMBERS", default="64",
        help=f"comma-separated values of D; the design's are {', '.join(map(str, SIZES))}",
    )  # fmt: skip
    group.addoption("--bench-device", choices=("cpu", "cuda"), default="cpu")
    group.addoption(
        "--save-results", action="store_true",
        help="write bench/results/<machine>-<date>.json when all is done; a part run later on the "
        "same day replaces its own comparisons there",
    )  # fmt: skip
    group.addoption(
        "--results-dir", metavar="FOLDER", default=str(records.FOLDER),
        help="where --save-results writes",
    )  # fmt: skip
    group.addoption(
        "--time-budget", metavar="SECONDS", type=float, default=_DEFAULT_BUDGET,
        help="skip the comparisons that have not begun after so long, those with a target being "
        f"first; default {_DEFAULT_BUDGET:g}, 0 for none",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    device = config.getoption("bench_device")
    if device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--bench-device cuda: torch sees no CUDA device")
    config.stash[_SESSION] = Session(device)


def chosen(config: pytest.Config, option: str, known: list[str]) -> list[str] | None:
    """The names that a comma-separated option gives, None without it; UsageError for others."""
    given = config.getoption(option)
    if given is None:
        return None
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise pytest.UsageError(
                f"--{option.replace('_', '-')}: {name!r} is unknown; choose from "
                f"{', '.join(known)}"
            )
    return names


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a cell: the cases of the module at their workloads, sizes and directions."""
    if "cell" not in metafunc.fixturenames:
        return
    config = metafunc.config
    session = config.stash[_SESSION]
    workloads = chosen(config, "workload", list(WORKLOADS))
    sizes = [int(size) for size in config.getoption("hidden_size").split(",")]
    cells = []
    for case in metafunc.module.CASES:
        for workload in workloads or case.workloads:
            training = WORKLOADS[workload].training
            if (case.training_only and not training) or (case.serving_only and training):
                continue
            for size in sizes:
                for direction in case.directions(workload):
                    timed = not config.getoption("benchmark_disable")
                    group = Group(
                        case, workload, size, direction, session.device,
                        float(config.getoption("benchmark_max_time")) if timed else 0.0,
                        config.getoption("benchmark_min_rounds") if timed else 1,
                    )
                    group.variants = case.variants(session.device)
                    for variant in group.variants:
                        cell = Cell(group, variant, session)
                        form = f"{case.form}-" if case.form else ""
                        name = f"{form}{workload}-{size}-{direction}-{variant}"
                        marks = [pytest.mark.slow] if case.slow else []
                        cells.append(
                            pytest.param(cell, id=name.replace(" ", "_"), marks=marks)
                        )
    metafunc.parametrize("cell", cells)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out other ops than ``--op`` names; let the rest be timed by the replay clock.

    What is marked slow runs if ``--op`` or ``-m`` asks for it.
    """
    here = [i for i in items if isinstance(_cell(i), Cell)]
    known = sorted({_cell(item).group.case.option_name() for item in here})
    names = chosen(config, "op", known)
    if names is not None:
        dropped = [i for i in here if _cell(i).group.case.option_name() not in names]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]
    elif not config.getoption("-m"):
        long = [i for i in here if i.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    # What the budget may cut off comes last: what no target asks for, and, of the rest, the large
    # baselines that take a minute. The sort is stable: a comparison stays together.

    def place(item: pytest.Item) -> tuple[bool, bool, bool]:
        cell = _cell(item)
        if not isinstance(cell, Cell):
            return False, False, False
        group = cell.group
        aimed = any(
            target.asks(group.case.name, group.workload, group.direction)
            for target in summary.TARGETS[group.device]
        )
        return not aimed, group.workload == "large", issubclass(group.case, OpCase)

    items.sort(key=place)
    for item in here:
        item.add_marker(pytest.mark.benchmark(timer=replay_clock))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compare only what was selected: ``-k "not compiled"`` saves the compilation as well."""
    cells = [_cell(item) for item in session.items if isinstance(_cell(item), Cell)]
    for cell in cells:
        cell.group.variants = []
    for cell in cells:
        cell.group.variants.append(cell.variant)


def _cell(item: pytest.Item) -> Any:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("cell") if callspec is not None else None


@pytest.fixture(scope="session")
def _peaks(pytestconfig: pytest.Config) -> None:
    """Measure the machine before anything else."""
    session = pytestconfig.stash[_SESSION]
    session.peaks = measure_peaks(session.device)
    pytestconfig.stash[_DEADLINE] = time.monotonic() + (
        pytestconfig.getoption("time_budget") or float("inf")
    )


@pytest.fixture(autouse=True)
def _in_time(request: pytest.FixtureRequest, _peaks: None) -> Iterator[None]:
    """Begin no comparison after the deadline; drop a comparison's tensors after its last cell."""
    cell = _cell(request.node)
    late = time.monotonic() > request.config.stash[_DEADLINE]
    if late and cell is not None and cell.group.outcomes is None:
        pytest.skip("the time budget is spent")
    yield
    if cell is not None and cell.variant == cell.group.variants[-1]:
        cell.group.finish()


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    found = config.stash[_SESSION]
    if config.getoption("save_results") and any("seconds" in row for row in found.rows):
        folder = Path(config.getoption("results_dir"))
        record = records.make(found, ["pytest", *config.invocation_params.args])
        path = records.write(records.joined(record, folder), folder)
        config.stash[_SAVED] = path


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Generator[None, None, None]:
    """Below pytest-benchmark's own tables: the ratios and the targets."""
    yield
    found = config.stash[_SESSION]
    if any("seconds" in row for row in found.rows):
        terminalreporter.section("adarec_fast benchmarks")
        summary.print_tables(found.rows, found.peaks, found.device)
    path = config.stash.get(_SAVED, None)
    if path is not None:
        terminalreporter.write_line(f"results written to {path}")
