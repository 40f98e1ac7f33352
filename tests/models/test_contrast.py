"""NT-Xent by hand, products of concatenations without their padding, and k-means."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from adarec_fast.clustering import _means, centroids, nearest
from adarec_fast.models.blocks.contrast import (
    Tokens,
    concatenated,
    overlap_products,
    pair_infonce,
    pair_products,
)

EYE = torch.eye(2, dtype=torch.float64)


def of(first: Tensor, second: Tensor, **options: Tensor) -> float:
    return float(pair_infonce(pair_products(first, second), **options))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (0 * EYE, 0 * EYE, math.log(3)),
        (EYE, EYE, math.log(math.e + 2) - 1),
        (EYE, EYE.flip(0), math.log(math.e + 2)),
        (torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[1.0, 1], [0, 1]]), 0.817280),
        (EYE[:1], 3 * EYE[:1], 0.0),
    ],
)
def test_pairs_by_hand(first: Tensor, second: Tensor, expected: float) -> None:
    assert of(first, second) == pytest.approx(expected, abs=1e-6)
    assert of(second, first) == pytest.approx(expected, abs=1e-6)


def test_pairs_of_one_id_and_pairs_that_fill_up() -> None:
    assert of(EYE, EYE, ids=torch.tensor([4, 4])) == pytest.approx(0.0, abs=1e-12)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator)
    valid = torch.tensor([True, False, True, True, False])
    found = of(z[0], z[1], valid=valid)
    assert found == pytest.approx(of(z[0][valid], z[1][valid]), abs=1e-12)
    ids = torch.tensor([1, 1, 2, 1, 2])
    several = of(z[0], z[1], ids=ids, valid=valid)
    assert several == pytest.approx(of(z[0][valid], z[1][valid], ids=ids[valid]), abs=1e-12)
    assert several < found


def test_intents_of_icl_by_hand() -> None:
    """Both users of one prototype (1, 0): two rows lose ln(2e + 1) - 1, one ln 3, one ln(2e+1)."""
    prototype = EYE[[0, 0]]
    assert of(EYE, prototype) == pytest.approx(1.171149, abs=1e-6)
    assert of(EYE, prototype, ids=torch.tensor([0, 0])) == pytest.approx(0.0, abs=1e-12)


def tokens_case(dtype: torch.dtype) -> tuple[Tensor, Tokens]:
    """Sequences of 1, 6, 3 and 9 places with holes, and a token of none."""
    generator = torch.Generator().manual_seed(2)
    places = [[0], [5, 4, 1], [2, 1, 0], [8, 7, 3, 0]]
    rows = [row for row, taken in enumerate(places) for _ in taken]
    x = torch.randn(len(rows) + 1, 3, dtype=dtype, generator=generator)
    flat = [place for taken in places for place in taken]
    return x, Tokens(torch.tensor([*rows, 4]), torch.tensor([*flat, 0]), 4, 9)


def test_products_of_concatenations() -> None:
    x, tokens = tokens_case(torch.float64)
    dense = concatenated(x, tokens)
    assert dense.shape == (4, 27)
    x[-1] = float("nan")
    torch.testing.assert_close(overlap_products(x, tokens), dense @ dense.T)
    x[-1] = 0.0
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: overlap_products(x, tokens), (x,))


def test_the_nearest_centroid_is_by_distance_not_by_angle() -> None:
    centres = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    found, gain = nearest(torch.tensor([[1.4, 1.2]]), centres)
    assert found.tolist() == [1]
    assert 1.4**2 + 1.2**2 - float(gain[0]) == pytest.approx(2.0, abs=1e-5)


def test_centroids_of_clear_clusters_and_of_their_seed() -> None:
    generator = torch.Generator().manual_seed(1)
    planted = torch.randn(3, 4, generator=generator) * 10
    points = planted.repeat(50, 1) + 0.05 * torch.randn(150, 4, generator=generator)
    found = centroids(points, 3, restarts=40, seed=3)
    assert torch.cdist(planted, found).amin(1).max() < 0.05
    assert torch.equal(found, centroids(points, 3, restarts=40, seed=3))
    # What it ends with is a fixed point: means of the points that are nearest.
    one = centroids(points, 5, restarts=1, seed=3)
    assigned, _ = nearest(points, one)
    for cluster in range(5):
        torch.testing.assert_close(points[assigned == cluster].mean(0), one[cluster])
    with pytest.raises(ValueError, match="clusters=301"):
        centroids(points, 301)


def test_a_cluster_without_points_takes_half_of_the_largest() -> None:
    points = torch.tensor([[1.0, 2.0]] * 8 + [[5.0, 5.0]] * 2)
    assigned = torch.tensor([2] * 8 + [0] * 2)
    found = _means(points, torch.zeros(3, 2), assigned)
    by = 1 / 1024
    halves = [[5.0, 5.0], [1 + by, 2 - 2 * by], [1 - by, 2 + 2 * by]]
    torch.testing.assert_close(found, torch.tensor(halves))
    # Only so do three clusters find three places, whatever points they began with.
    points = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.1], [50.0]]).repeat(4, 1)
    for seed in range(4):
        ended = centroids(points, 3, restarts=1, seed=seed)
        assert torch.bincount(nearest(points, ended)[0], minlength=3).min() > 0
