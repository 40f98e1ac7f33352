"""A catalogue of a million items: does a step fit, and are a hundred thousand users served?

    python -m bench.large_catalogue [--items N] [--users N] [--save-results]

Trains two steps at B = 256 and D = 64, then recommends 20 items to every user in chunks. Not part
of the benchmarks' run: the scores alone are 2·D·items·users = 13 TFLOP. Memory is the process'
resident set, everything included; it exits with 1 if the step needed more than 6 GiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import sys
import time
from typing import Any

import torch

from adarec_fast import ADARec, ADARecConfig, Recommender, TrainConfig
from adarec_fast.data import Batch
from adarec_fast.training.optimization import Stepper
from adarec_fast.training.statistics import EpochStatistics

from . import records
from .machine import describe, slug
from .workloads import WORKLOADS, Histories, histories

LIMIT = 6 * 2**30
_SIZE, _DEPTH, _CHUNK, _K, _STEPS = 64, 8, 1024, 20, 2


def _peak() -> int:
    """The greatest resident set so far, in bytes (Linux counts KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _spread(batch: Histories, items: int, generator: torch.Generator) -> Histories:
    """The batch's lengths with items drawn evenly from a catalogue of another size."""
    ids = torch.randint(1, items + 1, batch.item_ids.shape, generator=generator)
    targets = torch.randint(1, items + 1, batch.targets.shape, generator=generator)
    return Histories(ids, batch.offsets, targets, batch.depth)


def train(model: ADARec, items: int, generator: torch.Generator) -> dict[str, Any]:
    """Seconds of each step and the peak of memory; the first step allocates Adam's state."""
    stepper = Stepper(model.train(), TrainConfig(), torch.device("cpu"))
    statistics = EpochStatistics(model.diagnostics(), torch.device("cpu"))
    seconds = []
    for number, data in enumerate(histories("train", _STEPS), start=1):
        batch: Batch = _spread(data, items, generator).as_batch()
        started = time.perf_counter()
        stepper.step(batch, number, statistics)
        seconds.append(time.perf_counter() - started)
    assert statistics.diverged() is None
    return {
        "batch_size": WORKLOADS["train"].batch,
        "seconds": seconds,
        "loss": statistics.read()["loss"],
        "peak_bytes": _peak(),
    }


def score(model: ADARec, items: int, users: int, generator: torch.Generator) -> dict[str, Any]:
    """Seconds and users a second for ``users`` requests in chunks; the peak is the whole run's."""
    (data,) = histories("serve-1024")
    recommender = Recommender(model, batch_size=_CHUNK)
    started, done = time.perf_counter(), 0
    while done < users:
        batch = _spread(data, items, generator).part(0, min(_CHUNK, users - done))
        ranking = recommender.recommend((batch.item_ids, batch.offsets), _K)
        assert bool((ranking.scores.diff(dim=1) <= 0).all())
        done += batch.batch
    seconds = time.perf_counter() - started
    return {
        "users": users,
        "chunk": _CHUNK,
        "k": _K,
        "seconds": seconds,
        "users_per_second": users / seconds,
        "gflops": 2e-9 * _SIZE * items * users / seconds,
        "peak_bytes": _peak(),
    }


def main() -> int:
    """Run both parts, print and perhaps save them; 1 if the step took too much memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument(
        "--save-results", action="store_true",
        help="write bench/results/large-catalogue-<machine>-<date>.json",
    )  # fmt: skip
    options = parser.parse_args()
    for name in ("items", "users"):
        if getattr(options, name) < _K:
            parser.error(f"--{name} {getattr(options, name)} must be at least {_K}")
    # Before anything of the size of the catalogue, so that the libraries are told apart.
    base, generator = _peak(), torch.Generator().manual_seed(0)
    config = ADARecConfig(num_items=options.items, hidden_size=_SIZE, max_depth=_DEPTH)
    model = ADARec(config)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    result: dict[str, Any] = {
        "kind": "large catalogue",
        "device": "cpu",
        "slug": f"large-catalogue-{slug('cpu')}",
        "date": records.now(),
        "command": shlex.join(["python", "-m", "bench.large_catalogue", *sys.argv[1:]]),
        **describe("cpu"),
        "items": options.items,
        "hidden_size": _SIZE,
        "parameter_bytes": parameters,
        "base_bytes": base,
        "train": train(model, options.items, generator),
    }
    model.zero_grad(set_to_none=True)
    result["score"] = score(model, options.items, options.users, generator)
    print(json.dumps(records.rounded(result), indent=2))
    if options.save_results:
        print(f"written to {records.write(result, records.FOLDER)}")
    return int(result["train"]["peak_bytes"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
