"""A plugin of pytest: the most telling tests first, and each outcome on disk as it comes.

    pytest -p bench.gpu.outcomes --outcomes FILE

A run that is killed has so told all that it found. Works under xdist: workers report to the
process that writes.
"""

from __future__ import annotations

import json

import pytest

# First what no CPU can show: graphs, synchronisation, requests; then values, by how much of the
# kernels one test sees.
_ORDER = (
    "test_captured", "test_synchronisation", "test_recommender", "test_matches_the_float64",
    "test_many_sequences", "test_a_second_run", "test_sizes", "test_bfloat16", "test_autocast",
    "test_extreme_batches", "test_permuted", "test_a_sequence_does_not", "test_fakes",
    "test_opcheck", "test_profile",
)  # fmt: skip
_WORDS = 400  # of a failure's last lines


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", metavar="FILE", help="write a line of JSON a test there")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        found = [n for n, word in enumerate(_ORDER) if word in item.nodeid]
        return found[0] if found else len(_ORDER)

    items.sort(key=place)


class _Writer:
    def __init__(self, path: str) -> None:
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115, closed with the session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        row = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration}
        if report.failed:
            row["why"] = str(report.longreprtext)[-_WORDS:]
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def pytest_sessionfinish(self) -> None:
        self.file.close()


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--outcomes")
    if path and not hasattr(config, "workerinput"):  # xdist's workers leave it to their master
        config.pluginmanager.register(_Writer(path), "outcomes-writer")
