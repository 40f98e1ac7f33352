"""Which kernels a captured step and a request are made of, and how long each takes."""

from __future__ import annotations

import collections
import gzip
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from adarec_fast import Recommender, TrainConfig
from adarec_fast.training.captured import CapturedStepper
from adarec_fast.training.statistics import EpochStatistics

from ...workloads import histories
from ..phase import Results
from ..work import attempt, exercised, model

_SIZE, _STEPS, _K = 64, 10, 20
_PRECISIONS = ("tf32", "ieee")


def run(results: Results) -> None:
    """Kernels by their share of a step; the trace of the first step goes into ``out``."""
    device = results.settings.device
    for precision in _PRECISIONS:
        for name, made in (("train", _stepper), ("large", _stepper), ("serve-1", _requests)):
            error = attempt(_profile, results, device, name, precision, made)
            if error is not None:
                results.say(f"{name} {precision}: {error}")
                results.add("failed", f"{name} {precision}: {error}")
    found = results.found.get("profiles", [])
    results.put(summary=", ".join(
        f"{p['workload']} {p['precision']} {p['launches']:.0f} launches" for p in found
    ))  # fmt: skip


def _stepper(device: str, workload: str, precision: str) -> Callable[[], object]:
    place = torch.device(device)
    made = model(_SIZE, "prefix", precision, device).train()
    stepper = CapturedStepper(made, TrainConfig(), place)
    statistics = EpochStatistics(made.diagnostics(), place)
    batch = histories(workload)[0].to(device).as_batch()
    numbers = itertools.count(1)
    return lambda: stepper.step(batch, next(numbers), statistics)


def _requests(device: str, workload: str, precision: str) -> Callable[[], object]:
    recommender = Recommender(model(_SIZE, "prefix", precision, device).eval())
    history = histories(workload)[0].item_ids.tolist()
    return lambda: recommender.recommend([history], _K)


def _profile(
    results: Results, device: str, workload: str, precision: str,
    made: Callable[[str, str, str], Callable[[], object]],
) -> None:  # fmt: skip
    step = made(device, workload, precision)
    for _ in range(4):
        step()
    torch.cuda.synchronize()
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU, activity.CUDA]) as profiler:
        for _ in range(_STEPS):
            step()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = collections.defaultdict(list)
    spans = []
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            kernels[event.name].append(event.time_range.elapsed_us())
            spans.append((event.time_range.start, event.time_range.end))
    busy = sum(map(sum, kernels.values()))
    spans.sort()
    gaps = sum(max(0.0, b[0] - a[1]) for a, b in itertools.pairwise(spans))
    rows: list[dict[str, Any]] = [
        {"kernel": name[:120], "launches": len(times) / _STEPS, "us": sum(times) / _STEPS}
        for name, times in kernels.items()
    ]
    rows.sort(key=lambda row: -row["us"])
    results.add("profiles", {
        "workload": workload, "precision": precision, "us": busy / _STEPS, "gaps_us": gaps / _STEPS,
        "launches": sum(row["launches"] for row in rows), "kernels": rows[:60],
    })  # fmt: skip
    results.say(f"{workload} {precision}: {busy / _STEPS:.0f} us of kernels a step, "
                f"{sum(row['launches'] for row in rows):.0f} launches")  # fmt: skip
    for row in rows[:5]:
        results.say(f"    {row['us']:8.1f} us {row['launches']:5.1f}x {row['kernel'][:70]}")
    trace = Path(results.settings.out) / "trace.json.gz"
    if not trace.exists():
        _write_trace(profiler, trace)


def _write_trace(profiler: Any, path: Path) -> None:
    """For https://ui.perfetto.dev, which reads it compressed."""
    plain = path.with_suffix(".partial")
    profiler.export_chrome_trace(str(plain))
    packed = path.with_suffix(".packing")
    with plain.open("rb") as source, gzip.open(packed, "wb") as target:
        shutil.copyfileobj(source, target)
    packed.replace(path)
    plain.unlink()


def kernels(device: str) -> None:
    """Every launch of :func:`run`."""
    for precision in _PRECISIONS:
        exercised(_SIZE, precision, device, batches=(256, 8192))
