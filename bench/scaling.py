"""How the cost of a training step grows: ``python -m bench.scaling [--axis NAME ...]``.

Times our step (forward, backward, clipping, Adam; dropout and noise on) while one quantity grows
and the others keep their values, and fits seconds = c * x^e by least squares of the logarithms.
The cost has parts that do not grow with a quantity, so an exponent over all points is lower than
the one at the large end, which is given as well (the slope between the last two points).

Writes ``scaling-<machine>-<date>.json`` and ``.png``; axes that are not asked for are kept from
that day's file of the same machine and versions, so that a run may be cut into slices.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from adarec_fast import ADARec, TrainConfig
from adarec_fast.training.captured import make_stepper
from adarec_fast.training.statistics import EpochStatistics

from . import records
from .harness import Prepared, interleaved
from .machine import describe, slug
from .roofline import save_figure
from .workloads import MAX_DEPTH, MAX_LENGTH, NUM_ITEMS, Histories, histories

KIND = "adarec_fast scaling"
_TICKS = [number * 10**power for power in range(5) for number in (1, 2, 5)]  # ms
_BATCH, _SIZE, _LEAST_ROUNDS, _WARM = 256, 64, 5, 3


class Axis(NamedTuple):
    """A quantity and the values it takes.

    Attributes:
        title: what it is, for people.
        values: rising, at least four.
        fixed: what else is fixed, and differs from the other axes.
    """

    title: str
    values: tuple[int, ...]
    fixed: str = ""


AXES = {
    "users": Axis("histories a batch", (64, 128, 256, 512, 1024)),
    "length": Axis("items a history", (4, 8, 16, 32, 50), "all histories equally long"),
    "depth": Axis("depth T of every user", (1, 2, 4, 8, 16), 'depth="fixed"'),
    "size": Axis("hidden size D", (16, 32, 64, 128, 256)),
    "items": Axis("items in the catalogue", (1000, 4000, 16_000, 64_000, 256_000)),
}


def fit(values: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """c and e of seconds = c * value^e, by least squares of the logarithms."""
    x, y = [math.log(v) for v in values], [math.log(s) for s in seconds]
    slope, intercept = statistics.linear_regression(x, y)
    return math.exp(intercept), slope


def _histories(axis: str, value: int) -> Histories:
    """Real lengths from the ``large`` workload, except on the axes of length and catalogue."""
    generator = torch.Generator().manual_seed(value)
    batch = histories("large")[0].part(0, value if axis == "users" else _BATCH)
    if axis == "length":
        offsets = torch.arange(_BATCH + 1) * value
        ids = torch.randint(1, NUM_ITEMS + 1, (_BATCH * value,), generator=generator)
        return Histories(ids, offsets, batch.targets, batch.depth)
    if axis == "items":
        ids = torch.randint(1, value + 1, batch.item_ids.shape, generator=generator)
        targets = torch.randint(1, value + 1, batch.targets.shape, generator=generator)
        return Histories(ids, batch.offsets, targets, batch.depth)
    return batch


def step_of(axis: str, value: int, device: str) -> Callable[[], None]:
    """A training step at one point of an axis, as users train: captured on CUDA if possible."""
    batch = _histories(axis, value).to(device).as_batch()
    model = ADARec(
        num_items=value if axis == "items" else NUM_ITEMS,
        hidden_size=value if axis == "size" else _SIZE,
        max_depth=value if axis == "depth" else MAX_DEPTH,
        depth="fixed" if axis == "depth" else "adaptive",
        max_length=MAX_LENGTH,
    )
    model = model.to(device).train()
    stepper = make_stepper(model, TrainConfig(), torch.device(device))
    sums = EpochStatistics(model.diagnostics(), torch.device(device))
    return lambda: stepper.step(batch, 1, sums)


def measure(axis: str, values: Sequence[int], device: str, seconds: float) -> dict[str, Any]:
    """Times at the values of an axis, in interleaved rounds, and the fit."""
    runs = {str(value): step_of(axis, value, device) for value in values}
    for run in runs.values():
        for _ in range(_WARM):  # Adam's state, kernels, a graph
            run()
    prepared = {name: Prepared(run) for name, run in runs.items()}
    rounds = interleaved(prepared, device, seconds, _LEAST_ROUNDS)
    medians = [statistics.median(rounds[str(value)]) for value in values]
    constant, exponent = fit(values, medians)
    _, last = fit(values[-2:], medians[-2:])
    machine = describe(device)["machine"]
    return {
        "title": AXES[axis].title,
        "fixed": AXES[axis].fixed,
        "values": list(values),
        "seconds": [
            {"median": median, "min": min(rounds[str(value)]), "max": max(rounds[str(value)]),
             "rounds": len(rounds[str(value)])}
            for value, median in zip(values, medians, strict=True)
        ],
        "constant": constant,
        "exponent": exponent,
        "exponent_at_the_large_end": last,
        "load_average": machine["load_average"],
    }  # fmt: skip


def draw(record: dict[str, Any], path: Path) -> None:
    """The axes side by side, both scales logarithmic.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    axes = record["axes"]
    figure = Figure(figsize=(3.4 * len(axes), 3.6), layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, found in zip(panels, axes.values(), strict=True):
        values = found["values"]
        medians = [1e3 * point["median"] for point in found["seconds"]]
        low = [1e3 * (p["median"] - p["min"]) for p in found["seconds"]]
        high = [1e3 * (p["max"] - p["median"]) for p in found["seconds"]]
        panel.errorbar(values, medians, [low, high], fmt="o", capsize=3)
        line = [1e3 * found["constant"] * value ** found["exponent"] for value in values]
        panel.plot(values, line, linewidth=1)
        end = found["exponent_at_the_large_end"]
        tail = [medians[-1] * (value / values[-1]) ** end for value in values[-3:]]
        panel.plot(values[-3:], tail, linewidth=1, linestyle="dashed")
        panel.set(xscale="log", yscale="log", xlabel=found["title"])
        panel.set_xticks(values, [f"{v // 1000}k" if v >= 1000 else f"{v}" for v in values])
        panel.set_yticks(_TICKS, [f"{tick}" for tick in _TICKS])
        panel.minorticks_off()
        panel.set_title(
            f"exponent {found['exponent']:.2f}, at the end {end:.2f} (dashed)",
            fontsize="medium",
        )
        panel.grid(True, which="both", linewidth=0.3, alpha=0.5)
    every = [1e3 * point[bound] for found in axes.values() for point in found["seconds"]
             for bound in ("min", "max")]  # fmt: skip
    panels[0].set_ylim(min(every) / 1.3, max(every) * 1.3)
    panels[0].set_ylabel("ms a training step (median, least, greatest)")
    machine = record["machine"]
    figure.suptitle(machine.get("gpu", f"{machine['cpu']}, {machine['threads']} threads"))
    save_figure(figure, path)


def _earlier(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Axes of the file of the same day, if it has the same machine and versions."""
    if not path.exists():
        return {}
    old = json.loads(path.read_text(encoding="utf-8"))
    steady = ("cpu", "cores", "threads", "gpu")
    same = old["versions"] == record["versions"] and all(
        old["machine"].get(key) == record["machine"].get(key) for key in steady
    )
    return old["axes"] if same else {}


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.scaling", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--axis", nargs="+", choices=AXES, default=list(AXES), metavar="NAME",
                        help=f"of {', '.join(AXES)}; default all")  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=2.0, help="for a point, on average")
    parser.add_argument("--points", type=int, metavar="N", help="only the first N values")
    parser.add_argument("--results-dir", type=Path, default=records.FOLDER, metavar="FOLDER")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if options.points is not None and options.points < 2:
        parser.error(f"--points {options.points} must be at least 2: a fit needs two")
    record: dict[str, Any] = {
        "kind": KIND, "device": options.device, "slug": f"scaling-{slug(options.device)}",
        "date": records.now(), **describe(options.device),
        "command": shlex.join(["python", "-m", "bench.scaling"]),
        "fixed": {"users": _BATCH, "size": _SIZE, "depth": MAX_DEPTH, "items": NUM_ITEMS},
    }  # fmt: skip
    path = options.results_dir / f"{record['slug']}-{record['date'][:10]}.json"
    found = _earlier(path, record)
    for axis in options.axis:
        values = AXES[axis].values[: options.points]
        found[axis] = measure(axis, values, options.device, options.seconds)
        points = ", ".join(
            f"{value:g}: {point['median'] * 1e3:.3g} ms"
            for value, point in zip(values, found[axis]["seconds"], strict=True)
        )
        print(f"{axis}: exponent {found[axis]['exponent']:.2f}, at the large end "
              f"{found[axis]['exponent_at_the_large_end']:.2f} ({points})")  # fmt: skip
    record["axes"] = {axis: found[axis] for axis in AXES if axis in found}
    written = records.write(record, options.results_dir)
    print(f"written to {written}")
    try:
        draw(record, written.with_suffix(".png"))
    except ImportError:
        print("no plot: matplotlib is missing; pip install 'adarec_fast[viz]'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
