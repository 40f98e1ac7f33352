"""Which of two systems ranks better, and how sure that is: differences of metrics, with intervals.

Both systems rank for the same users, so that what makes a user hard cancels in the difference of
the two (a paired comparison). A difference varies for two reasons, and each has its interval:

*Over users*: would other users of the same kind show it? A user's figure is the mean over the
seeds, and users are drawn with replacement (the percentile bootstrap: a user's NDCG is mostly
zero, far from any normal distribution, and there are thousands of users). The seeds are taken as
they are; with one seed, the interval is of these two trained models.

*Over seeds*: would it be there if both were trained again? There is a difference of the means over
all users for each seed, and of these few numbers Student's t interval is taken, n - 1 degrees of
freedom: each is a mean over thousands of users, so close to normal, while a bootstrap of five
numbers covers far less than it says. The users are taken as they are.

An effect is established where both leave out zero.

For the p that some journals ask for there are an exact sign test over users and Holm's correction.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .ranks import user_metrics

METRICS = ("NDCG@20", "HR@20")
CONFIDENCE = 0.95
RESAMPLES = 2_000  # an end of the interval then wanders by 6% of the standard error
_DRAWN = 1 << 21  # users drawn at once; their counts stay in a few megabytes


class Interval(NamedTuple):
    """The ends of an interval."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether it lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Difference:
    """A system's metric less the baseline's.

    Attributes:
        metric: ``"NDCG@20"``, ...
        seeds: those that both systems have; the comparison is of these.
        value: mean over users and seeds.
        users: interval over users, of the mean over seeds.
        deviation: sample standard deviation of the seeds' differences; None of one seed.
        over_seeds: interval over seeds; None of one seed.
    """

    metric: str
    seeds: tuple[int, ...]
    value: float
    users: Interval
    deviation: float | None
    over_seeds: Interval | None


def compare(
    systems: Mapping[str, Mapping[int, Tensor]],
    baseline: str,
    *,
    metrics: Sequence[str] = METRICS,
    chosen: Tensor | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, list[Difference]]:
    """Each system less a baseline, with 95% intervals.

    Args:
        systems: by name, the ranks of the same users for each seed: int [U], from 1, as
            :func:`.evaluation.evaluate` gives them, or capped beyond the metrics' cut-offs.
        baseline: one of the systems.
        metrics: as :func:`.ranks.user_metrics` takes them.
        chosen: bool [U], the users that count; all by default.
        resamples: of the bootstrap. All systems and metrics are compared on the same ones.
        seed: of the bootstrap; the same one gives the same intervals.

    Returns:
        For each other system a difference for each metric, over the seeds that it shares with the
        baseline; none of a system that shares no seed.

    Raises:
        ValueError: the baseline is no system, two have different users, or nobody is chosen.
    """
    if baseline not in systems:
        raise ValueError(f"baseline={baseline!r} is not one of {', '.join(map(repr, systems))}")
    shapes = {tuple(ranks.shape) for seeds in systems.values() for ranks in seeds.values()}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError(
            f"ranks must be of the same users in all systems, of one shape [U]; got {shapes}"
        )
    paired = {
        name: tuple(sorted(systems[baseline].keys() & seeds.keys()))
        for name, seeds in systems.items()
        if name != baseline
    }
    keys = [(name, metric) for name, seeds in paired.items() if seeds for metric in metrics]
    if not keys:
        return {name: [] for name in paired}
    differences = {
        (name, metric): torch.stack(
            [
                user_metrics(systems[name][s], metric) - user_metrics(systems[baseline][s], metric)
                for s in paired[name]
            ]
        )
        for name, metric in keys
    }  # float64 [S, U] each
    if chosen is not None:
        differences = {key: found[:, chosen] for key, found in differences.items()}
    intervals = bootstrap_intervals(
        torch.stack([found.mean(0) for found in differences.values()]), resamples, seed
    )
    result: dict[str, list[Difference]] = {name: [] for name in paired}
    for (name, metric), users in zip(keys, intervals, strict=True):
        by_seed = differences[name, metric].mean(1).tolist()
        several = len(by_seed) > 1
        result[name].append(
            Difference(
                metric=metric,
                seeds=paired[name],
                value=statistics.fmean(by_seed),
                users=users,
                deviation=statistics.stdev(by_seed) if several else None,
                over_seeds=t_interval(by_seed) if several else None,
            )
        )
    return result


