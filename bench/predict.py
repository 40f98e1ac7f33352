"""What a captured step should take on a GPU, said before anybody has measured it.

    python -m bench.predict                 ops and step, "train" and "large", as a table
    python -m bench.predict --save          into bench/results/predicted.json, too

A kernel's time is the busiest unit's (``bench.triton_model``) at a share of its peak, and no less
than what a kernel in a graph costs that does nothing; what runs step by step adds its steps. The
shares are guesses of the trade, the same for all kernels, and stay as they are until the first
measurement, against which ``bench.gpu`` puts them. Launches are counted, not guessed: each
launcher's, recorded for the GPU.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .triton_model import LOADS, PEAKS, Load, units

SAVED = Path(__file__).parent / "results" / "predicted.json"
GPUS = ("RTX 3090", "H100", "H200")
SHOWN = GPUS[:2]  # in tables: the last differs from the one before in its memory alone
ARCHITECTURES = {"RTX 3090": 86, "H100": 90, "H200": 90}
PRECISIONS = {"ieee": "ieee", "tf32": "tf32", "bf16": "half"}
# Of a peak that a kernel reaches: products of small tiles, streamed memory, integer pipelines.
SHARES = {"products": 0.4, "memory": 0.7, "random": 0.6}
# us of a kernel in a graph that waits for the one before: start, first loads, and its end.
LEAST = 2.5
# Steps of the longest history, and clocks of one at D = 64 (``kernels/_gru_scan.py``).
SCANNED, CLOCKS = 50, {"RTX 3090": 800, "H100": 500, "H200": 500}
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
# What a step runs in other models, or in place of these; and a request of 1,024 users.
BESIDE = (
    "score_topk", "memory_topk", "mlp_expert", "level_pool", "local_path", "dropout",
    "fused_trajectory", "linear_cross_entropy[10^6 items]",
)  # fmt: skip
# By what rows of a record say of an op's form; and the workload whose figures are theirs.
_FORMS = {"fine expert": "[last]", "10^6 items": "[10^6 items]"}
_WORKLOADS = {"serve-1024": "large"}
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
    from .triton_examples import launches_of_op  # imports triton, which reading a file needs not

    kind = PRECISIONS[precision]
    if op.endswith("[10^6 items]"):
        op, load = op.partition("[")[0], load._replace(items=10**6)
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


def beside(
    workload: str, size: int, precision: str, gpu: str
) -> Iterator[tuple[str, int, tuple[Predicted | None, Predicted | None]]]:
    """The same of each op that is in no step by default."""
    for op in BESIDE:
        forward, backward = (
            predicted(op, LOADS[workload], size, precision, gpu, back) for back in (False, True)
        )
        if forward is not None:
            yield op, 1, (forward, backward)


def data(size: int = 64) -> dict[str, Any]:
    """All predictions: by workload, GPU and precision, of a step and of what is beside it.

    Of each op ``count``, how often it runs, and by pass ``launches``, ``us`` and what ``bound`` it.
    """
    found: dict[str, Any] = {}
    for workload, gpu, precision in product(LOADS, GPUS, PRECISIONS):
        launches, time = step(workload, size, precision, gpu)
        by_gpu = found.setdefault(workload, {}).setdefault(gpu, {})
        by_gpu[precision] = {
            "launches": launches, "us": round(time, 1),
            "ops": _told(rows(workload, size, precision, gpu)),
            "beside": _told(beside(workload, size, precision, gpu)),
        }  # fmt: skip
    return found


def _told(
    ops: Iterator[tuple[str, int, tuple[Predicted | None, Predicted | None]]]
) -> dict[str, Any]:
    return {
        op: {"count": number, "passes": {
            name: {"launches": one.launches, "us": round(one.time, 1), "bound": one.bound}
            for name, one in zip(("forward", "backward"), passes, strict=True)
            if one is not None
        }}
        for op, number, passes in ops
    }  # fmt: skip


def document() -> dict[str, Any]:
    """What ``bench/results/predicted.json`` holds."""
    return {
        "command": "python -m bench.predict --save",
        "shares of a peak": SHARES, "us of a launch": LEAST,
        "predicted": {str(size): data(size) for size in (64, 128)},
    }  # fmt: skip


def table(
    predictions: dict[str, Any], kind: str = "ops"
) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of a table of one workload of :func:`data`: its ``ops``, or ``beside``."""
    columns = [(gpu, precision) for gpu in SHOWN for precision in predictions[gpu]]
    first = predictions[columns[0][0]][columns[0][1]]
    lines = []
    for op, one in first[kind].items():
        cells = [op if one["count"] == 1 else f"{one['count']} x {op}"]
        cells.append(" + ".join(str(p["launches"]) for p in one["passes"].values()))
        for gpu, precision in columns:
            passes = predictions[gpu][precision][kind][op]["passes"].values()
            cells.append(" + ".join(f"{p['us']:.0f}" for p in passes))
        lines.append(cells)
    if kind == "ops":
        sums = (f"{predictions[gpu][precision]['us']:.0f}" for gpu, precision in columns)
        lines.append(["a step", str(first["launches"]), *sums])
    return ["op", "launches", *(f"{gpu}, {precision}" for gpu, precision in columns)], lines


def foreseen(
    card: str, subject: str, form: str | None, workload: str, size: int, direction: str,
    precision: str,
) -> float | None:
    """Seconds that the file foresees for a row of a record, or None where it has no such row.

    Args:
        card: the GPU's name as torch has it.
        subject, form: the op, and which of its cases.
        workload, size, direction, precision: as rows have them.
    """
    gpu = next((known for known in GPUS if known in card), None)
    document = json.loads(SAVED.read_text(encoding="utf-8"))["predicted"]
    load = _WORKLOADS.get(workload, workload)
    known = document.get(str(size), {}).get(load, {}).get(gpu, {}).get(precision, {})
    op = subject + _FORMS.get(form or "", "")
    one = {**known.get("ops", {}), **known.get("beside", {})}.get(op)
    if one is None:
        return None
    wanted = ["forward"] if direction == "forward" else list(one["passes"])
    return sum(float(one["passes"][name]["us"]) for name in wanted) * 1e-6


def _one_line(inside: str) -> str:
    return "{" + " ".join(inside.split()) + "}"


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.predict", description=__doc__)
    parser.add_argument("--size", type=int, default=64, choices=(64, 128), help="D")
    parser.add_argument("--save", action="store_true", help="write bench/results/predicted.json")
    chosen = parser.parse_args(arguments)
    for (workload, predictions), kind in product(data(chosen.size).items(), ("ops", "beside")):
        heads, lines = table(predictions, kind)
        title = f"{workload}, {'a step' if kind == 'ops' else kind}, D = {chosen.size}"
        shown = Table(title=f"{title}: predicted us, forward + backward")
        for name in heads:
            shown.add_column(name, justify="left" if name == "op" else "right")
        for line in lines:
            shown.add_row(*map(escape, line))
        Console().print(shown)
    if chosen.save:
        partial = SAVED.with_suffix(".partial")
        text = json.dumps(document(), indent=1)
        # A pass of an op is one line.
        text = re.sub(r'\{\s+("launches": [^{}]*?)\s+\}', lambda m: _one_line(m[1]), text)
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, SAVED)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
