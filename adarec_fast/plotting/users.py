"""What a batch's trajectory is made of, and one user's hierarchy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models.adarec.model import ADARec
from .style import NEUTRAL, level_colours, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN_ITEMS = 3
_LONGEST = 18  # characters of an id


def trajectory(lengths: Sequence[int], depths: Sequence[int], max_depth: int) -> Figure:
    """The cells (token, level) that a batch of users computes, user beside user.

    Args:
        lengths: tokens of each user.
        depths: T_u of each.
        max_depth: T; a padded batch computes all levels of as many tokens as the longest has.
    """
    colours = level_colours(max_depth + 1)
    figure = new_figure(2.4 + 0.12 * max_depth)
    axes = figure.add_subplot()
    begin = 0
    cells: dict[tuple[int, bool], list[tuple[float, float]]] = {}
    for number, (length, depth) in enumerate(zip(lengths, depths, strict=True), 1):
        for level in range(max_depth + 1):
            places = [(begin + token - 0.45, 0.9) for token in range(length)]
            cells.setdefault((level, level <= depth), []).extend(places)
        axes.text(
            begin + (length - 1) / 2, max_depth + 0.7, f"{number}", ha="center", fontsize=7,
            color=NEUTRAL,
        )  # fmt: skip
        axes.axvline(begin + length, color=NEUTRAL, linewidth=0.6, linestyle=":")
        begin += length + 1
    for (level, reached), places in cells.items():
        axes.broken_barh(
            places, (level - 0.45, 0.9), facecolors=colours[level] if reached else "none",
            edgecolors=NEUTRAL, linewidths=0 if reached else 0.4,
        )  # fmt: skip
    computed = sum(length * (depth + 1) for length, depth in zip(lengths, depths, strict=True))
    padded = len(lengths) * max(lengths) * (max_depth + 1)
    axes.set(
        yticks=range(max_depth + 1), ylabel="level $k$", xlim=(-0.8, begin - 0.8),
        ylim=(-0.7, max_depth + 1.4),
    )  # fmt: skip
    axes.set_xlabel(
        "tokens, one user behind the other (numbered above); empty: beyond the user's depth"
    )
    axes.set_xticks([])
    axes.grid(False)
    axes.set_title(
        f"{computed:,} cells are computed; padded in length and depth they would be {padded:,} "
        f"({computed / padded:.0%})"
    )
    return figure


@dataclass(frozen=True)
class UserHierarchy:
    """One user's levels.

    Attributes:
        user: id, and ``history``: ids, oldest first.
        depth: T_u.
        gates: g_k of Eq. 7, float [T_u + 1]; None without HP-MoE.
        items: of each level 0..T_u the ids whose vectors point most nearly as its mean does, with
            the cosine.
    """

    user: Any
    history: list[Any]
    depth: int
    gates: list[float] | None
    items: list[list[tuple[Any, float]]]


@torch.no_grad()
def user_hierarchy(
    model: ADARec, history: Tensor, x0: Tensor, user: Any, ids: Sequence[Any]
) -> UserHierarchy:
    """Read one user's hierarchy off a model.

    Args:
        model: evaluating.
        history: int64 [n], at most ``max_length`` items.
        x0: float [T+1, D], unit vectors: each level's mean over the history (Eq. 5).
        user: id, to show.
        ids: the items' ids, of index 1 first.
    """
    offsets = torch.tensor([0, history.numel()], device=model.device)
    output = model((history.to(model.device), offsets), return_gates=True)
    depth = int(output.depth)
    table = torch.nn.functional.normalize(model.table()[1:].float().cpu(), dim=-1)
    near = (x0[: depth + 1] @ table[:, : x0.shape[1]].T).topk(min(_SHOWN_ITEMS, len(ids)))
    gates = None if output.gates is None else output.gates[: depth + 1, 0].tolist()
    return UserHierarchy(
        user, [ids[i - 1] for i in history.tolist()], depth, gates,
        [
            [(ids[i], cosine) for i, cosine in zip(row, values, strict=True)]
            for row, values in zip(near.indices.tolist(), near.values.tolist(), strict=True)
        ],
    )  # fmt: skip


def hierarchy_of_user(found: UserHierarchy, max_depth: int) -> Figure:
    """A row a level, the finest below: which expert reads it, and which items lie near it."""
    colours = level_colours(max_depth + 1)
    figure = new_figure(1.3 + 0.34 * (max_depth + 1))
    left, right = figure.subplots(1, 2, width_ratios=(1, 3), sharey=True)
    for level in range(max_depth + 1):
        if level > found.depth:
            right.text(0, level, "not reached", va="center", fontsize=7, color=NEUTRAL)
            continue
        if found.gates is not None:
            gate = found.gates[level]
            left.barh(level, gate, 0.7, color=colours[level])
            left.text(
                min(gate + 0.02, 0.8), level, f"{gate:.2g}", va="center", fontsize=7,
                color="white" if gate > 0.8 else "black",
            )  # fmt: skip
        shown = ",  ".join(f"{_short(i)} ({cosine:.2f})" for i, cosine in found.items[level])
        right.text(0, level, _plain(shown), va="center", fontsize=7)
    left.set(
        xlim=(0, 1), ylim=(-0.6, max_depth + 0.6), yticks=range(max_depth + 1),
        ylabel="level $k$", xlabel="gate $g_k$ to the fine expert",
    )  # fmt: skip
    left.axvline(0.5, color=NEUTRAL, linewidth=0.6, linestyle=":")
    right.set_title("items nearest to the level's mean vector (cosine)", loc="left")
    right.set_axis_off()
    latest = ", ".join(_short(item) for item in found.history[-5:])
    older = "… " if len(found.history) > 5 else ""
    figure.suptitle(
        _plain(f"user {_short(found.user)}, depth {found.depth} of {max_depth}; "
               f"{len(found.history)} items: {older}{latest}"),
        fontsize=8, x=0.01, ha="left",
    )  # fmt: skip
    return figure


def _short(item: Any) -> str:
    text = str(item)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _plain(text: str) -> str:
    """An id is no formula."""
    return text.replace("$", r"\$")


def spread(lengths: Tensor, limit: int, number: int) -> list[int]:
    """Places of users from the shortest history to the longest of at most ``limit`` items."""
    order = lengths.argsort(stable=True)
    order = order[lengths[order] <= limit]
    steps = torch.linspace(0, len(order) - 1, min(number, len(order))).round().long()
    return order[steps].tolist() if len(order) else []
