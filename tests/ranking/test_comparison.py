"""Paired differences of two systems and their intervals."""

from __future__ import annotations

import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from adarec_fast.ranking.comparison import (
    Interval,
    bootstrap_intervals,
    compare,
    holm,
    sign_test,
    t_interval,
    t_quantile,
)
from adarec_fast.ranking.ranks import UNREACHABLE, ranking_metrics, user_metrics


def ranks_of(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def test_a_users_metrics_by_hand() -> None:
    ranks = ranks_of(1, 3, 20, 21, UNREACHABLE)
    ndcg = [1, 1 / math.log2(4), 1 / math.log2(21), 0, 0]
    assert user_metrics(ranks, "NDCG@20").tolist() == pytest.approx(ndcg)
    assert user_metrics(ranks, "HR@20").tolist() == [1, 1, 1, 0, 0]
    assert user_metrics(ranks, "MRR@5").tolist() == [1, pytest.approx(1 / 3), 0, 0, 0]
    means = ranking_metrics(ranks, (20,))
    for metric in ("NDCG@20", "HR@20", "MRR@20", "Recall@20"):
        assert means[metric] == float(user_metrics(ranks, metric).mean())
    # Capped anywhere beyond the cut-off, and in a small type, they are worth the same.
    small = ranks.clamp(max=65_535).to(torch.uint16)
    for metric in ("NDCG@20", "HR@5"):
        assert torch.equal(user_metrics(small, metric), user_metrics(ranks, metric))
    for wrong in ("NDCG", "NDCG@0", "NDCG@x", "AUC@20", "@5"):
        with pytest.raises(ValueError, match="NDCG@20"):
            user_metrics(ranks, wrong)


def test_differences_by_hand() -> None:
    systems = {
        "old": {0: ranks_of(1, 30, 30, 30), 1: ranks_of(30, 30, 30, 30), 7: ranks_of(1, 1, 1, 1)},
        "new": {1: ranks_of(1, 1, 30, 30), 0: ranks_of(1, 1, 3, 30)},
    }
    (found,) = compare(systems, "old", metrics=["HR@20"])["new"]
    assert found.seeds == (0, 1)  # the third is the baseline's alone
    assert found.value == pytest.approx((0.5 + 0.5) / 2)
    assert found.deviation == 0
    assert found.over_seeds == Interval(0.5, 0.5)
    # Of each user: 0.5, 1, 0.5, 0; a mean of four of them, drawn at random.
    assert 0 <= found.users.low < 0.5 < found.users.high <= 1
    (sparse,) = compare(
        systems, "old", metrics=["NDCG@20"], chosen=torch.tensor([False, False, True, False])
    )["new"]
    assert sparse.value == pytest.approx(0.25)  # 1 / log2(4) in one seed of two
    assert sparse.users == pytest.approx((0.25, 0.25))  # one user, whatever is drawn
    assert sparse.deviation == pytest.approx(statistics.stdev([0.5, 0]))


def test_one_seed_and_none() -> None:
    systems = {"a": {3: ranks_of(1, 2)}, "b": {3: ranks_of(2, 1)}, "c": {4: ranks_of(1, 1)}}
    found = compare(systems, "a")
    assert [difference.metric for difference in found["b"]] == ["NDCG@20", "HR@20"]
    assert found["b"][0].over_seeds is found["b"][0].deviation is None
    assert found["c"] == []


def test_what_is_refused() -> None:
    one = {0: ranks_of(1, 2)}
    with pytest.raises(ValueError, match="baseline='x'"):
        compare({"a": one}, "x")
    with pytest.raises(ValueError, match="same users"):
        compare({"a": one, "b": {0: ranks_of(1, 2, 3)}}, "a")
    with pytest.raises(ValueError, match="a user or more"):
        compare({"a": one, "b": one}, "a", chosen=torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="resamples=10"):
        bootstrap_intervals(torch.zeros(1, 5, dtype=torch.float64), 10)


def test_the_bootstrap_is_numpys() -> None:
    """The same quantiles as of samples that NumPy draws, within the noise of drawing."""
    generator = np.random.default_rng(0)
    values = generator.exponential(size=(2, 200))
    found = np.mean(
        [bootstrap_intervals(torch.from_numpy(values), 10_000, seed=seed) for seed in range(4)], 0
    )
    drawn = [generator.integers(200, size=(10_000, 200)) for _ in range(4)]
    for row, interval in zip(values, found, strict=True):
        expected = np.mean([np.quantile(row[d].mean(1), [0.025, 0.975]) for d in drawn], 0)
        error = row.std() / math.sqrt(200)
        assert np.abs(interval - expected).max() < 0.06 * error


def test_the_bootstrap_repeats_itself() -> None:
    values = torch.rand(3, 50, dtype=torch.float64)
    first = bootstrap_intervals(values, 400, seed=5)
    assert bootstrap_intervals(values, 400, seed=5) == first
    assert bootstrap_intervals(values, 400, seed=6) != first
    # Each row as if it were alone: all are compared on the same samples.
    (alone,) = bootstrap_intervals(values[1:2], 400, seed=5)
    assert alone == pytest.approx(first[1])


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (9, 2.262157), (100, 1.983972)],
)
def test_students_quantiles_are_those_of_tables(freedom: int, expected: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(expected, rel=1e-6)
    assert t_quantile(0.5, freedom) == pytest.approx(0, abs=1e-9)


def test_students_interval_by_hand() -> None:
    # Mean 3, deviation sqrt(2.5), error sqrt(0.5), and 2.776445 of it with 4 degrees of freedom.
    reach = 2.776445 * math.sqrt(0.5)
    assert t_interval([1, 2, 3, 4, 5]) == pytest.approx((3 - reach, 3 + reach), rel=1e-6)
    with pytest.raises(ValueError, match="two numbers or more, got 1"):
        t_interval([1.0])
    with pytest.raises(ValueError, match="freedom=0"):
        t_quantile(0.975, 0)
    assert Interval(0.1, 0.2).excludes_zero
    assert not Interval(-0.1, 0.2).excludes_zero


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 400 pairs of systems that hit with probabilities 0.10 and 0.13, of correlated users."""
    generator = torch.Generator().manual_seed(1)
    over_users = over_seeds = 0
    trials, users = 400, 300
    for _ in range(trials):
        easy = torch.rand(users, generator=generator)  # what both systems share
        own = torch.rand(users, generator=generator)
        mixed = torch.where(torch.rand(users, generator=generator) < 0.7, easy, own)
        old, new = (torch.where(hit, 1, 99) for hit in (easy < 0.10, mixed < 0.13))
        (found,) = compare(
            {"old": {0: old}, "new": {0: new}}, "old", metrics=["HR@20"], resamples=400
        )["new"]
        over_users += found.users.low <= 0.03 <= found.users.high
        trained = 0.03 + 0.01 * torch.randn(5, generator=generator, dtype=torch.float64)
        low, high = t_interval(trained.tolist())
        over_seeds += low <= 0.03 <= high
    # 0.95 within three standard errors of 400 trials, and what a bootstrap of 300 users loses.
    assert 0.91 <= over_users / trials <= 0.985
    assert 0.915 <= over_seeds / trials <= 0.985


def exact_sign_p(wins: int, losses: int) -> float:
    """Sums of whole numbers, as the test is defined."""
    number = wins + losses
    tail = sum(math.comb(number, i) for i in range(min(wins, losses) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**number)))


def test_sign_test_by_whole_numbers() -> None:
    for wins, losses, ties in ((0, 0, 3), (1, 0, 0), (5, 5, 0), (3, 9, 2), (700, 640, 99)):
        values = torch.tensor([0.25] * wins + [-1.0] * losses + [0.0] * ties)
        found = sign_test(values)
        assert found[:3] == (wins, losses, ties)
        assert found.p == pytest.approx(exact_sign_p(wins, losses), rel=1e-9)
    # Of millions of users no power of two overflows: the normal approximation, z = 2000 / 1000.
    many = torch.cat([torch.ones(501_000), -torch.ones(499_000)])
    assert sign_test(many).p == pytest.approx(0.0456, abs=2e-4)


def test_holm_by_hand() -> None:
    # Of three: the smallest times 3, the next times 2, and never less than one before it.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
