"""How deep users go, and which expert reads each level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .measure import Depths
from .style import NEUTRAL, level_colours, new_figure, require, whole_epochs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# History lengths, in items: one by one where most users are, then wider.
_EDGES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 21, 51)
_GATE_LIMIT = 1e-6  # a saturated sigmoid is drawn here


def length_bins(lengths: Tensor) -> tuple[list[str], Tensor]:
    """Labels of the bins that hold users, and each user's bin.

    Args:
        lengths: int64 [U], at least 1.

    Returns:
        Labels such as ``"4"``, ``"9–12"`` and ``"≥51"``, and int64 [U] places in them.
    """
    edges = torch.tensor(_EDGES)
    number = torch.bucketize(lengths, edges, right=True) - 1
    used, place = number.unique(return_inverse=True)
    labels = []
    for index in used.tolist():
        low = _EDGES[index]
        if index + 1 == len(_EDGES):
            labels.append(f"≥{low}")
        else:
            high = _EDGES[index + 1] - 1
            labels.append(str(low) if low == high else f"{low}–{high}")
    return labels, place


def depth_by_length(depths: Depths, max_depth: int) -> Figure:
    """Shares of the depths T_u within each bin of history lengths: chosen, and in training."""
    labels, place = length_bins(depths.lengths)
    levels = max_depth + 1
    chosen = torch.nn.functional.one_hot(depths.depth, levels).double()
    panels = [("chosen at evaluation (argmax)", chosen)]
    if depths.probabilities is not None:
        panels.append(("drawn from in training (softmax, Eq. 2)", depths.probabilities.double()))
    counts = torch.bincount(place, minlength=len(labels))
    figure = new_figure(3.1, 3.6 * len(panels) + 0.4)
    colours = level_colours(levels)
    first: Any = None
    for number, (title, shares) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1, sharey=first)
        sums = torch.zeros(len(labels), levels, dtype=torch.float64).index_add_(0, place, shares)
        means = (sums / counts[:, None]).numpy()
        bottom = np.zeros(len(labels))
        for k in range(levels):
            axes.bar(
                labels, means[:, k], 0.85, bottom=bottom, color=colours[k], label=f"{k}",
                edgecolor="white", linewidth=0.4,
            )  # fmt: skip
            bottom += means[:, k]
        for x, count in enumerate(counts.tolist()):
            axes.text(
                x, 1.01, short_count(count), ha="center", va="bottom", fontsize=6, color=NEUTRAL
            )
        axes.set_title(title, pad=14)
        axes.set(xlabel="history length, items", ylim=(0, 1))
        axes.tick_params(axis="x", rotation=45)
        axes.grid(False)
        axes.yaxis.set_major_formatter(require("matplotlib.ticker").PercentFormatter(1))
        if first is None:
            axes.set_ylabel("share of users")
            first = axes
        else:
            axes.tick_params(labelleft=False)
    handles, names = first.get_legend_handles_labels()
    figure.legend(
        handles[::-1], names[::-1], title="depth $T_u$", loc="outside right center"
    )
    figure.supxlabel("small figures above the bars: number of users", fontsize=7, color=NEUTRAL)
    return figure


def gate_by_level(depths: Depths, history: list[dict[str, Any]], max_depth: int) -> Figure:
    """g_k of Eq. 7: its mean in training by epoch, and its distribution over test users."""
    if depths.gates is None:
        raise ValueError("depths.gates is None: the model has no HP-MoE, so there is no gate")
    levels = max_depth + 1
    colours = level_colours(levels)
    figure = new_figure(2.9)
    left, right = figure.subplots(1, 2, sharey=True)
    # The gate is a sigmoid: on this scale equal steps are equal steps of what goes into it.
    left.set_yscale("logit")
    epochs = [line["epoch"] for line in history]
    for k in range(levels):
        values = [line["gate"][k] for line in history]
        known = np.array([np.nan if value is None else value for value in values])
        known = known.clip(_GATE_LIMIT, 1 - _GATE_LIMIT)
        left.plot(
            epochs, known, color=colours[k], label=f"{k}", marker="o" if len(epochs) < 31 else None
        )
    left.set_title("mean over training examples", pad=14)
    left.set_ylabel("gate $g_k$ to the fine expert")
    whole_epochs(left)
    shown, boxes, counts = [], [], []
    for k in range(levels):
        reached = depths.gates[k][~depths.gates[k].isnan()]
        counts.append(reached.numel())
        if reached.numel():
            shown.append(k)
            boxes.append(reached.clamp(_GATE_LIMIT, 1 - _GATE_LIMIT).numpy())
    drawn = right.boxplot(
        boxes, positions=shown, widths=0.6, whis=(5, 95), showfliers=False, patch_artist=True,
        medianprops={"color": "black"}, manage_ticks=False,
    )  # fmt: skip
    for k, patch in zip(shown, drawn["boxes"], strict=True):
        patch.set(facecolor=colours[k], edgecolor="black", linewidth=0.6)
    for k, count in enumerate(counts):
        right.text(
            k, 1.01, short_count(count), ha="center", va="bottom", fontsize=7, color=NEUTRAL,
            transform=right.get_xaxis_transform(),
        )  # fmt: skip
    right.set_title("test users that reach the level", pad=14)
    right.set(xlabel="level $k$", xlim=(-0.6, levels - 0.4), xticks=range(levels))
    _gate_ticks(left)
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], title="level $k$", loc="outside right center")
    note = "right: quartiles, whiskers at 5% and 95%; above: number of users"
    figure.supxlabel(note, fontsize=7, color=NEUTRAL)
    return figure


def _gate_ticks(axes: Any) -> None:
    """Plain numbers on a logit axis that shows at least 0.1 to 0.9."""
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.09), max(high, 0.91))
    ticker = require("matplotlib.ticker")
    ticks = [1e-6, 1e-5, 1e-4, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1 - 1e-4, 1 - 1e-5]
    axes.yaxis.set_major_locator(ticker.FixedLocator(ticks))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.10g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def short_count(count: int) -> str:
    """``940``, ``1.2k``, ``56k``: as wide as a narrow bar."""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 9950 else f"{count / 1000:.0f}k"
