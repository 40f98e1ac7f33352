"""What the training log says: loss parts and validation metrics over epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..models.base import Label
from .style import COLOURS, MARKERS, mark_best, new_figure, whole_epochs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def losses(history: list[dict[str, Any]], labels: Mapping[str, Label]) -> Figure:
    """Each part of the loss before its weight, mean over an epoch's examples; and the learning
    rate, if it changes.

    Args:
        history: the lines of ``metrics.jsonl``.
        labels: of the parts to show, see :meth:`adarec_fast.models.base.Diagnostics.labels`.
    """
    shown = [(f"loss_{name}", label.title, label.unit) for name, label in labels.items()]
    if len({line["learning_rate"] for line in history if "learning_rate" in line}) > 1:
        shown.append(("learning_rate", "learning rate", ""))
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    figure = new_figure(2.1 * rows if rows > 1 else 2.6, 3.5 * columns)
    epochs = [line["epoch"] for line in history]
    best = best_epoch(history)
    for number, (name, title, unit) in enumerate(shown):
        axes = figure.add_subplot(rows, columns, number + 1)
        values = [line[name] for line in history]
        axes.plot(epochs, values, color=COLOURS[0], marker=_marker(epochs))
        axes.set(title=title, ylabel=unit)
        mark_best(axes, best)
        whole_epochs(axes)
        if number == 0 and best is not None:
            axes.legend()
    return figure


def _cut_offs(lines: list[dict[str, Any]]) -> list[int]:
    """The smallest cut-offs that all epochs have, one a colour."""
    common = set.intersection(*(set(line["valid"]) for line in lines)) if lines else set()
    found = sorted(int(name.removeprefix("HR@")) for name in common if name.startswith("HR@"))
    return found[: len(COLOURS)]


def metrics(history: list[dict[str, Any]]) -> Figure:
    """Validation HR@k and NDCG@k, over all users and over sparse ones."""
    lines = [line for line in history if line.get("valid")]
    epochs = [line["epoch"] for line in lines]
    best = best_epoch(history)
    figure = new_figure(2.8)
    for number, metric in enumerate(("HR", "NDCG")):
        axes = figure.add_subplot(1, 2, number + 1)
        for place, k in enumerate(_cut_offs(lines)):
            for part, style, label in (
                ("valid", "-", f"@{k}, all users"),
                ("valid_sparse", "--", f"@{k}, sparse users"),
            ):
                if not all(line.get(part) for line in lines):
                    continue
                values = [line[part][f"{metric}@{k}"] for line in lines]
                axes.plot(
                    epochs, values, style, color=COLOURS[place], label=label,
                    marker=_marker(epochs, place),
                    markerfacecolor="white" if part == "valid_sparse" else None,
                )  # fmt: skip
        axes.set_ylabel(f"validation {metric}@k")
        axes.set_ylim(bottom=0)
        mark_best(axes, best)
        whole_epochs(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def best_epoch(history: list[dict[str, Any]]) -> int | None:
    """The epoch of ``best/``, None before the first validation."""
    return max((line["epoch"] for line in history if line.get("best")), default=None)


def _marker(epochs: list[int], place: int = 0) -> str | None:
    """Points are shown while they can be told apart."""
    return MARKERS[place] if len(epochs) <= 30 else None