def bootstrap_intervals(
    values: Tensor, resamples: int = RESAMPLES, seed: int = 0
) -> list[Interval]:
    """95% percentile bootstrap intervals of means over users.

    Args:
        values: float64 [M, U]: M quantities of the same U users, U >= 1.
        resamples: how many samples of U users are drawn, with replacement.
        seed: of the drawing.

    Returns:
        M intervals, all of the same samples.

    Raises:
        ValueError: a shape or number is out of range.
    """
    if values.dim() != 2 or values.shape[1] < 1:
        raise ValueError(f"values must be [M, U] with a user or more, got {list(values.shape)}")
    if resamples < 100:
        raise ValueError(f"resamples={resamples} must be at least 100: 95% need the tails")
    generator = torch.Generator().manual_seed(seed)
    users = values.shape[1]
    columns = values.double().cpu().T.contiguous()
    means = []
    for size in _chunks(resamples, max(1, _DRAWN // users)):
        drawn = torch.randint(users, (size, users), generator=generator)
        # How often each user is drawn; a sum over the sample is then a product.
        none, once = (torch.full((size, users), n, dtype=torch.float32) for n in (0.0, 1.0))
        times = none.scatter_add_(1, drawn, once)
        means.append(times.double() @ columns / users)
    tail = (1 - CONFIDENCE) / 2
    ends = torch.quantile(
        torch.cat(means), torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0
    )
    return [Interval(low, high) for low, high in ends.T.tolist()]


class SignTest(NamedTuple):
    """For how many users one system is better, worse and alike, and the p of chance alone."""

    wins: int
    losses: int
    ties: int
    p: float


def sign_test(differences: Tensor) -> SignTest:
    """The exact two-sided sign test of paired differences.

    Of those that are not zero, as many are expected on either side; p is the binomial probability
    of a split at least as uneven (Dixon and Mood 1946). Ties are left out of it and told: a user
    whose item neither system finds says nothing of either. Of hits (HR@k) it is the exact form of
    McNemar's test.

    Args:
        differences: float [U], a system's metric less the other's.

    Example:
        >>> import torch
        >>> from adarec_fast.ranking.comparison import sign_test
        >>> sign_test(torch.tensor([0.5, 0.1, 0.2, -0.3, 0.0]))
        SignTest(wins=3, losses=1, ties=1, p=0.625)
    """
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    number = wins + losses
    # Of C(n, i) / 2^n up to the smaller side; by logarithms, for there may be millions of users.
    i = torch.arange(min(wins, losses) + 1, dtype=torch.float64)
    n = torch.tensor(float(number), dtype=torch.float64)
    terms = (n + 1).lgamma() - (i + 1).lgamma() - (n - i + 1).lgamma() - n * math.log(2)
    p = min(1.0, 2 * math.exp(float(terms.logsumexp(0))))
    # Rounded where p is told, not where it decides; 0.625 should not be 0.6250000000000001.
    return SignTest(wins, losses, differences.numel() - number, float(f"{p:.12g}"))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's (1979) correction of the p of several tests: that any one of them is below a level
    by chance is then no likelier than the level, whatever their dependence.

    Example:
        >>> from adarec_fast.ranking.comparison import holm
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = largest
    return corrected


def t_interval(values: Sequence[float]) -> Interval:
    """Student's 95% interval for the mean of two numbers or more.

    Raises:
        ValueError: there are fewer.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs two numbers or more, got {len(values)}")
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    reach = t_quantile(1 - (1 - CONFIDENCE) / 2, len(values) - 1) * error
    return Interval(mean - reach, mean + reach)


def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution, by bisection of its distribution function.

    Args:
        probability: in 0.5..1, excluding 1.
        freedom: degrees of freedom, at least 1.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError(f"probability={probability} must be in [0.5, 1), freedom={freedom} >= 1")
    low, high = 0.0, math.pi / 2  # of the angle atan(t / sqrt(freedom))
    for _ in range(100):
        middle = (low + high) / 2
        if 0.5 + _within(middle, freedom) / 2 < probability:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(\\|t\\| < sqrt(freedom) tan(angle)): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    # Odd: cos + 2/3 cos^3 + 2 4/(3 5) cos^5 ...; even: 1 + 1/2 cos^2 + 1 3/(2 4) cos^4 ...
    for power in range(1 if odd else 0, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - begun) for begun in range(0, total, size)]
