"""`memory_topk`: catalogue scores and what a memory of transitions adds, the k best."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from helpers import Backend, Batch, OpCase, backends_for
from helpers_suite import OpSuite, compile_counter
from torch import Tensor

from adarec_fast.ops import TransitionWeights, memory_topk, score_topk

ITEMS = 45


def transitions(generator: torch.Generator, items: int = ITEMS, most: int = 6) -> TransitionWeights:
    """Rows of 0 to ``most`` entries; item 0 has none."""
    counts = torch.randint(0, most + 1, (items + 1,), generator=generator)
    counts[0] = 0
    rows = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    drawn = [torch.randperm(items, generator=generator)[:n].sort().values + 1 for n in counts]
    neighbours = torch.cat(drawn).int()
    entries = torch.rand(neighbours.shape, generator=generator)
    return TransitionWeights(rows, neighbours, entries, most, 0.75, 30.0, 0.8)


def call(
    users: Tensor, items: Tensor, values: Tensor, offsets: Tensor, seen: Tensor,
    seen_offsets: Tensor, rows: Tensor, neighbours: Tensor, weights: Tensor, *,
    k: int, factors: tuple[float, float, float], max_length: int, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    memory = TransitionWeights(rows, neighbours, weights, 6, *factors)
    return memory_topk(
        users, items, values, offsets, seen, seen_offsets, memory, k, max_length=max_length,
        backend=backend,
    )  # fmt: skip


def build(
    batch: Batch, *, k: int = 10, factors: tuple[float, float, float] = (0.75, 30.0, 0.8)
) -> OpCase:
    """Every sequence is a user's history, and its tokens are what the user has seen.

    Vectors of small whole numbers: items that gain nothing have many ties.
    """
    g = batch.generator()
    memory = transitions(g)
    history = torch.randint(1, ITEMS + 1, (batch.num_tokens,), generator=g)
    return OpCase(
        function=call,
        arguments={
            "users": torch.randint(-2, 3, (batch.num_sequences, batch.size), generator=g).float(),
            "items": torch.randint(-1, 2, (ITEMS + 1, batch.size), generator=g).float(),
            "values": history,
            "offsets": batch.offsets(),
            "seen": history.clone(),
            "seen_offsets": batch.offsets(),
            "rows": memory.rows,
            "neighbours": memory.neighbours,
            "weights": memory.weights,
        },
        differentiable=(),
        options={"k": k, "factors": factors, "max_length": batch.max_length},
        written=(None, None),
        axes={"users": ("sequence", 0), "values": ("token", 0), "seen": ("token", 0)},
        output_axes=(("sequence", 0), ("sequence", 0)),
    )


class TestMemoryTopk(OpSuite):
    op = "memory_topk"
    free = ("values", "seen")
    # There is no gradient; compilation is tested below.
    test_gradcheck = None
    test_compiles_once_for_all_lengths = None
    variants: ClassVar = {
        "best": partial(build, k=1),
        "many": partial(build, k=30),  # of 45, of which a history has 12 at most
        "last item alone": partial(build, factors=(2.0, 1.0, 0.0)),
        "nothing": partial(build, factors=(0.0, 30.0, 0.8)),
    }


BACKENDS = pytest.mark.parametrize("backend", backends_for("memory_topk"), indirect=True)


def by_hand(case: OpCase, user: int, factors: tuple[float, float, float]) -> list[Any]:
    """All items of a user that were not seen, the best first, equal ones by their id."""
    given = {name: tensor.tolist() for name, tensor in case.arguments.items()}
    begin, end = given["offsets"][user : user + 2]
    history, (alpha, gamma, decay) = given["values"][begin:end], factors
    sums = [0.0] * (ITEMS + 1)
    for back, item in enumerate(reversed(history)):
        for entry in range(given["rows"][item], given["rows"][item + 1]):
            sums[given["neighbours"][entry]] += decay**back * given["weights"][entry]
    scored = []
    for item in set(range(1, ITEMS + 1)) - set(history):
        pairs = zip(given["users"][user], given["items"][item], strict=True)
        score = sum(a * b for a, b in pairs) + alpha * math.log1p(gamma * sums[item])
        scored.append((-score, item))
    return [(-negative, item) for negative, item in sorted(scored)]


@BACKENDS
@pytest.mark.parametrize("factors", [(0.75, 30.0, 0.8), (3.0, 1000.0, 0.5)])
def test_by_hand(backend: Backend, factors: tuple[float, float, float]) -> None:
    batch = Batch(lengths=(4, 1, 9), depths=(0, 0, 0), size=6)
    case = build(batch, k=12, factors=factors)
    scores, items = case.call(case.tensors(torch.float32, backend.device), backend.name)
    for user in range(3):
        wanted = by_hand(case, user, factors)[:12]
        assert items[user].tolist() == [item for _, item in wanted]
        torch.testing.assert_close(
            scores[user].double().cpu(), torch.tensor([s for s, _ in wanted], dtype=torch.float64),
            rtol=1e-5, atol=1e-5,
        )  # fmt: skip


@BACKENDS
def test_without_weights_it_is_score_topk(backend: Backend) -> None:
    case = build(Batch(lengths=(4, 2, 7), depths=(0, 0, 0), size=6))
    tensors = case.tensors(torch.float32, backend.device)
    tensors["rows"] = torch.zeros_like(tensors["rows"])
    for name in ("neighbours", "weights"):
        tensors[name] = tensors[name][:0]
    found = case.call(tensors, backend.name)
    names = ("users", "items", "seen", "seen_offsets")
    wanted = score_topk(*(tensors[name] for name in names), 10, backend="reference")
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@BACKENDS
def test_what_was_seen_stays_out_though_the_memory_leads_to_it(backend: Backend) -> None:
    one = torch.ones(1, 4)
    memory = TransitionWeights(
        torch.tensor([0, 0, 2, 2, 2]), torch.tensor([2, 3], dtype=torch.int32),
        torch.tensor([5.0, 1.0]), 2, 1.0, 1.0, 1.0,
    )  # fmt: skip
    memory = memory._replace(
        **{n: getattr(memory, n).to(backend.device) for n in ("rows", "neighbours", "weights")}
    )
    ids, offsets = torch.tensor([1]), torch.tensor([0, 1])
    seen, seen_offsets = torch.tensor([2, 1, 2]), torch.tensor([0, 3])
    given = (one, torch.zeros(4, 4), ids, offsets, seen, seen_offsets)
    scores, items = memory_topk(
        *(tensor.to(backend.device) for tensor in given), memory, 3, max_length=5,
        backend=backend.name,
    )  # fmt: skip
    assert items.tolist() == [[3, 1, 2]]
    assert scores[0, 0].item() == pytest.approx(math.log(2.0))
    assert torch.isneginf(scores[0, 1:]).all()


@BACKENDS
def test_histories_longer_than_a_row_is_wide(backend: Backend) -> None:
    """5,000 items, 40 neighbours a row, histories of up to 50 items that repeat each other."""
    g = torch.Generator().manual_seed(3)
    catalogue, users, k = 300, 9, 20
    memory = transitions(g, catalogue, 40)._replace(widest=40)
    lengths = torch.tensor([50, 1, 7, 50, 2, 33, 8, 8, 5])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    values = torch.randint(1, catalogue + 1, (int(offsets[-1]),), generator=g)
    given = (
        torch.randn(users, 24, generator=g), torch.randn(catalogue + 1, 24, generator=g), values,
        offsets, values, offsets,
    )  # fmt: skip
    wanted = memory_topk(*given, memory, k, max_length=50, backend="reference")
    moved = [tensor.to(backend.device) for tensor in given]
    on = memory._replace(
        **{n: getattr(memory, n).to(backend.device) for n in ("rows", "neighbours", "weights")}
    )
    scores, items = memory_topk(*moved, on, k, max_length=50, backend=backend.name)
    assert torch.equal(items.cpu(), wanted[1])
    torch.testing.assert_close(scores.cpu(), wanted[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, r"k=0 must lie in 1\.\.45"),
        ({"k": ITEMS + 1}, r"k=46 must lie in 1\.\.45"),
        ({"factors": (-1.0, 1.0, 1.0)}, r"alpha=-1.0 must be finite and at least 0"),
        ({"factors": (1.0, math.inf, 1.0)}, r"gamma=inf must be finite"),
        ({"factors": (1.0, 1.0, math.nan)}, r"decay=nan must be finite"),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    case = build(Batch(lengths=(1,), depths=(0,)), **change)
    with pytest.raises(ValueError, match=message):
        case.call(case.arguments, "reference")


@pytest.mark.parametrize("backend", ["reference", "packed"])
def test_compiles_once_for_all_lengths(backend: str) -> None:
    counter = compile_counter("aot_eager")

    def step(given: dict[str, Tensor]) -> Tensor:
        return call(**given, k=7, factors=(0.75, 30.0, 0.8), max_length=8, backend=backend)[1]

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    memory = None
    for lengths in ((3, 1), (2, 2, 4), (5, 1, 1, 2)):
        given = build(Batch(lengths, (0,) * len(lengths))).arguments
        memory = memory or {n: given[n] for n in ("rows", "neighbours", "weights")}
        assert torch.equal(compiled({**given, **memory}), step({**given, **memory}))
    assert counter.frame_count <= 2
