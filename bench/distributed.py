"""What several workers cost on this machine: ``python -m bench.distributed [--save-results]``.

Times gloo's collectives by size, and training steps (B = 256, T = 8, D = 64; dropout and noise on)
of one process and of two workers, whole and with a split item table, every process with one
thread. Two workers share the batch, so they are to be compared with the one process; on a machine
of two cores nothing else may run. docs/many-devices.md models larger runs from here.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from adarec_fast import ADARec, TrainConfig
from adarec_fast.data import TrainingBatches
from adarec_fast.distributed import Workers, join
from adarec_fast.distributed.batches import SharedBatches
from adarec_fast.training.captured import make_stepper
from adarec_fast.training.statistics import EpochStatistics

from . import records
from .machine import describe, slug
from .workloads import MAX_DEPTH, MAX_LENGTH, histories

_BATCH, _SIZE, _WARM, _STEPS = 256, 64, 2, 9
_CATALOGUES = (12_101, 256_000)
_SIZES = (8, 1 << 20, 1 << 24, 1 << 26)  # bytes
_WORKERS = 2


def _median(run: Callable[[], object], rounds: int) -> float:
    """Median seconds; the first calls are not counted."""
    times = []
    for number in range(_WARM + rounds):
        begun = time.perf_counter()
        run()
        if number >= _WARM:
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def collectives(workers: Workers) -> list[dict[str, Any]]:
    """Seconds of each collective by bytes a worker holds of the whole."""
    rows = []
    for size in _SIZES:
        whole = torch.zeros(workers.size, max(1, size // 4 // workers.size))
        part = whole[0].clone()
        rounds = 200 if size < 1 << 20 else 5
        rows.append(
            {
                "bytes": size,
                "all_reduce": _median(lambda whole=whole: workers.sum(whole), rounds),
                "all_gather": _median(lambda part=part: workers.gather(part), rounds),
                "reduce_scatter": _median(lambda whole=whole: workers.scatter_sum(whole), rounds),
            }
        )
    return rows


def step(items: int, workers: Workers | None, split: bool) -> float:
    """Median seconds of a training step of all workers together."""
    (data,) = histories("large")
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(1, items + 1, data.item_ids.shape, generator=generator)
    batches = TrainingBatches(
        values, data.offsets, batch_size=_BATCH, max_length=MAX_LENGTH, seed=0
    )
    model = ADARec(num_items=items, hidden_size=_SIZE, max_depth=MAX_DEPTH, max_length=MAX_LENGTH)
    shared = None
    if workers is not None:
        shared = SharedBatches(batches, workers, gather_negatives=True)
        if split:
            model.split_items(workers)
    stepper = make_stepper(model.train(), TrainConfig(), torch.device("cpu"), shared)
    sums = EpochStatistics(model.diagnostics(), torch.device("cpu"), workers)
    given = cycle((shared or batches).epoch(0))
    result = _median(lambda: stepper.step(next(given), 1, sums), _STEPS)
    assert sums.diverged() is None
    return result


def _measure(rank: int, size: int, port: int, path: str) -> None:
    """A process' part; the first one writes what was measured."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip
    with join("cpu", 60.0) as workers:
        found: dict[str, Any] = {"collectives": [] if workers is None else collectives(workers)}
        kinds = {"whole": False} if workers is None else {"whole": False, "split": True}
        found["steps"] = [
            {
                "items": items,
                "workers": size,
                "table": kind,
                "seconds": step(items, workers, split),
            }
            for items in _CATALOGUES
            for kind, split in kinds.items()
        ]
        if rank == 0:
            Path(path).write_text(json.dumps(found), encoding="utf-8")


def _run(size: int) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        mp.spawn(_measure, (size, port, str(path)), nprocs=size)
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def main() -> int:
    """Measure, print and perhaps save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save-results", action="store_true",
                        help="write bench/results/distributed-<machine>-<date>.json")
    options = parser.parse_args()
    if not dist.is_available():
        parser.error("this torch has no torch.distributed")
    one, two = _run(1), _run(_WORKERS)
    result = {
        "kind": "several workers",
        "device": "cpu",
        "slug": f"distributed-{slug('cpu')}",
        "date": records.now(),
        "command": shlex.join(["python", "-m", "bench.distributed", *sys.argv[1:]]),
        **describe("cpu"),
        "threads_a_process": 1,
        "collectives": two["collectives"],
        "steps": one["steps"] + two["steps"],
    }
    print(json.dumps(records.rounded(result), indent=2))
    if options.save_results:
        print(f"written to {records.write(result, records.FOLDER)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
