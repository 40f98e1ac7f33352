"""What a profile says: costs by op, with FLOPs and bytes, and what to make of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from . import (
    test_bench_depth_controller,
    test_bench_dropout,
    test_bench_embedding,
    test_bench_encoder_layer,
    test_bench_fused_trajectory,
    test_bench_hda_trajectory,
    test_bench_level_biases,
    test_bench_level_infonce,
    test_bench_level_pool,
    test_bench_linear_cross_entropy,
    test_bench_local_path,
    test_bench_memory_topk,
    test_bench_mlp_expert,
    test_bench_mlp_expert_pooled,
    test_bench_moe_aggregate,
    test_bench_score_topk,
)
from .op_case import OpCase
from .ranges import DIRECTIONS, Marks, label
from .roofline import FAR, NEAR, Point
from .workloads import Histories

CASES: dict[str, type[OpCase]] = {
    "dropout": test_bench_dropout.Dropout,
    "embedding": test_bench_embedding.Embedding,
    "encoder_layer": test_bench_encoder_layer.Backbone,
    "fine expert": test_bench_encoder_layer.FineExpert,
    "local_path": test_bench_local_path.LocalPath,
    "depth_controller": test_bench_depth_controller.DepthController,
    "hda_trajectory": test_bench_hda_trajectory.HDATrajectory,
    "mlp_expert": test_bench_mlp_expert.MLPExpert,
    "level_biases": test_bench_level_biases.LevelBiases,
    "mlp_expert_pooled": test_bench_mlp_expert_pooled.MLPExpertPooled,
    "level_pool": test_bench_level_pool.LevelPool,
    "moe_aggregate": test_bench_moe_aggregate.MoEAggregate,
    "fused_trajectory": test_bench_fused_trajectory.FusedTrajectory,
    "level_infonce": test_bench_level_infonce.LevelInfoNCE,
    "linear_cross_entropy": test_bench_linear_cross_entropy.LinearCrossEntropy,
    "score_topk": test_bench_score_topk.ScoreTopK,
    "memory_topk": test_bench_memory_topk.MemoryTopK,
}
BETWEEN, IDLE = "Python, autograd, dispatch", "device idle"
_NO_OPS = ("autograd::", "torch::autograd::", "adarec_fast::")  # what is below them is looked at
_SMALL = 20e-6  # seconds; a call of less is mostly the call itself
Work = dict[str, tuple[float, float]]


def milliseconds(seconds: float) -> str:
    """A time for people."""
    value = seconds * 1e3
    return f"{value:.0f} ms" if value >= 1000 else f"{value:.3g} ms"


@dataclass(frozen=True)
class Cost:
    """One line of a profile, a step on average.

    Attributes:
        name: a range's, an op's of PyTorch, ``BETWEEN`` or ``IDLE``.
        use, backend: of the range; None for everything else.
        calls, launches: a step; launches of kernels and copies, on CUDA.
        seconds, share: of a step.
        point: where it lies under the roofline, if its FLOPs and bytes are known.
    """

    name: str
    use: str | None
    backend: str | None
    calls: float
    launches: float
    seconds: float
    share: float
    point: Point | None = None

    def sentence(self, peaks: dict[str, float], device: str) -> str:
        """This cost in plain words."""
        calls = f" in {self.calls:g} calls" if self.calls > 1 else ""
        lead = f"{self.name}: {self.share:.0%} of the step, {milliseconds(self.seconds)}{calls}. "
        if self.name == IDLE:
            return lead + (
                "No kernel runs: the host is slower at launching than the device at computing. "
                "A captured step has no such gaps; larger batches have smaller ones."
            )
        if self.name == BETWEEN:
            return lead + (
                "No op runs: the interpreter, autograd's bookkeeping and, in part, the profiler "
                "itself. Larger batches or fewer, larger ops make it smaller."
            )
        if self.point is None:
            each = self.seconds / max(self.calls, 1)
            if each < _SMALL:
                return lead + (
                    f"An op of PyTorch at {each * 1e6:.0f} µs a call: calling it costs more than "
                    "computing; fewer calls would help."
                )
            return lead + (
                f"An op of PyTorch at {each * 1e6:.0f} µs a call, whose work is not counted here; "
                "inside the op before or after it, its memory traffic would be saved."
            )
        share, arithmetic = self.point.share(peaks), self.point.bound_by_arithmetic(peaks)
        ceiling = (
            f"arithmetic ({self.point.gflops:.0f} of {peaks['gflops']:.0f} GFLOP/s)"
            if arithmetic
            else f"memory ({self.point.gbps:.0f} of {peaks['gbps']:.0f} GB/s)"
        )
        if share >= NEAR:
            return lead + (
                f"{share:.0%} of its ceiling, {ceiling}: near the bound; only less work would "
                "make it much faster."
            )
        if share >= FAR:
            return lead + (
                f"{share:.0%} of its ceiling, {ceiling}: at most {1 / share:.1f} times as fast "
                "is possible."
            )
        hints = "random numbers, exponentials, latency" + (
            " or too few blocks to fill the device"
            if device == "cuda"
            else ", gathers or the first touch of fresh memory"
        )
        return lead + (
            f"{share:.0%} of its ceiling, {ceiling}: neither products nor bytes explain this "
            f"time; look for {hints}."
        )


class Profile(NamedTuple):
    """A step on average.

    Attributes:
        costs: largest first; they add up to the step.
        seconds: a step without profiler (median); profiled_seconds: with it.
        used_seconds: a step as its users have it, where that is another: training's captured
            CUDA graph, or a ``Recommender``.
        launches: kernels and copies on CUDA, outermost ops on a CPU.
        gaps, gap_seconds: of the device between kernels, or of the CPU between ops.
    """

    costs: list[Cost]
    launches: float
    gaps: float
    gap_seconds: float
    seconds: float = float("nan")
    profiled_seconds: float = float("nan")
    used_seconds: float | None = None

    def summary(self, device: str) -> str:
        """Time, launches and gaps of a step in a sentence."""
        what = "kernels and copies" if device == "cuda" else "ops (outermost calls)"
        text = (
            f"a step: {milliseconds(self.seconds)} ({milliseconds(self.profiled_seconds)} with the "
            f"profiler), {self.launches:.0f} {what}, {self.gaps:.0f} gaps between them of "
            f"{milliseconds(self.gap_seconds)} in all"
        )
        if self.used_seconds is not None:
            used = milliseconds(self.used_seconds)
            text += f"; as it is used, a captured graph or a Recommender: {used}"
        return text

    def as_record(self, peaks: dict[str, float]) -> dict[str, Any]:
        """Everything as JSON takes it."""
        rows = []
        for cost in self.costs:
            row: dict[str, Any] = {
                name: getattr(cost, name)
                for name in ("name", "backend", "calls", "launches", "seconds", "share")
            }
            if cost.point is not None:
                row.update(
                    flops=cost.point.flops, bytes=cost.point.bytes, gflops=cost.point.gflops,
                    gbps=cost.point.gbps, share_of_roofline=cost.point.share(peaks),
                )  # fmt: skip
            rows.append(row)
        rest = {name: value for name, value in self._asdict().items() if name != "costs"}
        return {**rest, "costs": rows}


def figures(marks: Marks, taken: Sequence[Histories], size: int, *, training: bool) -> Work:
    """FLOPs and bytes of one call of every range, on average over the steps taken.

    The depths are those that were drawn. In serving the coarse expert sees last tokens alone.
    Where the reference ran, there are no ranges and no depths, and nothing is known.
    """
    work: Work = {}
    if not marks.depths:
        return work
    batches = [
        Histories(b.item_ids.cpu(), b.offsets.cpu(), b.targets.cpu(), depth.cpu())
        for b, depth in zip(taken, marks.depths, strict=True)
    ]
    for title, (use, direction, _) in marks.found.items():
        if use not in CASES:  # sums of a few numbers, which take a launch
            continue
        case, given = CASES[use], batches
        if use == "mlp_expert" and not training:
            given = [_last_tokens(batch) for batch in batches]
        whole_pass = label(use, DIRECTIONS["bwd"]) not in marks.found and training
        costs = []
        for batch in given:
            forward = case.of_batch(batch, size, "forward")
            both = case.of_batch(batch, size, "forward+backward")
            flops, moved = (forward.flops(), both.flops()), (forward.bytes(), both.bytes())
            if direction == DIRECTIONS["bwd"]:
                costs.append((flops[1] - flops[0], moved[1] - moved[0]))
            elif whole_pass:  # gradients come out of the same call
                costs.append((flops[1], moved[1]))
            else:
                costs.append((flops[0], moved[0]))
        work[title] = tuple(sum(each) / len(costs) for each in zip(*costs, strict=True))  # type: ignore[assignment]
    return work


def _last_tokens(batch: Histories) -> Histories:
    last = batch.offsets[1:] - 1
    return Histories(
        batch.item_ids[last], torch.arange(batch.batch + 1), batch.targets, batch.depth
    )


class _Sums:
    """Running sums of one name."""

    def __init__(self) -> None:
        self.calls, self.launches, self.seconds = 0, 0, 0.0


def read(
    events: Iterable[Any], marks: Marks, work: Work, *, steps: int, device: str,
    wall: float = 0.0,
) -> Profile:
    """Costs of a torch.profiler run of ``steps`` steps: a range or an outermost op owns all below.

    Args:
        events: ``torch.profiler.profile.events()``.
        marks: the ranges.
        work: FLOPs and bytes of a call of each.
        steps: how many were profiled.
        device: whose time counts.
        wall: seconds of all steps by the clock; what lies before the first op and behind the last
            one counts as between them.
    """
    events = list(events)
    cpu = torch.autograd.DeviceType.CPU
    on_cuda = device == "cuda"
    sums: dict[str, _Sums] = defaultdict(_Sums)
    spans: list[tuple[float, float]] = []
    waiting = [e for e in events if e.device_type == cpu and e.cpu_parent is None]
    while waiting:
        event = waiting.pop()
        named = event.name in marks.found
        outermost = "::" in event.name and not event.name.startswith(_NO_OPS)
        owns = named or outermost
        kernels = _kernels(event, below=owns)
        if owns or kernels:
            one = sums[event.name]
            one.calls += 1
            one.launches += len(kernels)
            one.seconds += sum(kernels) if on_cuda else event.cpu_time_total / 1e6
        if owns:
            spans.append((event.time_range.start, event.time_range.end))
        else:
            waiting.extend(event.cpu_children)
    if on_cuda:
        names = {event.name for event in events if event.device_type == cpu}
        spans = [
            (event.time_range.start, event.time_range.end)
            for event in events
            # A range's shadow on the device has the range's name; kernels have their own.
            if event.device_type != cpu and event.name not in names
        ]
    gaps, idle, whole = _gaps(spans)
    idle, whole = idle + max(wall - whole, 0.0), max(wall, whole)
    sums[IDLE if on_cuda else BETWEEN].seconds = idle
    total = max(whole, 1e-12)
    costs = [
        _cost(name, one, marks, work, steps, total)
        for name, one in sums.items()
        if one.seconds > 0
    ]
    costs.sort(key=lambda cost: -cost.seconds)
    return Profile(costs, len(spans) / steps, gaps / steps, idle / steps)


def _cost(
    name: str, one: _Sums, marks: Marks, work: Work, steps: int, total: float
) -> Cost:
    use, _, backend = marks.found.get(name, (None, None, None))
    cost = Cost(
        name, use, backend, one.calls / steps, one.launches / steps, one.seconds / steps,
        one.seconds / total,
    )
    if name not in work:
        return cost
    flops, moved = (value * cost.calls for value in work[name])
    return replace(cost, point=Point(name, flops, moved, cost.seconds))


def _kernels(event: Any, *, below: bool) -> list[float]:
    """Seconds of the kernels that an event launched, itself or in what it called."""
    found = [kernel.duration / 1e6 for kernel in event.kernels]
    if below:
        for child in event.cpu_children:
            found += _kernels(child, below=True)
    return found


def _gaps(spans: list[tuple[float, float]]) -> tuple[int, float, float]:
    """Number of gaps, their seconds, and all seconds between the first start and last end (µs)."""
    if not spans:
        return 0, 0.0, 0.0
    spans.sort()
    count, idle, end = 0, 0.0, spans[0][1]
    for start, stop in spans[1:]:
        if start > end:
            count += 1
            idle += start - end
        end = max(end, stop)
    return count, idle / 1e6, (end - spans[0][0]) / 1e6
