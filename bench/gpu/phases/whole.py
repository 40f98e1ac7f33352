"""Times of what users wait for: a training step, an epoch of Beauty's shape, requests."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch

from adarec_fast import ADARec, Recommender, TrainConfig
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.training.captured import CapturedStepper
from adarec_fast.training.optimization import Stepper
from adarec_fast.training.statistics import EpochStatistics

from ...test_bench_epoch import beauty
from ...workloads import MAX_LENGTH, histories
from ..phase import Results
from ..timing import device_seconds, host_seconds, spread
from ..work import PRECISIONS, attempt, exercised, model

_SIZE = 64
_SECONDS = 0.7
_K = 20
_USERS = {"serve-1": 32, "serve-1024": 4}  # batches in turn: the next request is another user's


def run(results: Results) -> None:
    """Steps first, requests, then the epoch, for each precision."""
    device = results.settings.device
    work: list[tuple[Any, ...]] = []
    for precision in PRECISIONS:
        work += [
            (_step, "train", "prefix", precision, CapturedStepper),
            (_step, "train", "all", precision, CapturedStepper),
            (_request, "serve-1", precision), (_request, "serve-1024", precision),
        ]  # fmt: skip
    work += [(_step, "large", "prefix", p, CapturedStepper) for p in PRECISIONS]
    work += [(_epoch, "tf32"), (_epoch, "ieee"), (_step, "train", "prefix", "ieee", Stepper)]
    work.append((_step, "large", "all", "tf32", CapturedStepper))
    failed = []
    for function, *arguments in work:
        error = attempt(function, results, device, *arguments)
        if error is not None:
            name = " ".join(str(getattr(a, "__name__", a)) for a in arguments)
            failed.append(f"{function.__name__.strip('_')} {name}: {error}")
            results.put(failed=failed)
            results.say(failed[-1])
        torch.cuda.empty_cache()
    results.put(summary=f"{len(results.found.get('rows', []))} times, {len(failed)} failed")


def _row(
    results: Results, subject: str, workload: str, direction: str, variant: str, precision: str,
    rounds: list[float], *, form: str = "", **more: Any,
) -> None:  # fmt: skip
    seconds = spread(rounds)
    results.add("rows", {
        "subject": subject, "form": form, "workload": workload, "hidden_size": _SIZE,
        "direction": direction, "variant": variant, "precision": precision, "seconds": seconds,
        "ours": variant == "adarec_fast", **more,
    })  # fmt: skip
    results.say(
        f"{subject} {form} {workload} {precision} {variant}: {seconds['median'] * 1e3:.3f} ms "
        f"(p99 {seconds['p99'] * 1e3:.3f}) {more}"
    )


def _step(
    results: Results, device: str, workload: str, supervision: str, precision: str,
    kind: type[Stepper],
) -> None:  # fmt: skip
    place = torch.device(device)
    made = model(_SIZE, supervision, precision, device).train()
    stepper = kind(made, TrainConfig(), place)
    statistics = EpochStatistics(made.diagnostics(), place)
    count = 4 if workload == "train" else 2
    data = histories(workload, count, every_position=supervision == "all")
    batches = itertools.cycle([batch.to(device).as_batch() for batch in data])
    numbers = itertools.count(1)

    def step() -> None:
        stepper.step(next(batches), next(numbers), statistics)

    torch.cuda.reset_peak_memory_stats()
    for _ in range(3 * count):  # every shape is captured
        step()
    peak = torch.cuda.max_memory_allocated()
    rounds = device_seconds(step, _SECONDS)
    alone = spread(host_seconds(step, 0.3))
    assert statistics.diverged() is None
    form = "" if supervision == "prefix" else "every position"
    variant = "adarec_fast" if kind is CapturedStepper else "not captured"
    _row(results, "training step", workload, "step", variant, precision, rounds, form=form,
         allocated=peak, host=alone)  # fmt: skip


def _request(results: Results, device: str, workload: str, precision: str) -> None:
    """From Python lists to items in Python lists, another history each time."""
    recommender = Recommender(model(_SIZE, "prefix", precision, device).eval())
    asked = []
    for batch in histories(workload, _USERS[workload]):
        ends = batch.offsets.tolist()
        items = batch.item_ids.tolist()
        asked.append([items[a:b] for a, b in itertools.pairwise(ends)])
    requests = itertools.cycle(asked)
    for _ in range(3 * len(asked)):
        recommender.recommend(next(requests), _K)

    def request() -> list[list[int]]:
        return recommender.recommend(next(requests), _K).items.tolist()

    rounds = host_seconds(request, _SECONDS, 30)
    of_device = _on_device(recommender, asked)
    _row(results, "recommend", workload, "forward", "adarec_fast", precision, rounds,
         device_seconds=of_device)  # fmt: skip


def _on_device(recommender: Recommender, asked: list[list[list[int]]]) -> float:
    """Median seconds of the device alone: requests that follow each other without a wait."""
    requests = itertools.cycle(asked)
    return float(
        spread(device_seconds(lambda: recommender.recommend(next(requests), _K), 0.2))["median"]
    )


def _epoch(results: Results, device: str, precision: str) -> None:
    """A whole epoch as training takes it, batches drawn anew, after one that captured graphs."""
    place = torch.device(device)
    data, source = beauty()
    made = ADARec(
        num_items=data.num_items, hidden_size=_SIZE, max_length=MAX_LENGTH, supervision="all",
        precision=precision,
    ).to(place).train()  # fmt: skip
    batches = TrainingBatches(
        *Split(data).inputs("train"), supervision="all", device=place, seed=0, batch_size=256,
        max_length=MAX_LENGTH,
    )  # fmt: skip
    stepper = CapturedStepper(made, TrainConfig(), place)
    statistics = EpochStatistics(made.diagnostics(), place)
    rounds = []
    for epoch in range(4):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for number, batch in enumerate(batches.epoch(epoch), 1):
            stepper.step(batch, number, statistics)
        torch.cuda.synchronize()
        rounds.append(time.perf_counter() - started)
    _row(results, "Beauty epoch", "train", "epoch", "adarec_fast", precision, rounds[1:],
         first=rounds[0], data=source, stretches=1)  # fmt: skip


def kernels(device: str) -> None:
    """Every launch of :func:`run`."""
    beauty_like = {"num_items": 12_101, "max_length": MAX_LENGTH, "max_depth": 4}
    for precision in PRECISIONS:
        exercised(_SIZE, precision, device, supervisions=("prefix", "all"))
        exercised(_SIZE, precision, device, batches=(1024, 8192))
        exercised(_SIZE, precision, device, supervisions=("all",), **beauty_like)
    exercised(_SIZE, "tf32", device, batches=(8192,), supervisions=("all",))
