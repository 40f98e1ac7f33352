"""The table at the end of a run: ratios to every baseline, with the targets beside them."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from .harness import COMPILED, EAGER, PACKED

Row = dict[str, Any]


class Target(NamedTuple):
    """A figure to reach.

    Attributes:
        subject, workload, direction: of which comparison; workload None: of any.
        measure: a baseline (its time over ours), ``"memory"`` (the eager baseline's peak over
            ours), ``"milliseconds"`` or ``"seconds"`` (at most so many), or ``"roofline"`` or
            ``"bandwidth"`` (share of that peak).
        value: what to reach.
    """

    subject: str
    workload: str | None
    direction: str
    measure: str
    value: float

    def asks(self, subject: str, workload: str, direction: str) -> bool:
        """Whether it is answered by this comparison."""
        return (self.subject, self.direction) == (subject, direction) and self.workload in (
            None, workload
        )

    @property
    def at_most(self) -> bool:
        return self.measure in ("milliseconds", "seconds")


_WIDTH = 170  # columns that the table needs
_FORWARD, _BOTH = "forward", "forward+backward"
PRODUCT = "product and topk"  # of a recommendation: what every ranking needs
_OPS = (
    "depth_controller", "dropout", "embedding", "encoder_layer", "fused_trajectory",
    "hda_trajectory", "level_infonce", "linear_cross_entropy", "local_path", "mlp_expert",
    "moe_aggregate",
)
TARGETS = {
    "cpu": (
        Target("hda_trajectory", "large", _FORWARD, EAGER, 6),
        Target("hda_trajectory", "large", _FORWARD, COMPILED, 3),
        Target("hda_trajectory", "large", _BOTH, EAGER, 4),
        Target("hda_trajectory", "large", _BOTH, COMPILED, 2.5),
        Target("moe_aggregate", None, _FORWARD, EAGER, 6),
        Target("moe_aggregate", None, _FORWARD, COMPILED, 3),
        Target("moe_aggregate", None, _BOTH, EAGER, 6),
        Target("moe_aggregate", None, _BOTH, COMPILED, 3),
        Target("encoder_layer", None, _FORWARD, EAGER, 8),
        Target("encoder_layer", None, _FORWARD, PACKED, 2),
        Target("encoder_layer", None, _BOTH, EAGER, 8),
        Target("encoder_layer", None, _BOTH, PACKED, 2),
        Target("linear_cross_entropy", None, _BOTH, EAGER, 2),
        Target("linear_cross_entropy", None, _BOTH, COMPILED, 2),
        Target("linear_cross_entropy", None, _BOTH, PACKED, 2),
        Target("score_topk", "serve-1024", _FORWARD, EAGER, 3),
        Target("training step", None, "step", EAGER, 20),
        Target("training step", None, "step", COMPILED, 10),
        Target("training step", None, "step", PACKED, 8),
        Target("training step", None, "step", "memory", 5),
        Target("training step", None, "step", "roofline", 0.7),
        # A baseline's time over ours: 1.5 and 2 times it are 1/1.5 and 1/2.
        Target("recommend", "serve-1", _FORWARD, PRODUCT, 0.67),
        Target("recommend", "serve-1024", _FORWARD, PRODUCT, 0.5),
        # A hundredth of what the authors' code needs on the same two cores.
        Target("Beauty epoch", None, "epoch", "seconds", 10.6),
        Target("Beauty epoch", None, "epoch", "compiled packed SASRec", 4),
        *(Target(op, workload, direction, "roofline", 0.6)
          for op in _OPS for workload in ("train", "large") for direction in (_FORWARD, _BOTH)),
    ),
    "cuda": (
        Target("hda_trajectory", "large", _FORWARD, EAGER, 8),
        Target("hda_trajectory", "large", _FORWARD, COMPILED, 4),
        Target("hda_trajectory", "large", _FORWARD, "roofline", 0.5),
        Target("hda_trajectory", "large", _BOTH, EAGER, 8),
        Target("hda_trajectory", "large", _BOTH, COMPILED, 4),
        Target("moe_aggregate", None, _FORWARD, EAGER, 8),
        Target("moe_aggregate", None, _FORWARD, COMPILED, 3),
        Target("moe_aggregate", "large", _FORWARD, "bandwidth", 0.7),
        Target("moe_aggregate", None, _BOTH, EAGER, 8),
        Target("moe_aggregate", None, _BOTH, COMPILED, 3),
        Target("training step", None, "step", EAGER, 20),
        Target("training step", None, "step", COMPILED, 5),
        Target("training step", None, "step", "memory", 5),
        Target("training step", "train", "step", "milliseconds", 0.8),
        Target("training step", "large", "step", "milliseconds", 5.0),
        Target("recommend", "serve-1", _FORWARD, "milliseconds", 0.3),
        Target("recommend", "serve-1024", _FORWARD, "milliseconds", 2.0),
        Target("Beauty epoch", None, "epoch", "seconds", 0.1),
    ),
}


class Judged(NamedTuple):
    """A target at one comparison."""

    target: Target
    reached: float

    @property
    def met(self) -> bool:
        compare = operator.le if self.target.at_most else operator.ge
        return bool(compare(self.reached, self.target.value))

    def __str__(self) -> str:
        target, reached = self.target, self.reached
        if target.measure == "milliseconds":
            text = f"{reached:.2f} of ≤ {target.value:g} ms"
        elif target.measure == "seconds":
            text = f"{reached:.3g} of ≤ {target.value:g} s"
        elif target.measure in ("roofline", "bandwidth"):
            text = f"{reached:.0%} of ≥ {target.value:.0%} {target.measure}"
        else:
            text = f"{reached:.1f}x of ≥ {target.value:g}x {target.measure}"
        return f"{text}: {'met' if self.met else 'NOT MET'}"


class Comparison(NamedTuple):
    """The rows of one comparison by variant, ``ours`` being the one that runs by default."""

    name: str
    ours: Row | None
    rows: dict[str, Row]

    def ratio(self, variant: str) -> float | None:
        """A variant's median time over ours."""
        other = self.rows.get(variant)
        if self.ours is None or other is None or "seconds" not in other:
            return None
        return other["seconds"]["median"] / self.ours["seconds"]["median"]


