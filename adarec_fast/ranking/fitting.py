"""How much a memory counts beside a model: chosen on the validation part, in one pass over it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data import EvaluationBatch, EvaluationBatches, Split
from ..defaults import on_cpu
from ..models.base import SequenceModel
from ..models.evaluating import evaluating
from ..models.memory import Memory
from .ranks import seen_rows

# alpha = 0 is among them: a memory that does not help is switched off. gamma is tried in units of
# 1 over the mean of the sums that are not zero, since the counts of other data have other sizes.
ALPHAS = (0.0, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 2.0, 2.5)
GAMMAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_K = 20
# Users that are looked at, at most: a hundred thousand tell the third digit.
_MOST_USERS = 100_000
# Users whose scores lie side by side in memory.
_CHUNK = 256


class Fitted(NamedTuple):
    """What :func:`fit_memory` chose.

    Attributes:
        alpha, gamma: the memory's.
        before, after: validation NDCG@20 of the model alone, and with the memory.
    """

    alpha: float
    gamma: float
    before: float
    after: float


class _Rivals(NamedTuple):
    """All that decides whether a target is among the ``_K`` best, whatever alpha and gamma are.

    Items whose sum is zero keep their score, so that of those the ``_K`` best are enough.

    Attributes:
        user: int64 ``[P]``.
        score, sum: ``[P]``, of the model and S, of that user's rival.
        target_score, target_sum: ``[U]``.
    """

    user: Tensor
    score: Tensor
    sum: Tensor
    target_score: Tensor
    target_sum: Tensor

    def ndcg(self, alpha: float, gamma: float) -> float:
        target = self.target_score + alpha * torch.log1p(gamma * self.target_sum)
        before = self.score + alpha * torch.log1p(gamma * self.sum) > target[self.user]
        rank = 1 + torch.bincount(self.user[before], minlength=target.shape[0])
        hit = (rank <= _K) & (target > float("-inf"))  # in the smallest catalogues -inf ranks high
        gained = torch.where(hit, 1 / torch.log2(rank.double() + 1), 0.0)
        return float(gained.mean())


@on_cpu()
@torch.no_grad()
def fit_memory(
    model: SequenceModel,
    memory: Memory,
    split: Split,
    *,
    alphas: Sequence[float] = ALPHAS,
    gammas: Sequence[float] = GAMMAS,
    seed: int = 0,
) -> Fitted:
    """Set the memory's alpha and gamma to the pair of best validation NDCG@20.

    Ties between scores count for the target here; on equal NDCG the smaller alpha is taken.

    Args:
        model: in whatever mode; is evaluated, its own memory is not read.
        memory: on the model's device; alpha and gamma are replaced.
        split: the data; of more than 100,000 users a sample is taken.
        alphas: to try.
        gammas: to try, over the mean of all S > 0.
        seed: of the sample.
    """
    users = split.users("valid")
    if users.numel() > _MOST_USERS:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(users.numel(), generator=generator)[:_MOST_USERS]
        users = users[chosen.sort().values]
    batches = EvaluationBatches(
        split, "valid", batch_size=_CHUNK, max_length=model.config.max_length, users=users,
        device=model.device,
    )  # fmt: skip
    view = evaluating(model)
    parts, begin = [], 0
    for batch in batches:
        scores = view.scores(batch)
        sums = memory.sums(batch.item_ids, batch.offsets)
        parts.append(_rivals(scores, sums, batch, begin))
        begin += scores.shape[0]
    rivals = _Rivals(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    mean = float(rivals.sum[rivals.sum > 0].mean()) if bool((rivals.sum > 0).any()) else 1.0
    found = {
        (alpha, gamma / mean): rivals.ndcg(alpha, gamma / mean)
        for alpha, gamma in itertools.product(sorted(alphas), gammas)
    }
    memory.alpha, memory.gamma = max(found, key=lambda pair: found[pair])
    return Fitted(
        memory.alpha, memory.gamma, rivals.ndcg(0.0, 1.0), found[memory.alpha, memory.gamma]
    )


def _rivals(scores: Tensor, sums: Tensor, batch: EvaluationBatch, begin: int) -> _Rivals:
    goal = batch.targets[:, None]
    scores[seen_rows(batch), batch.seen_values] = float("-inf")
    scores[:, 0] = float("-inf")
    # A target that was seen stays at -inf, behind everybody.
    target_score, target_sum = scores.gather(1, goal)[:, 0], sums.gather(1, goal)[:, 0]
    scores.scatter_(1, goal, float("-inf"))
    gaining = (sums > 0) & (scores > float("-inf"))
    best = torch.where(gaining, float("-inf"), scores).topk(min(_K, scores.shape[1]), dim=1)
    user, item = gaining.nonzero(as_tuple=True)
    rest = torch.arange(scores.shape[0], device=scores.device).repeat_interleave(
        best.values.shape[1]
    )
    return _Rivals(
        begin + torch.cat([user, rest]),
        torch.cat([scores[user, item], best.values.flatten()]),
        torch.cat([sums[user, item], torch.zeros_like(best.values.flatten())]),
        target_score,
        target_sum,
    )
