"""Each op's time on the device: one call captured, the graph replayed between two events.

Launches cost the host nothing in a replay, so this is the kernels' own time and the gaps between
them, as a captured step has them. At ``train`` the tensors stay in the second-level cache, as they
do in a step; at ``large`` they do not.
"""

from __future__ import annotations

import torch

from ...cell import shares
from ...op_case import OpCase
from ...predict import foreseen
from ...test_bench_linear_cross_entropy import MillionItems
from ...workloads import WORKLOADS
from ..phase import Results
from ..timing import captured, device_seconds, spread
from ..work import PRECISIONS, attempt, backends, computing, label, op_cases

_SECONDS = 0.15  # of replays
_SIZE = 64
_WORKLOADS = {False: ("train", "large"), True: ("serve-1", "serve-1024")}


def run(results: Results) -> None:
    """One row an op, workload, direction, precision and backend."""
    peaks = results.peaks()
    for place in (0, 1):  # the small workloads of all ops first
        for kind in _cases():
            workload = _WORKLOADS[kind.serving_only][place]
            for direction in WORKLOADS[workload].directions:
                case = kind(workload, _SIZE, direction, results.settings.device)
                for precision in PRECISIONS:
                    for backend in backends(case.name, case.device):
                        error = attempt(_measure, results, case, backend, precision, peaks)
                        if error is not None:
                            results.say(f"{label(case)} {workload} {precision}: {error}")
                            results.add("failed", f"{label(case)} {workload} {precision} "
                                                  f"{backend}: {error}")  # fmt: skip
                torch.cuda.empty_cache()
        rows = results.found.get("rows", [])
        results.put(summary=f"{len(rows)} times, {len(results.found.get('failed', []))} failed")


def _cases() -> list[type[OpCase]]:
    return [*op_cases(), MillionItems]


def _measure(
    results: Results, case: OpCase, backend: str, precision: str, peaks: dict[str, float]
) -> None:
    # Without a check: that is the phase before this one.
    part = case._parts(1)[0]
    inputs = case._inputs(part, False)
    drawn = case.stochastic and case.training

    def call() -> object:
        return case._once(
            lambda t, b, d: case.public(t, b, backend, case.seed if d else None), *inputs, drawn
        )

    with computing(precision, case.device):
        graph = captured(call)
    rounds = device_seconds(graph.replay, _SECONDS)
    seconds = spread(rounds)
    flops, moved = case.flops(), case.bytes()
    gflops, gbps = flops / seconds["median"] / 1e9, moved / seconds["median"] / 1e9
    peak = {"ieee": "gflops", "tf32": "gflops_tf32", "bf16": "gflops_bf16"}[precision]
    results.add("rows", {
        "subject": case.name, "form": case.form, "workload": case.workload,
        "hidden_size": case.size, "direction": case.direction, "variant": backend,
        "precision": precision, "replayed": True, "ours": True, "seconds": seconds,
        "predicted_seconds": foreseen(
            torch.cuda.get_device_name(), case.name, case.form, case.workload, case.size,
            case.direction, precision,
        ),
        "flops": flops, "bytes": moved, "gflops": gflops, "gbps": gbps,
        **shares(gflops, gbps, {**peaks, "gflops": peaks.get(peak, peaks["gflops"])}),
    })  # fmt: skip
    results.say(
        f"{label(case)} {case.workload} {case.direction} {precision} {backend}: "
        f"{seconds['median'] * 1e6:.1f} us"
    )


def kernels(device: str) -> None:
    """Every launch of :func:`run`, on batches small enough for the CPU."""
    for kind in _cases():
        for workload in _WORKLOADS[kind.serving_only]:
            for direction in WORKLOADS[workload].directions:
                case = kind(workload, _SIZE, direction, device)
                drawn = case.stochastic and case.training
                for precision in PRECISIONS:
                    with computing(precision, device):
                        case.run("triton", torch.float32, drawn)