def comparisons(rows: Iterable[Row]) -> list[Comparison]:
    """Rows grouped, in the order in which they were measured."""
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        key = tuple(row[k] for k in ("subject", "form", "workload", "hidden_size", "direction"))
        groups.setdefault((*key, row.get("precision")), {})[row["variant"]] = row
    made = []
    for (subject, form, workload, size, direction, precision), found in groups.items():
        what = f"{subject} ({form})" if form else subject
        name = f"{what}, {workload}, D={size}, {direction}" + (f", {precision}" * bool(precision))
        ours = next((row for row in found.values() if row.get("ours")), None)
        made.append(Comparison(name, ours, found))
    return made


def judge(comparison: Comparison, device: str) -> list[Judged]:
    """The targets that this comparison answers."""
    ours = comparison.ours
    if ours is None:
        return []
    judged = []
    for target in TARGETS[device]:
        if not target.asks(ours["subject"], ours["workload"], ours["direction"]):
            continue
        reached = _reached(comparison, ours, target.measure)
        if reached is not None:
            judged.append(Judged(target, reached))
    return judged


def _reached(comparison: Comparison, ours: Row, measure: str) -> float | None:
    if measure == "milliseconds":
        return ours["seconds"]["median"] * 1e3
    if measure == "seconds":
        return seconds(ours)
    if measure in ("roofline", "bandwidth"):
        name = "share_of_roofline" if measure == "roofline" else "share_of_peak_bandwidth"
        share = ours.get(name)
        return None if share is None else float(share)
    if measure == "memory":
        eager = comparison.rows.get(EAGER, {}).get("peak_memory")
        return eager / ours["peak_memory"] if eager and ours["peak_memory"] else None
    return comparison.ratio(measure)


def seconds(row: Row) -> float:
    """A row's median; of an epoch that is timed in stretches, the whole epoch's."""
    return row["seconds"]["median"] * row.get("stretches", 1)


def milliseconds(row: Row) -> str:
    """A row's median time for people."""
    if row["direction"] == "epoch":
        return f"{seconds(row):.3g} s"
    value = seconds(row) * 1e3
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _with_target(text: str, measure: str, judged: list[Judged]) -> str:
    """A cell, and the target beside it if it has one."""
    for one in judged:
        if one.target.measure == measure:
            share = measure in ("roofline", "bandwidth")
            limit = f"{one.target.value:.0%}" if share else f"{one.target.value:g}"
            sign = "≤" if one.target.at_most else "≥"
            verdict = "[green]met[/]" if one.met else "[red]NOT MET[/]"
            return f"{text} ({sign} {limit}: {verdict})"
    return text


def print_tables(rows: list[Row], peaks: dict[str, float], device: str) -> None:
    """Print one line a comparison to standard output."""
    console = Console(highlight=False)
    if console.width < _WIDTH:  # a table cut off in the middle of its figures is no use in a log
        console = Console(highlight=False, width=_WIDTH)
    table = Table(
        box=box.SIMPLE_HEAD,
        title="times of the baselines over ours (medians), targets in brackets",
    )
    table.add_column("")
    table.add_column("ours")
    for heading in (EAGER, COMPILED, PACKED, "memory, eager", "bandwidth", "roofline"):
        table.add_column(heading, justify="right")
    for comparison in comparisons(rows):
        ours = comparison.ours
        if ours is None:
            continue
        judged = judge(comparison, device)
        absolute = "seconds" if ours["direction"] == "epoch" else "milliseconds"
        cells = [_with_target(f"{milliseconds(ours)} {ours['variant']}", absolute, judged)]
        for measure in (EAGER, COMPILED, PACKED, "memory"):
            ratio = _reached(comparison, ours, measure)
            cells.append("" if ratio is None else _with_target(f"{ratio:.2f}x", measure, judged))
        cells.append(
            _with_target(f"{ours['share_of_peak_bandwidth']:.0%}", "bandwidth", judged)
        )
        cells.append(_with_target(f"{ours['share_of_roofline']:.0%}", "roofline", judged))
        table.add_row(comparison.name, *cells)
    console.print(table)
    for comparison in comparisons(rows):
        if comparison.ours is not None and comparison.ours["direction"] == "epoch":
            found = [row for row in comparison.rows.values() if "seconds" in row]
            times = ", ".join(f"{row['variant']} {milliseconds(row)}" for row in found)
            console.print(f"{comparison.name}, {comparison.ours['data']}: {times}")
    console.print("peaks measured first: " + ", ".join(f"{k} {v:g}" for k, v in peaks.items()))
