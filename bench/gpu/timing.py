"""Times on a GPU: of graph replays by events, of what the host does by its clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

_SHORTEST = 400e-6  # seconds between two events; shorter work is repeated, since events cost some
_MOST = 200


def captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of one call, warmed up on the stream that it is captured on.

    The caller keeps the graph: what it allocates lives as long.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    torch.cuda.synchronize()
    return graph


def device_seconds(run: Callable[[], object], seconds: float) -> list[float]:
    """Seconds a call by events, in rounds, for so long; what ``run`` launches must be ordered on
    the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed(count: int) -> float:
        start.record()
        for _ in range(count):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3 / count

    once = max(timed(1), 1e-7)
    count = max(1, round(_SHORTEST / once))
    timed(count)
    rounds: list[float] = []
    until = time.perf_counter() + seconds
    while len(rounds) < 5 or (time.perf_counter() < until and len(rounds) < _MOST):
        rounds.append(timed(count))
    return rounds


def host_seconds(run: Callable[[], object], seconds: float, least: int = 5) -> list[float]:
    """Seconds of each call by the host's clock, the device idle before and after."""
    rounds: list[float] = []
    until = time.perf_counter() + seconds
    while len(rounds) < least or time.perf_counter() < until:
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        rounds.append(time.perf_counter() - started)
    return rounds


def spread(rounds: list[float]) -> dict[str, Any]:
    """As in the rows of :mod:`bench.cell`, with the 99th percentile of single calls."""
    ordered = sorted(rounds)
    return {
        "min": ordered[0], "median": statistics.median(ordered),
        "mean": statistics.fmean(ordered), "max": ordered[-1],
        "p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], "rounds": len(ordered),
    }  # fmt: skip
