"""The C++ ranking: threads, lists that overflow, NaN, refusals. The rest: the op's suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adarec_fast.ops import score_topk
from adarec_fast.ops._library import unavailable


@pytest.fixture(autouse=True)
def _built() -> Iterator[None]:
    why = unavailable("score_topk", "cpp", "cpu")
    if why is not None:
        pytest.skip(f"cpp cannot run score_topk: {why}")
    yield
    torch.set_num_threads(1)


def problem(users: int, items: int, *, size: int = 6) -> list[Tensor]:
    """Whole numbers: scores are exact and have many ties."""
    g = torch.Generator().manual_seed(users * 1000 + items)
    counts = torch.randint(0, 9, (users,), generator=g)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return [
        torch.randint(-3, 4, (users, size), generator=g).float(),
        torch.randint(-2, 3, (items + 1, size), generator=g).float(),
        torch.randint(0, items + 1, (int(offsets[-1]),), generator=g),
        offsets,
    ]


@pytest.mark.parametrize("users", [1, 8, 9, 63, 65, 600])
@pytest.mark.parametrize(("items", "k"), [(1, 1), (97, 97), (700, 1), (700, 10), (700, 150)])
@pytest.mark.parametrize("seen_score", [float("-inf"), 0.0])
def test_the_reference_and_any_number_of_threads_agree(
    users: int, items: int, k: int, seen_score: float
) -> None:
    arguments = problem(users, items)
    wanted = score_topk(*arguments, k, seen_score=seen_score, backend="reference")
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        scores, best = score_topk(*arguments, k, seen_score=seen_score, backend="cpp")
        assert torch.equal(scores, wanted[0])
        assert torch.equal(best, wanted[1])


@pytest.mark.parametrize("size", [3, 16, 64, 130, 256])
@pytest.mark.parametrize("items", [5, 255, 1300])
def test_a_few_users_get_the_bits_they_get_among_many(size: int, items: int) -> None:
    g = torch.Generator().manual_seed(size)
    users, vectors = torch.randn(40, size, generator=g), torch.randn(items + 1, size, generator=g)
    seen = torch.randint(0, items + 1, (80,), generator=g)
    offsets = torch.arange(0, 81, 2)
    for k in {1, 5, items}:
        many = score_topk(users, vectors, seen, offsets, k, backend="cpp")
        for count in (1, 3, 8):
            few = score_topk(
                users[:count], vectors, seen[: 2 * count], offsets[: count + 1], k, backend="cpp"
            )
            for one, all_ in zip(few, many, strict=True):
                assert torch.equal(one, all_[:count])


@pytest.mark.parametrize("rising", [True, False])
def test_scores_in_order_fill_every_list(rising: bool) -> None:
    items = torch.arange(1001.0)[:, None] * (1 if rising else -1)
    seen, offsets = torch.empty(0, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    scores, best = score_topk(torch.ones(3, 1), items, seen, offsets, 20, backend="cpp")
    wanted = torch.arange(1000, 980, -1) if rising else torch.arange(1, 21)
    assert torch.equal(best, wanted.expand(3, -1))
    assert torch.equal(scores, items[wanted, 0].expand(3, -1))


def test_nan_and_infinity_rank_as_in_a_sort() -> None:
    arguments = problem(70, 400)
    arguments[0][3] = float("nan")
    arguments[1][7] = float("nan")
    arguments[1][9] = float("inf")
    for k in (5, 100, 400):
        wanted = score_topk(*arguments, k, backend="reference")
        got = score_topk(*arguments, k, backend="cpp")
        assert torch.equal(got[1], wanted[1])
        assert torch.equal(got[0].nan_to_num(123.0), wanted[0].nan_to_num(123.0))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (2, torch.tensor([1, 31]), r"seen\[1\]=31 must lie in 0..30"),
        (2, torch.tensor([-1, 3]), r"seen\[0\]=-1 must lie in 0..30"),
        (3, torch.tensor([0, 2, 1, 2]), "must not decrease"),
        (3, torch.tensor([1, 1, 2, 2]), "must begin at 0"),
        (3, torch.tensor([0, 1, 2, 3]), "beyond the 2 tokens"),
        (0, torch.zeros(3, 6, dtype=torch.float16), "users has dtype"),
    ],
)
def test_bad_tensors_are_refused(place: int, value: Tensor, message: str) -> None:
    arguments = problem(3, 30)
    arguments[2:] = [torch.tensor([1, 2]), torch.tensor([0, 1, 2, 2])]
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        score_topk(*arguments, 4, backend="cpp")


@given(
    seen=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 31), max_size=4),
    offsets=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 5), min_size=3, max_size=3),
)
def test_anything_seen_runs_or_is_refused(seen: list[int], offsets: list[int]) -> None:
    arguments = problem(2, 30)
    arguments[2] = torch.tensor(seen, dtype=torch.int64)
    arguments[3] = torch.tensor(offsets, dtype=torch.int64)
    fits = 0 == offsets[0] <= offsets[1] <= offsets[2] <= len(seen) and all(
        0 <= item <= 30 for item in seen[: offsets[2]]
    )
    if fits:
        wanted = score_topk(*arguments[:2], arguments[2][: offsets[2]], arguments[3], 30,
                            backend="reference")
        assert torch.equal(score_topk(*arguments, 30, backend="cpp")[1], wanted[1])
    else:
        with pytest.raises(ValueError, match=r"seen|offsets"):
            score_topk(*arguments, 30, backend="cpp")
