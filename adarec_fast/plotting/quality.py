"""How well users of short and of long histories are served."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ranking.ranks import user_metrics
from .hierarchy import length_bins, short_count
from .style import COLOURS, MARKERS, NEUTRAL, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_METRICS = ("HR@20", "NDCG@20")


def quality_by_length(lengths: Tensor, ranks: Sequence[tuple[str, Tensor]]) -> Figure:
    """HR@20 and NDCG@20 of test users within each bin of history lengths.

    Args:
        lengths: int64 [U], items of each history, not cut.
        ranks: of each run its name and int64 [U], the ranks of its test items.

    The bars of a point are its mean's 95% interval over users, 1.96 standard errors each way.
    """
    labels, place = length_bins(lengths)
    counts = torch.bincount(place, minlength=len(labels)).double()
    figure = new_figure(2.9)
    for number, metric in enumerate(_METRICS):
        axes = figure.add_subplot(1, 2, number + 1)
        for run, (name, found) in enumerate(ranks):
            values = user_metrics(found, metric).double()
            sums = torch.zeros_like(counts).index_add_(0, place, values)
            squares = torch.zeros_like(counts).index_add_(0, place, values**2)
            means = sums / counts
            # The sample variance; of one user there is none.
            spread = (squares / counts - means**2).clamp(min=0) / (counts - 1).clamp(min=1)
            shift = 0.12 * (run - (len(ranks) - 1) / 2)
            axes.errorbar(
                [x + shift for x in range(len(labels))], means.numpy(),
                yerr=(1.96 * spread.sqrt()).numpy(), color=COLOURS[run % len(COLOURS)],
                marker=MARKERS[run % len(MARKERS)], capsize=2, elinewidth=0.8,
                label=name.replace("$", r"\$"),
            )  # fmt: skip
        for x, count in enumerate(counts.tolist()):
            axes.text(
                x, 1.01, short_count(math.floor(count)), ha="center", va="bottom", fontsize=6,
                color=NEUTRAL, transform=axes.get_xaxis_transform(),
            )  # fmt: skip
        axes.set_title(metric, pad=14)
        axes.set_xticks(range(len(labels)), labels, rotation=45)
        axes.set_xlabel("history length, items")
        axes.set_ylim(bottom=0)
    if len(ranks) > 1:
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=len(ranks))
    figure.supxlabel(
        "means and their 95% intervals over users; above: number of users", fontsize=7,
        color=NEUTRAL,
    )  # fmt: skip
    return figure
