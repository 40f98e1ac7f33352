"""A metric against a swept value, mean and standard deviation over seeds (the paper's Fig. 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..config import ConfigError
from ..experiments import Group
from .style import COLOURS, MARKERS, NEUTRAL, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SYMBOLS = {
    "lambda_deno": r"$\lambda_{deno}$", "lambda_cont": r"$\lambda_{cont}$",
    "lambda_expl": r"$\lambda_{expl}$", "max_depth": "$T_{max}$",
    "gumbel_temperature": r"$\tau_{gs}$", "contrastive_temperature": r"$\tau$",
}  # fmt: skip
_MOST_LINES = len(COLOURS)


def numeric_axes(groups: Sequence[Group]) -> list[str]:
    """Keys with at least two different numbers as values."""
    keys = dict.fromkeys(key for group in groups for key in group.values)
    result = []
    for key in keys:
        values = {group.values[key] for group in groups if key in group.values}
        if len(values) > 1 and all(
            isinstance(v, int | float) and not isinstance(v, bool) for v in values
        ):
            result.append(key)
    return result


def sensitivity(
    groups: Sequence[Group], metric: str = "NDCG@20", *, sparse: bool = False
) -> Figure:
    """One panel for each swept number; a line for each setting of everything else.

    Args:
        groups: of :func:`adarec_fast.experiments.summarise`.
        metric: on the test part, of the best validation epoch.
        sparse: over sparse users.

    Raises:
        ConfigError: nothing finished, no such metric, no number was swept, or there would be
            more lines than colours.
    """
    part = "test_sparse" if sparse else "test"
    done = [group for group in groups if group.results]
    if not done:
        raise ConfigError("the sweep has no finished run yet")
    known = [m for m in done[0].results[0]["test"] if not m.startswith(("Recall", "MAP"))]
    if metric not in known:
        raise ConfigError(f"metric={metric!r} is not one of {', '.join(known)}")
    axes_keys = numeric_axes(done)
    if not axes_keys:
        raise ConfigError("no number was swept over; --grid lambda_deno=0.03,0.1,0.3 would be one")
    figure = new_figure(2.9, max(3.6, min(7.0, 3.4 * len(axes_keys)) + 0.4))
    panels = figure.subplots(1, len(axes_keys), sharey=True, squeeze=False)[0]
    for axes, key in zip(panels, axes_keys, strict=True):
        lines = _lines(done, key)
        if len(lines) > _MOST_LINES:
            raise ConfigError(
                f"{key}: {len(lines)} lines, one for each setting of the other keys, cannot be "
                f"told apart; sweep over at most {_MOST_LINES}"
            )
        for number, (label, members) in enumerate(lines.items()):
            points = sorted((group.values[key], *group.mean_std(part, metric)) for group in members)
            points = [point for point in points if point[1] is not None]
            x = [point[0] for point in points]
            y = [point[1] for point in points]
            spread = [point[2] or 0.0 for point in points]
            axes.errorbar(
                x, y, yerr=spread if any(spread) else None, capsize=3, color=COLOURS[number],
                marker=MARKERS[number], label=label, linewidth=1.4,
            )  # fmt: skip
        _scale(axes, [group.values[key] for group in done if key in group.values])
        axes.set_xlabel(_SYMBOLS.get(key, key))
        if len(lines) > 1:
            axes.legend()
    users = "sparse test users" if sparse else "test users"
    panels[0].set_ylabel(f"{metric}, {users}")
    runs = sorted({len(group.results) for group in done})
    seeds = f"{runs[0]}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
    note = f"runs a point: {seeds}" + ("; bars: one standard deviation" if runs[-1] > 1 else "")
    figure.supxlabel(note, fontsize=7, color=NEUTRAL)
    return figure


def _lines(groups: Sequence[Group], key: str) -> dict[str, list[Group]]:
    """Groups that differ in ``key`` alone, by the text of the rest.

    Lines of one point are left out if others have more: a sweep of one weight at a time has them.
    """
    lines: dict[str, list[Group]] = {}
    for group in groups:
        if key in group.values:
            rest = {k: v for k, v in group.values.items() if k != key}
            label = ", ".join(f"{_SYMBOLS.get(k, k)} = {v}" for k, v in rest.items())
            lines.setdefault(label, []).append(group)
    longer = {label: members for label, members in lines.items() if len(members) > 1}
    return longer or lines


def _scale(axes: Any, values: list[float]) -> None:
    """Ticks at the values themselves; logarithmic where they span more than tenfold."""
    ticks = sorted(set(values))
    positive = [value for value in ticks if value > 0]
    if len(positive) == len(ticks) and ticks[-1] / ticks[0] >= 10:
        axes.set_xscale("log")
    elif positive and len(positive) < len(ticks) and positive[-1] / positive[0] >= 10:
        # A weight of 0 switches a part off and belongs on the axis.
        decades = math.log10(positive[-1] / positive[0])
        axes.set_xscale("symlog", linthresh=positive[0], linscale=max(0.4, 0.3 * decades))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.margins(x=0.08)
