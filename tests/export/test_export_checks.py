"""What an export is put to before it counts: its rankings, and inputs that others would give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from adarec_fast.export import ExportError
from adarec_fast.export.check import Request, check, ranked_right, requests, sample
from adarec_fast.export.foreign import check_foreign
from adarec_fast.export.graph import RankingModel
from adarec_fast.ragged import packed_in_place
from adarec_fast.training import Run


def fake(answer: Callable[..., tuple[Tensor, ...]], run: Run) -> dict[str, str]:
    ranking = RankingModel(run.model, k=5, exclude_seen=False)
    histories = [[5], [1, 2, 3], [4], [7, 8]]  # a batch of one, and one of three
    given = list(requests(ranking, histories, exclude_seen=False, max_batch=8))
    table = run.model.table()
    return check_foreign(
        "fake", answer, given, lambda found, request: ranked_right(*found, request, table),
        seen=False, num_items=50, longest=6, max_batch=8,
    )  # fmt: skip


def test_a_program_that_is_wrong_about_foreign_inputs_is_named(run: Run) -> None:
    ranking = RankingModel(run.model, k=5, exclude_seen=False)

    def by_bytes(ids: Tensor) -> tuple[Tensor, ...]:
        """As compiled code that trusts the strides."""
        if ids.dtype != torch.int64 or ids.min() < 0:
            raise ValueError
        return ranking(torch.as_strided(ids, ids.shape, (ids.shape[1], 1)))

    def from_the_end(ids: Tensor) -> tuple[Tensor, ...]:
        """As runtimes in which -1 is the last item."""
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError
        values, offsets = packed_in_place(ids.long(), 6)
        counted = torch.where(values < 0, values + 51, values)
        return model.recommend((counted[: offsets[-1]], offsets), k=5, exclude_seen=False)

    model = run.model
    with torch.no_grad():
        with pytest.raises(ExportError, match=r"fake answers columns cut out of .* wrongly"):
            fake(by_bytes, run)
        with pytest.raises(ExportError, match="fake answers an id of -1 wrongly"):
            fake(from_the_end, run)

    def refusing(ids: Tensor) -> tuple[Tensor, ...]:
        raise ValueError

    assert set(fake(refusing, run).values()) == {"refused"}


def _request(scores: list[float], clear: bool = True) -> Request:
    full = torch.tensor([[float("-inf"), *scores]])
    ones = torch.ones(1, 1, dtype=torch.int64)
    return Request(ones, ones, torch.ones(1, 4), full, torch.tensor([clear]))


@pytest.mark.parametrize(
    ("items", "scores", "passes"),
    [
        ([2, 1], [3.0, 2.0], True),
        ([2, 3], [3.0, 2.0], True),  # 1 and 3 score the same
        ([1, 2], [3.0, 2.0], False),  # the wrong order
        ([2, 4], [3.0, 2.0], False),  # 4 is not so good
        ([2, 2], [3.0, 2.0], False),  # twice the same
        ([2, 1], [3.0, 2.1], False),  # the wrong score
        ([2, 5], [3.0, 2.0], False),  # no such item
    ],
)
def test_the_check(items: list[int], scores: list[float], passes: bool) -> None:
    embeddings = torch.zeros(5, 4)
    embeddings[1:] = 0.1

    def answer(*_: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor([items]), torch.tensor([scores])

    given = [_request([2.0, 3.0, 2.0, 1.0])]
    if passes:
        assert check("it", answer, given, embeddings, 2).users == 1
    else:
        with pytest.raises(ExportError, match=r"^it"):
            check("it", answer, given, embeddings, 2)
    if items[-1] < 5:
        tie = check("it", answer, [_request([9.0, 3.0, 2.0, 1.0], clear=False)], embeddings, 2)
        assert (tie.users, tie.depth_ties) == (0, 1)


def test_the_check_sees_every_length_and_batch(run: Run) -> None:
    histories = sample(run.data.values, run.data.offsets, 70, 50, 6)
    assert len(histories) == 60 + 6
    ranking = RankingModel(run.model, k=3, exclude_seen=True)
    given = list(requests(ranking, histories, exclude_seen=True, max_batch=64))
    assert [len(request.item_ids) for request in given] == [1, 3, 62]
    assert max(request.item_ids.shape[1] for request in given) == 6
    # What is older than the model reads is left out all the same.
    longest = max(range(60), key=lambda u: len(histories[u]))
    assert len(histories[longest]) > 6
    every = torch.cat([request.scores for request in given])
    assert every[longest, histories[longest]].isinf().all()
