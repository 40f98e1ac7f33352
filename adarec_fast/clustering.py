"""Clusters of representations and their agreement with planted labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def _checked(points: Tensor, clusters: int) -> int:
    """How many points there are, if they can make so many clusters."""
    number = points.shape[0]
    if not 1 <= clusters <= number:
        raise ValueError(f"clusters={clusters} must be in 1..{number}, the number of points")
    if not bool(torch.isfinite(points).all()):
        raise ValueError("points hold NaN or infinity; k-means needs finite ones")
    return number


def kmeans(
    points: Tensor, clusters: int, *, restarts: int = 4, iterations: int = 50, seed: int = 0
) -> Tensor:
    """Lloyd's k-means from k-means++ beginnings; the best of a few restarts.

    Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.

    Args:
        points: floating [n, d].
        clusters: at most n.
        restarts: beginnings to try; the one of least within-cluster sum of squares is kept.
        iterations: at most so many rounds each.
        seed: the result depends on the points and on this only.

    Returns:
        int64 [n] on the points' device: cluster of each point.

    Raises:
        ValueError: ``clusters`` is outside 1..n, or points are not finite.
    """
    _checked(points, clusters)
    generator = torch.Generator().manual_seed(seed)
    best: Tensor | None = None
    best_cost = float("inf")
    for _ in range(restarts):
        centres = _spread(points, clusters, generator)
        previous = None
        for _ in range(iterations):
            distance, assigned = torch.cdist(points, centres).min(1)
            if previous is not None and bool((assigned == previous).all()):
                break
            previous = assigned
            count = torch.bincount(assigned, minlength=clusters).to(points.dtype)[:, None]
            total = torch.zeros_like(centres).index_add_(0, assigned, points)
            # A cluster that lost all its points stays where it was.
            centres = torch.where(count > 0, total / count.clamp(min=1), centres)
        cost = float(distance.double().square().sum())
        if best is None or cost < best_cost:
            best, best_cost = assigned, cost
    assert best is not None
    return best


def _spread(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next centre is a point drawn by its squared distance to the nearest."""
    draw = torch.rand(clusters, generator=generator, dtype=torch.float64)
    chosen = [int(draw[0] * points.shape[0])]
    nearest = torch.full((points.shape[0],), float("inf"), dtype=torch.float64)
    for uniform in draw[1:].tolist():
        gap = (points - points[chosen[-1]]).double().square().sum(1).cpu()
        nearest = torch.minimum(nearest, gap)
        mass = nearest.cumsum(0)
        place = int(torch.searchsorted(mass, uniform * mass[-1], right=True))
        chosen.append(min(place, points.shape[0] - 1))
    return points[torch.tensor(chosen, device=points.device)]


_ROWS = 4096  # distances of so many points stay in a cache
_SPLIT = 1 / 1024


def centroids(
    points: Tensor, clusters: int, *, restarts: int = 5, iterations: int = 20, seed: int = 0
) -> Tensor:
    """Centroids by k-means as faiss's ``Clustering`` has it.

    Random points begin; ``iterations`` rounds follow, whatever changes in them; a cluster that lost
    all its points takes half of the largest one: the pair gets its centroid times 1 +- 1/1024, with
    signs that alternate over dimensions (faiss draws the larger one by size). Of the restarts the
    one of least sum of squares before its last round is kept. Sums are matrix products and
    ``index_add`` in the order of the points: the result does not depend on threads.

    Args:
        points: floating [n, d].
        clusters: at most n.
        restarts: beginnings to try.
        iterations: rounds of each, at least one.
        seed: the result depends on the points and on this only.

    Returns:
        [clusters, d], as they are: not normalised.

    Raises:
        ValueError: ``clusters`` is outside 1..n, or points are not finite.
    """
    number = _checked(points, clusters)
    generator = torch.Generator().manual_seed(seed)
    squares = float(points.double().square().sum())
    best, best_cost = points[:clusters], float("inf")
    for _ in range(restarts):
        chosen = torch.randperm(number, generator=generator)[:clusters]
        centres = points[chosen.to(points.device)].clone()
        cost = best_cost
        for _ in range(iterations):
            assigned, gain = nearest(points, centres)
            cost = squares - float(gain.double().sum())
            centres = _means(points, centres, assigned)
        if cost < best_cost:
            best, best_cost = centres, cost
    return best


def nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each point, int64 [n], and 2 p c - |c|^2 of it [n]: what the squared
    distance is below |p|^2.

    Args:
        points: floating [n, d].
        centres: [k, d].
    """
    below, turned = -centres.square().sum(1), 2 * centres.T
    found = [torch.addmm(below, rows, turned).max(1) for rows in points.split(_ROWS)]
    if not found:
        return torch.zeros(0, dtype=torch.int64, device=points.device), points.new_zeros(0)
    return torch.cat([one.indices for one in found]), torch.cat([one.values for one in found])


def _means(points: Tensor, centres: Tensor, assigned: Tensor) -> Tensor:
    """The next centroids: means of their points, and halves of the largest for those without."""
    clusters = centres.shape[0]
    count = torch.bincount(assigned, minlength=clusters)
    total = torch.zeros_like(centres).index_add_(0, assigned, points)
    found = total / count.clamp(min=1).to(points.dtype)[:, None]
    empty = (count == 0).nonzero()[:, 0]
    if empty.numel():
        largest = count.argsort(descending=True, stable=True)[: empty.numel()]
        sign = torch.ones_like(centres[0])
        sign[1::2] = -1
        halves = found[largest]
        found[empty] = halves * (1 + _SPLIT * sign)
        found[largest] = halves * (1 - _SPLIT * sign)
    return found


def normalized_mutual_info(
    labels_a: Tensor | NDArray[Any] | Sequence[int], labels_b: Tensor | NDArray[Any] | Sequence[int]
) -> float:
    """Mutual information of two labellings over the mean of their entropies, in 0..1.

    Strehl and Ghosh, JMLR 3 (2002), with the arithmetic mean. Two constant labellings agree: 1.

    Raises:
        ValueError: the labellings differ in length, are empty, or are not 1-D.
    """
    a, b = (
        np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        for labels in (labels_a, labels_b)
    )
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(
            f"labels_a {list(a.shape)} and labels_b {list(b.shape)} must be 1-D, of one length "
            "of at least 1"
        )
    _, a = np.unique(a, return_inverse=True)
    _, b = np.unique(b, return_inverse=True)
    width = int(b.max()) + 1
    cells, counts = np.unique(a.astype(np.int64) * width + b, return_counts=True)
    p_ab = counts / a.size
    p_a, p_b = np.bincount(a) / a.size, np.bincount(b) / b.size
    entropy = -float(np.sum(p_a * np.log(p_a)) + np.sum(p_b * np.log(p_b))) / 2
    if entropy == 0.0:
        return 1.0
    information = float(np.sum(p_ab * np.log(p_ab / (p_a[cells // width] * p_b[cells % width]))))
    return min(max(information / entropy, 0.0), 1.0)
