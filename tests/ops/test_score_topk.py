"""`score_topk`: catalogue scores, seen items masked, the k best."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import pytest
import torch
from helpers import Backend, Batch, OpCase, backends_for
from helpers_suite import OpSuite, compile_counter
from torch import Tensor

from adarec_fast.ops import score_topk

ITEMS = 45


def build(batch: Batch, *, k: int = 10, seen_score: float = float("-inf")) -> OpCase:
    """Every sequence is a user and its tokens are what the user has seen.

    Vectors of small whole numbers: scores are exact in every precision and have many ties.
    """
    g = batch.generator()
    return OpCase(
        function=score_topk,
        arguments={
            "users": torch.randint(-2, 3, (batch.num_sequences, batch.size), generator=g).float(),
            "items": torch.randint(-1, 2, (ITEMS + 1, batch.size), generator=g).float(),
            "seen": torch.randint(1, ITEMS + 1, (batch.num_tokens,), generator=g),
            "seen_offsets": batch.offsets(),
        },
        differentiable=(),
        options={"k": k, "seen_score": seen_score},
        written=(None, None),
        axes={"users": ("sequence", 0), "seen": ("token", 0)},
        output_axes=(("sequence", 0), ("sequence", 0)),
    )


class TestScoreTopk(OpSuite):
    op = "score_topk"
    free = ("seen",)
    # There is no gradient; compilation is tested below.
    test_gradcheck = None
    test_compiles_once_for_all_lengths = None
    variants: ClassVar = {
        "zero": partial(build, seen_score=0.0),
        "best": partial(build, k=1, seen_score=-3.0),
        "all": partial(build, k=ITEMS, seen_score=-1000.0),
    }


BACKENDS = pytest.mark.parametrize("backend", backends_for("score_topk"), indirect=True)


def by_hand(case: OpCase, user: int, seen: set[int], seen_score: float) -> list[tuple[float, int]]:
    """All items of a user, the best first, equal ones by their id."""
    vector = case.arguments["users"][user].tolist()
    scored = []
    for item in range(1, ITEMS + 1):
        row = case.arguments["items"][item].tolist()
        score = sum(a * b for a, b in zip(vector, row, strict=True))
        scored.append((-(seen_score if item in seen else score), item))
    return [(-negative, item) for negative, item in sorted(scored)]


@BACKENDS
@pytest.mark.parametrize("seen_score", [float("-inf"), 0.0])
def test_by_hand(backend: Backend, seen_score: float) -> None:
    batch = Batch(lengths=(4, 1, 9), depths=(0, 0, 0), size=6)
    case = build(batch, k=12, seen_score=seen_score)
    scores, items = case.call(case.tensors(torch.float32, backend.device), backend.name)
    offsets = batch.offsets().tolist()
    for user in range(3):
        seen = set(case.arguments["seen"][offsets[user] : offsets[user + 1]].tolist())
        wanted = by_hand(case, user, seen, seen_score)[:12]
        assert list(zip(scores[user].tolist(), items[user].tolist(), strict=True)) == wanted


@BACKENDS
def test_seen_items_come_last_when_all_are_asked_for(backend: Backend) -> None:
    case = build(Batch(lengths=(7, 2), depths=(0, 0), size=6), k=ITEMS)
    scores, items = case.call(case.tensors(torch.float32, backend.device), backend.name)
    seen = case.arguments["seen"]
    for user, history in enumerate((seen[:7], seen[7:])):
        unseen = ITEMS - history.unique().numel()
        assert torch.isfinite(scores[user, :unseen]).all()
        assert torch.isneginf(scores[user, unseen:]).all()
        assert sorted(items[user].tolist()) == list(range(1, ITEMS + 1))
        assert items[user, unseen:].tolist() == history.unique().tolist()


@BACKENDS
def test_nothing_seen(backend: Backend) -> None:
    case = build(Batch(lengths=(2, 2), depths=(0, 0), size=6), k=5)
    tensors = case.tensors(torch.float32, backend.device)
    tensors["seen"] = tensors["seen"][:0]
    tensors["seen_offsets"] = torch.zeros_like(tensors["seen_offsets"])
    scores, items = case.call(tensors, backend.name)
    for user in range(2):
        wanted = by_hand(case, user, set(), 0.0)[:5]
        assert list(zip(scores[user].tolist(), items[user].tolist(), strict=True)) == wanted


@BACKENDS
def test_padding_never_appears(backend: Backend) -> None:
    case = build(Batch(lengths=(1,), depths=(0,), size=6), k=ITEMS)
    tensors = case.tensors(torch.float32, backend.device)
    tensors["items"][0] = float("nan")
    assert 0 not in case.call(tensors, backend.name)[1]


def test_ties_go_to_the_lower_id_in_a_large_catalogue() -> None:
    users = torch.ones(1, 4)
    items = torch.zeros(5001, 4)
    items[[4000, 70, 900]] = 1.0
    empty = torch.zeros(0, dtype=torch.int64)
    for name in ("reference", "packed"):
        _, best = score_topk(users, items, empty, torch.tensor([0, 0]), 6, backend=name)
        assert best.tolist() == [[70, 900, 4000, 1, 2, 3]]


@pytest.mark.parametrize("k", [0, ITEMS + 1, -1])
def test_bad_k(k: int) -> None:
    case = build(Batch(lengths=(1,), depths=(0,)), k=k)
    with pytest.raises(ValueError, match=rf"k={k} must lie in 1\.\.{ITEMS}"):
        case.call(case.arguments, "reference")


@pytest.mark.parametrize("backend", ["reference", "packed"])
def test_compiles_once_for_all_lengths(backend: str) -> None:
    counter = compile_counter("aot_eager")

    def step(users: Tensor, items: Tensor, seen: Tensor, offsets: Tensor) -> Tensor:
        return score_topk(users, items, seen, offsets, 7, backend=backend)[1]

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    for lengths in ((3, 1), (2, 2, 4), (5, 1, 1, 2)):
        arguments = build(Batch(lengths, (0,) * len(lengths))).arguments
        inputs = [arguments[name] for name in ("users", "items", "seen", "seen_offsets")]
        assert torch.equal(compiled(*inputs), step(*inputs))
    assert counter.frame_count <= 2
