"""The warm recommender: what the model itself recommends, for one user, many, and too many."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import gpu_device
from helpers_accuracy import assert_close_to_float64

from adarec_fast import ADARec, Recommender
from adarec_fast.models.adarec.plan import Plan
from adarec_fast.ops._library import collecting
from adarec_fast.ranking.replays import Request, buckets, packed, unpacked

SMALL: dict[str, Any] = {
    "num_items": 90, "hidden_size": 16, "num_layers": 2, "max_length": 6, "max_depth": 4,
}  # fmt: skip


def _model(**options: Any) -> ADARec:
    model = ADARec(**{**SMALL, **options})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        # Depths that differ between users, and biases and taps that are not zero.
        for name, parameter in model.named_parameters():
            if "depth_controller" in name or "taps" in name or parameter.dim() == 1:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def _histories(users: int, longest: int = 9, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, longest + 1, (users,), generator=generator).tolist()
    return [torch.randint(1, 91, (n,), generator=generator).tolist() for n in sizes]


VARIANTS: list[dict[str, Any]] = [
    {}, {"coarse_expert": "transformer"}, {"router": "level"}, {"residual": True},
    {"start": "backbone", "denoiser": "bounded"},
    {"supervision": "all"}, {"depth": "fixed"}, {"diffusion": False}, {"moe": False},
    {"evaluation_samples": 2}, {"num_layers": 0}, {"local_path": 3},
]  # fmt: skip


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("backend", ["auto", "packed", "reference"])
def test_it_recommends_what_the_model_does(options: dict[str, Any], backend: str) -> None:
    model = _model(**options, backend=backend)
    exact = _model(**options, backend="reference").double().eval()
    plain = _model(**options, backend="reference").eval()
    histories = _histories(13)
    recommender = Recommender(model)
    ranking = recommender.recommend(histories, k=20)
    items, scores = plain.recommend(histories, k=20)
    _, gold = exact.recommend(histories, k=20)
    assert_close_to_float64(ranking.scores, scores, gold, "scores")
    assert torch.equal(ranking.items, items)
    alone = [recommender.recommend([history], k=20) for history in histories]
    together = torch.cat([one.scores for one in alone])
    assert_close_to_float64(together, scores, gold, "scores of single users")
    assert torch.equal(torch.cat([one.items for one in alone]), items)
    assert torch.equal(torch.cat([one.depth for one in alone]), ranking.depth)


def test_the_whole_model_takes_the_short_way() -> None:
    for options in VARIANTS[:6]:
        assert Plan.suits(_model(**options, backend="packed")), options
    for options in VARIANTS[6:10]:
        assert not Plan.suits(_model(**options, backend="packed")), options
    assert len(set(Recommender(_model()).recommend(_histories(40)).depth.tolist())) > 1


def test_every_form_of_histories_and_any_number() -> None:
    recommender = Recommender(_model(), batch_size=4)
    histories = _histories(11)
    listed = recommender.recommend(histories, k=5)
    padded = torch.zeros(11, 9, dtype=torch.int64)
    for row, history in enumerate(histories):
        padded[row, : len(history)] = torch.tensor(history)
    values = torch.tensor([item for history in histories for item in history])
    offsets = torch.tensor([0, *map(len, histories)]).cumsum(0)
    whole = Recommender(recommender.model).recommend(histories, k=5)
    for other in (
        recommender.recommend(padded, k=5), recommender.recommend((values, offsets), k=5), whole,
    ):  # fmt: skip
        assert torch.equal(other.items, listed.items)
        torch.testing.assert_close(other.scores, listed.scores, rtol=1e-5, atol=1e-6)
    unused = torch.full((7,), 13)
    alone = recommender.recommend((torch.cat([values[: offsets[1]], unused]), offsets[:2]), k=5)
    assert torch.equal(alone.items, listed.items[:1])
    empty = recommender.recommend([], k=5)
    assert empty.items.shape == (0, 5)


def test_seen_items_and_the_end_of_the_catalogue() -> None:
    recommender = Recommender(_model())
    history = list(range(1, 88))
    left = recommender.recommend([history], k=6)
    assert sorted(left.items[0, :3].tolist()) == [88, 89, 90]
    assert left.scores[0].isfinite().tolist() == [True] * 3 + [False] * 3
    every = recommender.recommend([history], k=90, exclude_seen=False)
    assert sorted(every.items[0].tolist()) == list(range(1, 91))


@pytest.mark.parametrize("batch_size", [3, 1024])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_excluded_items_do_not_come(batch_size: int, exclude_seen: bool) -> None:
    recommender = Recommender(_model(), batch_size=batch_size)
    histories = _histories(11)
    whole = recommender.recommend(histories, k=90, exclude_seen=exclude_seen)
    # The best item of every other user, some of the history, and nothing at all.
    exclude = [[int(row[0]), *history[:2]] if n % 2 else []
               for n, (row, history) in enumerate(zip(whole.items, histories, strict=True))]
    found = recommender.recommend(histories, 30, exclude_seen=exclude_seen, exclude=exclude)
    for row, kept in enumerate(exclude):
        wanted = [item for item in whole.items[row].tolist() if item not in kept][:30]
        assert found.items[row].tolist() == wanted
        assert bool(found.scores[row].isfinite().all())


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ([[1]], "exclude has 1 lists for 2 users"),
        ([[1], [91]], r"exclude: item id 91 is outside the catalogue, 1\.\.90"),
        ([[0], []], "exclude: item id 0 is outside"),
    ],
)
def test_bad_exclusions_are_named(exclude: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recommender(_model()).recommend([[1], [2]], 5, exclude=exclude)


@pytest.mark.parametrize(
    ("histories", "k", "message"),
    [
        ([[1, 91]], 5, r"item id 91 is outside the catalogue, 1\.\.90"),
        ([[0]], 5, "item id 0 is outside"),
        ([[1], []], 5, "sequence 1 has length 0"),
        ([[1]], 0, r"k=0 must lie in 1\.\.90"),
        ([[1]], 91, r"k=91 must lie in 1\.\.90"),
        ([[1]], 2.0, r"k=2\.0 must be an int"), ([[1]], "2", "k='2' must be an int"),
        (torch.tensor([[1.0]]), 5, "item_ids must be int64"),
        ((torch.tensor([1]), torch.tensor([0, 2])), 5, "beyond the 1 tokens"),
    ],
)
def test_bad_requests_are_named(histories: Any, k: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recommender(_model()).recommend(histories, k)


def test_a_bad_batch_size_is_named() -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        Recommender(_model(), batch_size=0)


def test_buckets_hold_their_requests() -> None:
    for users, tokens, seen in ((1, 1, 1), (1, 5, 9), (3, 3, 0), (5, 40, 41), (1024, 7000, 9000)):
        rows, room, seen_room = buckets(users, tokens, seen)
        assert rows >= users
        assert room >= tokens + rows - users
        assert seen_room >= seen
        assert buckets(users, tokens, seen) == tuple(1 << (n - 1).bit_length() for n in
                                                     (rows, room, seen_room))


def test_a_padded_request_has_the_same_answers() -> None:
    """What a CUDA graph is given, without the graph."""
    recommender = Recommender(_model())
    histories = _histories(5, longest=6)
    expected = recommender.recommend(histories, k=7)
    values = torch.tensor([item for history in histories for item in history])
    offsets = torch.tensor([0, *map(len, histories)]).cumsum(0)
    shape = buckets(5, values.shape[0], values.shape[0])
    assert shape.users == 8
    request = Request.of(torch.full((shape.words,), 77), shape)
    request.fill(values, offsets, values, offsets)
    sizes = [tensor.shape[0] for tensor in request.tensors]
    assert sizes == [shape.tokens, 9, shape.seen, 9]
    assert all(tensor.data_ptr() % 16 == request.words.data_ptr() % 16 for tensor in request[1:])
    with torch.inference_mode():
        found = recommender._rank(*request.tensors, 7)
    assert torch.equal(found.items[:5], expected.items)
    torch.testing.assert_close(found.scores[:5], expected.scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "k"), [(1, 3), (2, 5), (4, 1), (0, 3)])
def test_results_come_in_one_piece(rows: int, k: int) -> None:
    given = (
        torch.randint(9, (rows, k)), torch.randint(9, (rows,)), torch.randn(rows, k),
        torch.randn(rows, k).bfloat16(),
    )  # fmt: skip
    found = unpacked(packed(given), given)
    for one, other in zip(found, given, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.gpu
def test_a_replayed_request_has_the_same_answers() -> None:
    model = _model().to(gpu_device())
    recommender = Recommender(model)
    if recommender._replays is None:
        pytest.skip("an op of this GPU has no kernel that can be captured")
    for repetition in range(4):
        for users in (1, 3, 20):
            histories = _histories(users, seed=repetition)
            found = recommender.recommend(histories, k=9)
            items, scores = model.recommend(histories, k=9)
            assert torch.equal(found.items, items)
            torch.testing.assert_close(found.scores, scores, rtol=1e-5, atol=1e-6)
    if collecting():
        return
    assert any(replay.graph is not None for replay in recommender._replays.values())
