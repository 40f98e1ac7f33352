"""One cell of the benchmark matrix: a variant of a subject at a workload, size and direction."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from .harness import Outcome, Subject, compare, replay


@dataclass
class Group:
    """A comparison: the cells that are timed in turn. It is carried out once, on first use."""

    case: type[Subject]
    workload: str
    size: int
    direction: str
    device: str
    seconds: float
    least_rounds: int
    variants: list[str] = field(default_factory=list)  # the selected ones
    outcomes: dict[str, Outcome] | None = None
    subject: Subject | None = None

    @property
    def label(self) -> str:
        """E.g. ``encoder_layer, backbone: train, D=64, forward``."""
        what = self.case.name + (f", {self.case.form}" if self.case.form else "")
        return f"{what}: {self.workload}, D={self.size}, {self.direction}"

    def outcome(self, variant: str) -> Outcome:
        """What became of a variant."""
        if self.outcomes is None:
            try:
                self.subject = self.case(self.workload, self.size, self.direction, self.device)  # type: ignore[call-arg]
                self.outcomes = compare(
                    self.subject, self.variants, seconds=self.seconds,
                    least_rounds=self.least_rounds,
                )
            except Exception as error:  # every cell of the group fails with it
                self.outcomes = {name: Outcome(error=error) for name in self.variants}
        return self.outcomes[variant]

    def finish(self) -> None:
        """Let go of the tensors."""
        self.subject = None


@dataclass
class Session:
    """What a run has found out: one row a cell, and the machine's peaks."""

    device: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)


@dataclass
class Cell:
    """A variant in its group; the ``cell`` fixture of the benchmark tests."""

    group: Group
    variant: str
    session: Session

    def run(self, benchmark: BenchmarkFixture) -> None:
        """Hand the variant's rounds to pytest-benchmark; skip, or fail if its check complained."""
        group = self.group
        outcome = group.outcome(self.variant)
        row: dict[str, Any] = {
            "subject": group.case.name, "form": group.case.form, "workload": group.workload,
            "hidden_size": group.size, "direction": group.direction, "variant": self.variant,
        }  # fmt: skip
        if outcome.error is not None:
            raise outcome.error
        if outcome.unavailable is not None:
            self.session.rows.append({**row, "unavailable": outcome.unavailable})
            pytest.skip(outcome.unavailable)
        assert group.subject is not None
        row.update(outcome.info)
        if outcome.complaint is not None:
            row["failed_check"] = outcome.complaint
        row.update(_figures(group.subject, outcome.rounds, self.session.peaks))
        self.session.rows.append(row)
        benchmark.group = group.label
        benchmark.extra_info.update(row)
        if benchmark.disabled:
            benchmark(lambda: None)
        else:
            benchmark.pedantic(replay(outcome.rounds), rounds=len(outcome.rounds), iterations=1)
        assert outcome.complaint is None, outcome.complaint


def _figures(subject: Subject, rounds: list[float], peaks: dict[str, float]) -> dict[str, Any]:
    """Times, and rates by the median; shares are of the peaks measured before."""
    median = statistics.median(rounds)
    flops, moved = subject.flops(), subject.bytes()
    gflops, gbps = flops / median / 1e9, moved / median / 1e9
    return {
        "seconds": {
            "min": min(rounds),
            "median": median,
            "mean": statistics.fmean(rounds),
            "max": max(rounds),
            "rounds": len(rounds),
        },
        "flops": flops,
        "bytes": moved,
        "gflops": gflops,
        "gbps": gbps,
        **shares(gflops, gbps, peaks),
    }


def shares(gflops: float, gbps: float, peaks: dict[str, float]) -> dict[str, float]:
    """What rates are of the machine's peaks."""
    flops, bandwidth = gflops / peaks["gflops"], gbps / peaks["gbps"]
    return {
        "share_of_peak_flops": flops,
        "share_of_peak_bandwidth": bandwidth,
        # The time that the slower of the two peaks would need, over the time needed.
        "share_of_roofline": max(flops, bandwidth),
    }
