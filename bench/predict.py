"""What a captured step should take on a GPU, said before anybody has measured it.

    python -m bench.predict                 ops and step, "train" and "large", as a table
    python -m bench.predict --size 128 --gpu H100

A kernel's time is the busiest unit's (``bench.triton_model``) at a share of its peak, and no less
than what a kernel in a graph costs that does nothing; what runs step by step adds its steps. The
shares are guesses of the trade, the same for all kernels, and stay as they are until the first
measurement, against which ``bench.gpu`` puts them. Launches are counted, not guessed: each
launcher's, recorded for the GPU.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .triton_examples import launches_of_op
from .triton_model import LOADS, PEAKS, Load, units

GPUS = ("RTX 3090", "H100")
ARCHITECTURES = {"RTX 3090": 86, "H100": 90}
PRECISIONS = {"ieee": "ieee", "tf32": "tf32", "bf16": "half"}
# Of a peak that a kernel reaches: products of small tiles, streamed memory, integer pipelines.
SHARES = {"products": 0.4, "memory": 0.7, "random": 0.6}
# us of a kernel in a graph that waits for the one before: start, first loads, and its end.
LEAST = 2.5
# Steps of the longest history, and clocks of one at D = 64 (``kernels/_gru_scan.py``).
SCANNED, CLOCKS = 50, {"RTX 3090": 800, "H100": 500}
# A training step by default: op, what it works on, and how often.
STEP = (
    ("embedding", "tokens", 1), ("encoder_layer", "backbone", 2), ("length_bias", "tokens", 1),
    ("depth_controller", "tokens", 1), ("choose_depth", "tokens", 1), ("level_biases", "tokens", 1),
    ("hda_trajectory", "tokens", 1), ("encoder_layer[last]", "tokens", 1),
    ("mlp_expert_pooled", "tokens", 1), ("moe_aggregate", "tokens", 1),
    ("level_infonce", "tokens", 1), ("linear_cross_entropy", "tokens", 1),
    ("objective", "tokens", 1), ("epoch_statistics", "tokens", 1), ("gradient_norm", "tokens", 1),
    ("adam", "tokens", 1),
)  # fmt: skip
OTHER_LAUNCHES = 7  # torch's own: sums of losses, a step's number, a padded offset


class Predicted(NamedTuple):
    """One pass of an op.

    Attributes:
        launches: kernels it starts.
        time: us.
        bound: the unit that decides: products, memory, random, launches, or steps.
    """

    launches: int
    time: float
    bound: str


@functools.cache
def predicted(
    op: str, load: Load, size: int, precision: str, gpu: str, backward: bool
) -> Predicted | None:
    """An op's forward or backward pass on a GPU, or None where it has none.

    Args:
        op: a key of ``triton_model.OPS``.
        load: what it works on.
        size: D.
        precision: ``"ieee"``, ``"tf32"`` or ``"bf16"``.
        gpu: one of ``GPUS``.
        backward: which pass.
    """
    kind = PRECISIONS[precision]
    _, times = units(op, load, size, kind, backward)
    count = launches_of_op(op, size, kind, ARCHITECTURES[gpu])[backward]
    if not times or not count:
        return None
    found = {unit: time / SHARES[unit] for unit, time in times[gpu].items()}
    bound = max(found, key=lambda unit: found[unit])
    time, least = found[bound], LEAST * count
    if op == "depth_controller":
        waves = max(1.0, load.sequences / 8 / PEAKS[gpu]["multiprocessors"])
        clocks = CLOCKS[gpu] * (size / 64) * (1.5 if backward else 1.0) * waves**0.5
        steps = SCANNED * clocks / (PEAKS[gpu]["ghz"] * 1e3)
        if steps > time:
            time, bound = steps, "steps"
    if least > time:
        return Predicted(count, least, "launches")
    # Starts overlap with nothing: each but the first comes on top.
    return Predicted(count, time + LEAST * (count - 1), bound)


def step(workload: str, size: int, precision: str, gpu: str) -> tuple[int, float]:
    """Launches of a captured training step, and its us."""
    launches, time = OTHER_LAUNCHES, OTHER_LAUNCHES * LEAST
    for _, number, passes in rows(workload, size, precision, gpu):
        for one in passes:
            if one is not None:
                launches, time = launches + number * one.launches, time + number * one.time
    return launches, time


def rows(
    workload: str, size: int, precision: str, gpu: str
) -> Iterator[tuple[str, int, tuple[Predicted | None, Predicted | None]]]:
    """Of each op of a step: its name, how often it runs, forward and backward."""
    for op, what, number in STEP:
        load = LOADS[workload]
        load = load.backbone() if what == "backbone" else load
        forward, backward = (
            predicted(op, load, size, precision, gpu, back) for back in (False, True)
        )
        yield op, number, (forward, backward)


def table(size: int, workload: str, gpus: tuple[str, ...]) -> list[list[str]]:
    """Cells of a table of a step's ops and its sum: launches, then us by GPU and precision."""
    columns = [(gpu, precision) for gpu in gpus for precision in PRECISIONS]
    lines: list[list[str]] = []
    by_column = [list(rows(workload, size, precision, gpu)) for gpu, precision in columns]
    for at, (op, number, passes) in enumerate(by_column[-1]):
        counts = [str(one.launches) for one in passes if one is not None]
        times = [
            " + ".join(f"{one.time:.0f}" for one in column[at][2] if one is not None)
            for column in by_column
        ]
        name = op if number == 1 else f"{number} x {op}"
        lines.append([name, " + ".join(counts), *times])
    sums = [step(workload, size, precision, gpu) for gpu, precision in columns]
    lines.append(["a step", str(sums[-1][0]), *(f"{time:.0f}" for _, time in sums)])
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.predict", description=__doc__)
    parser.add_argument("--size", type=int, default=64, choices=(64, 128))
    parser.add_argument("--gpu", nargs="+", default=list(GPUS), choices=GPUS)
    chosen = parser.parse_args(arguments)
    gpus = tuple(chosen.gpu)
    for workload in LOADS:
        shown = Table(title=f"{workload}, D = {chosen.size}: predicted us, forward + backward")
        for name in heads(gpus):
            shown.add_column(name, justify="left" if name == "op" else "right")
        for line in table(chosen.size, workload, gpus):
            shown.add_row(*map(escape, line))
        Console().print(shown)
    return 0


def heads(gpus: tuple[str, ...]) -> list[str]:
    """Names of :func:`table`'s columns."""
    return ["op", "launches", *(f"{gpu} {p}" for gpu in gpus for p in PRECISIONS)]


def as_data(size: int = 64) -> dict[str, Any]:
    """All predictions of a step as a record has them: workload, GPU, precision, op, pass."""
    return {
        workload: {
            gpu: {
                precision: {
                    "step_us": round(step(workload, size, precision, gpu)[1], 1),
                    "ops": {
                        op: [None if one is None else round(one.time, 1) for one in passes]
                        for op, _, passes in rows(workload, size, precision, gpu)
                    },
                }
                for precision in PRECISIONS
            }
            for gpu in GPUS
        }
        for workload in LOADS
    }


if __name__ == "__main__":
    raise SystemExit(main())
