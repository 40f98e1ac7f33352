"""Whether an exported model ranks as the model does, on requests of every shape."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..histories import pack_lists
from .errors import ExportError
from .graph import RankingModel

# Batches of one, of few and of many, in turn.
_BATCHES = (1, 3, 64)
# Two scores are equal within this share of |h| max |item|, the size of the terms they sum up.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3}
_TIMED = 50

Answer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Request:
    """A batch of histories and what the model says to it.

    Attributes:
        item_ids: int64 ``[B, L]``, the last ``max_length`` items, padded with 0 on the right.
        seen: int64 ``[B, S]``, all items, padded likewise.
        user: ``[B, D]``, h.
        scores: ``[B, V+1]``, of all items, -inf for padding and, if asked for, for seen ones.
        clear: bool ``[B]``, False where rounding decides the depth.
    """

    item_ids: Tensor
    seen: Tensor
    user: Tensor
    scores: Tensor
    clear: Tensor

    def rows(self, index: Tensor) -> Request:
        """Of some users alone."""
        parts = (self.item_ids, self.seen, self.user, self.scores, self.clear)
        return Request(*(part[index.to(part.device)] for part in parts))


@dataclass(frozen=True)
class Outcome:
    """What a check that passed has seen.

    Attributes:
        users: compared.
        depth_ties: users left out, whose two best depths differ by rounding alone.
        score_difference: the largest between the model's score and the exported one.
        latency_ms: median time of a request of one user, the first of the data.
    """

    users: int
    depth_ties: int
    score_difference: float
    latency_ms: float


def sample(values: Tensor, offsets: Tensor, count: int, num_items: int, max_length: int,
           ) -> list[list[int]]:
    """``count`` histories spread over the data, then a random one of each length."""
    total = offsets.shape[0] - 1
    chosen = [i * total // min(count, total) for i in range(min(count, total))]
    histories = [values[int(offsets[u]) : int(offsets[u + 1])].tolist() for u in chosen]
    generator = torch.Generator().manual_seed(0)
    return histories + [
        torch.randint(1, num_items + 1, (length,), generator=generator).tolist()
        for length in range(1, max_length + 1)
    ]


@torch.no_grad()
def requests(
    ranking: RankingModel,
    histories: Sequence[Sequence[int]],
    *,
    exclude_seen: bool,
    max_batch: int,
) -> Iterator[Request]:
    """The histories in batches of 1, 3 and 64 users, with the model's own scores."""
    model = ranking.model
    device, limit = model.device, model.config.max_length
    sizes, start = itertools.cycle(_BATCHES), 0
    while start < len(histories):
        part = histories[start : start + min(next(sizes), max_batch)]
        start += len(part)
        cut = [history[-limit:] for history in part]
        values, offsets = pack_lists(cut, device)
        user, clear = ranking.user_model.settled(values, offsets)
        scores = model.score(user)
        if model.memory is not None:
            model.memory.add_to(scores, values, offsets)
        seen = _padded(part).to(device)
        if exclude_seen:
            scores.scatter_(1, seen, float("-inf"))
        yield Request(_padded(cut).to(device), seen, user, scores, clear)


@torch.no_grad()
def check(
    name: str, answer: Answer, given: Sequence[Request], items: Tensor, k: int,
    dtype: torch.dtype = torch.float32,
) -> Outcome:
    """Hold an exported model's items and scores to the model's.

    Items whose scores are equal within rounding may stand in either order.

    Args:
        name: what is checked, for the message.
        answer: from ``item_ids`` and ``seen`` to items and scores, both ``[B, k]``.
        given: from :func:`requests`.
        items: the model's item embeddings ``[V+1, D]``.
        k: items a user.
        dtype: what the exported model computes or stores in.

    Raises:
        ExportError: a user's list differs.
    """
    users = ties = 0
    largest = 0.0
    for request in given:
        found, claimed = answer(request.item_ids, request.seen)
        expected = request.scores.topk(k, dim=-1).values
        shapes = found.shape == claimed.shape == expected.shape
        if not shapes or bool(((found < 1) | (found >= items.shape[0])).any()):
            raise ExportError(f"{name}: not {list(expected.shape)} items of the catalogue")
        wrong = (~ranked_right(found, claimed, request, items, dtype)).nonzero()
        if wrong.numel():
            row = int(wrong[0])
            raise ExportError(
                f"{name} does not rank as the model: for the history "
                f"{request.item_ids[row][request.item_ids[row] != 0].tolist()} it gives "
                f"{found[row, :5].tolist()}… scored {claimed[row, :5].tolist()}, the model "
                f"{request.scores[row].topk(min(5, k)).indices.tolist()}… scored "
                f"{expected[row, :5].tolist()}"
            )
        ends = claimed.isfinite() & request.clear[:, None]
        gap = torch.where(ends, (claimed - expected).abs(), torch.zeros_like(claimed))
        largest = max(largest, float(gap.max()))
        ties += int((~request.clear).sum())
        users += int(request.clear.sum())
    first = given[0]
    return Outcome(users, ties, largest, latency(lambda: answer(first.item_ids, first.seen)))


def ranked_right(
    found: Tensor, claimed: Tensor, request: Request, items: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """bool ``[B]``: items and scores ``[B, k]`` that are the model's within rounding, or of a user
    whom rounding decides."""
    scale = items.norm(dim=-1).max()
    expected = request.scores.topk(found.shape[1], dim=-1).values
    own = request.scores.gather(1, found)
    allowed = TOLERANCE[dtype] * scale * request.user.norm(dim=-1, keepdim=True)
    distinct = found.sort(-1).values.diff(dim=-1).ne(0).all(-1)
    right = _close(claimed, expected, allowed) & _close(own, expected, allowed) & distinct
    return right | ~request.clear


def latency(call: Callable[[], object]) -> float:
    """Median milliseconds of a call that is warm."""
    times = []
    for _ in range(_TIMED):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[_TIMED // 5 :]) * 1e3


def _close(a: Tensor, b: Tensor, allowed: Tensor) -> Tensor:
    """bool ``[B]``: finite numbers within ``allowed [B, 1]``, infinite ones equal."""
    near = (a - b).abs() <= allowed
    return torch.where(a.isfinite() & b.isfinite(), near, a == b).all(-1)


def _padded(histories: Sequence[Sequence[int]]) -> Tensor:
    return pad_sequence([torch.tensor(list(h)) for h in histories], batch_first=True)
