"""Intent clusters: t-SNE of representations (the paper's Fig. 6), and cluster scores by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..clustering import kmeans, normalized_mutual_info
from ..config import ConfigError
from .style import COLOURS, MARKERS, new_figure, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMES = {
    "x0": r"level $\hat{E}_k$ (Eq. 5)",
    "fine": r"fine expert's output",
    "coarse": r"coarse expert's output $z_{u,k}$ (Eq. 6)",
}


def check_clusters(clusters: int, users: int) -> None:
    """Raise :class:`ConfigError` where so many clusters cannot be drawn or scored."""
    if not 2 <= clusters <= len(COLOURS):
        raise ConfigError(f"clusters={clusters} must be in 2..{len(COLOURS)}, as many as colours")
    if users <= 2 * clusters:
        raise ConfigError(
            f"users={users} are too few for {clusters} clusters; take more than {2 * clusters}"
        )


def t_sne(panels: Sequence[tuple[str, Tensor]], clusters: int, seed: int) -> Figure:
    """Two-dimensional maps of unit vectors, a colour a k-means cluster.

    Van der Maaten and Hinton, JMLR 9 (2008), as scikit-learn has it. The title of each panel
    gives the mean silhouette (Rousseeuw 1987) of its clusters in the full space; distances
    between clusters of a map say nothing.

    Args:
        panels: titles with unit vectors [U, D].
        clusters: of k-means, at most as many as there are colours.
        seed: of k-means and of t-SNE.
    """
    manifold, scores = require("sklearn.manifold"), require("sklearn.metrics")
    figure = new_figure(3.4, 3.4 * len(panels))
    for number, (title, points) in enumerate(panels):
        users = points.shape[0]
        check_clusters(clusters, users)
        found = kmeans(points, clusters, seed=seed)
        place = manifold.TSNE(
            perplexity=min(30.0, (users - 1) / 3), init="pca", random_state=seed
        ).fit_transform(points.numpy())
        silhouette = _silhouette(scores, points, found)
        axes = figure.add_subplot(1, len(panels), number + 1)
        for cluster in range(clusters):
            mine = place[(found == cluster).numpy()]
            if not len(mine):
                continue
            axes.scatter(
                mine[:, 0], mine[:, 1], s=5, color=COLOURS[cluster], linewidths=0, alpha=0.75,
                label=str(cluster + 1), rasterized=True,
            )  # fmt: skip
        for cluster in range(clusters):
            mine = place[(found == cluster).numpy()]
            if len(mine):
                axes.text(
                    *_middle(mine), str(cluster + 1), ha="center", va="center", fontsize=8,
                    bbox={"boxstyle": "circle,pad=0.2", "facecolor": "white", "alpha": 0.85,
                          "edgecolor": COLOURS[cluster]},
                )  # fmt: skip
        axes.set_title(f"{title}\n{users:,} users, silhouette {silhouette:.2f}")
        axes.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2" if not number else "")
        axes.set_box_aspect(1)
        axes.spines[["top", "right"]].set_visible(True)
        axes.grid(False)
    return figure


def cluster_scores(
    levels: Mapping[str, Tensor],
    clusters: int,
    seed: int,
    planted: Mapping[str, Tensor] | None = None,
) -> Figure:
    """How well each level of the hierarchy falls into clusters.

    Args:
        levels: ``"x0"``, ``"fine"``, ``"coarse"``: unit vectors [T+1, U, D].
        clusters: of k-means.
        seed: of k-means.
        planted: int64 [U] labels by name, for normalised mutual information.
    """
    scores = require("sklearn.metrics")
    wanted = ["silhouette (higher: clearer)", "Davies–Bouldin index (lower: clearer)"]
    wanted += [f"NMI with planted {name}" for name in planted or {}]
    columns = min(len(wanted), 2)
    rows = -(-len(wanted) // columns)
    figure = new_figure(2.7 * rows)
    every = figure.subplots(rows, columns, squeeze=False).flatten()
    for spare in every[len(wanted) :]:
        spare.remove()
    for line, (name, points) in enumerate(levels.items()):
        number, users = points.shape[:2]
        check_clusters(clusters, users)
        found = [kmeans(points[k], clusters, seed=seed) for k in range(number)]
        values = [
            [_silhouette(scores, points[k], found[k]) for k in range(number)],
            [_davies_bouldin(scores, points[k], found[k]) for k in range(number)],
        ]
        for labels in (planted or {}).values():
            intents = int(labels.unique().numel())
            by_level = [kmeans(points[k], min(intents, users), seed=seed) for k in range(number)]
            values.append([normalized_mutual_info(one, labels) for one in by_level])
        for axes, series in zip(every, values, strict=False):
            axes.plot(
                range(number), series, color=COLOURS[line], marker=MARKERS[line],
                label=_NAMES[name],
            )  # fmt: skip
    for axes, title in zip(every, wanted, strict=False):
        depth = next(iter(levels.values())).shape[0]
        axes.set(title=title, xlabel="level $k$ (0: fine, deepest: coarse)", xticks=range(depth))
        low, high = axes.get_ylim()
        axes.set_ylim(min(0.0, low), high + 0.05 * (high - min(0.0, low)))
    handles, labels_ = every[0].get_legend_handles_labels()
    figure.legend(handles, labels_, loc="outside lower center", ncols=len(handles))
    return figure


def _middle(points: object) -> tuple[float, float]:
    """The point whose summed distance to the others is least lies among them, a mean may not."""
    import numpy as np

    places = np.asarray(points)
    some = places[:: max(1, len(places) // 400)]
    gap = np.linalg.norm(some[:, None] - some[None], axis=-1).sum(1)
    x, y = some[int(gap.argmin())]
    return float(x), float(y)


def _silhouette(scores: object, points: Tensor, found: Tensor) -> float:
    if found.unique().numel() < 2:  # all points alike: k-means leaves the other clusters empty
        return float("nan")
    return float(scores.silhouette_score(points.numpy(), found.numpy()))  # type: ignore[attr-defined]


def _davies_bouldin(scores: object, points: Tensor, found: Tensor) -> float:
    if found.unique().numel() < 2:
        return float("nan")
    return float(scores.davies_bouldin_score(points.numpy(), found.numpy()))  # type: ignore[attr-defined]
