"""A request as one call: the screened ranking against the whole table's, and what is not taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adarec_fast.ops import TransitionWeights, memory_topk, score_topk
from adarec_fast.ops._library import unavailable
from adarec_fast.ops.serving import RequestParts, Serving


@pytest.fixture(autouse=True)
def _built() -> Iterator[None]:
    why = unavailable("score_topk", "cpp", "cpu")
    if why is not None:
        pytest.skip(f"cpp cannot answer requests: {why}")
    yield
    torch.set_num_threads(1)


def answering(
    user: Tensor, table: Tensor, screened: bool = True, memory: TransitionWeights | None = None
) -> Serving:
    """What ranks a table by one vector whatever the history is: an encoder without layers, whose
    LayerNorm is its bias."""
    size = user.shape[0]
    weights = {
        "items": torch.zeros(table.shape[0], size), "positions": torch.zeros(4, size),
        "norm.w": torch.zeros(size), "norm.b": user,
    }  # fmt: skip
    parts = RequestParts(weights, {"norm.eps": 1e-12, "layers": 0}, ())
    return Serving(parts, table, memory, screened=screened)


def check(user: Tensor, table: Tensor, k: int, seen: list[int], *, screens: bool = True) -> None:
    """Scores and items are those of the op, to the last bit."""
    serving = answering(user, table)
    assert (serving.screen_bytes > 0) == screens
    masked = torch.tensor(seen, dtype=torch.int64), torch.tensor([0, len(seen)])
    found = serving.answer(torch.tensor([1]), torch.tensor([0, 1]), *masked, k)
    assert found is not None
    scores, items = score_topk(user[None], table, *masked, k, backend="cpp")
    assert torch.equal(found[1], items)
    assert torch.equal(found[0].nan_to_num(9.0), scores.nan_to_num(9.0))


@pytest.mark.parametrize("size", [1, 3, 16, 64, 130, 512, 513])
@pytest.mark.parametrize("items", [1, 97, 1300])
def test_the_screen_changes_no_bit(size: int, items: int) -> None:
    g = torch.Generator().manual_seed(size + items)
    user, table = torch.randn(size, generator=g), torch.randn(items + 1, size, generator=g)
    # Some items are a thousand times longer than others, some are nothing at all.
    table *= 10.0 ** torch.randint(-3, 1, (items + 1, 1), generator=g)
    table[torch.randint(0, items + 1, (items // 10,), generator=g)] = 0.0
    seen = torch.randint(1, items + 1, (20,), generator=g).tolist()
    for k in sorted({1, min(7, items), min(40, items), (items + 3) // 4, items}):
        check(user, table, k, seen, screens=size <= 512)
        check(user, table, k, [], screens=size <= 512)


@pytest.mark.parametrize(
    "entries", [lambda n: torch.full(n, 0.5), lambda n: torch.randint(-1, 2, n).float()]
)
def test_ties_come_in_the_order_of_their_items(entries: Any) -> None:
    torch.manual_seed(0)
    table = entries((2000, 24))
    for k in (1, 20, 300):
        check(torch.randint(-2, 3, (24,)).float(), table, k, [1, 2, 1999, 2])


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e-8, 1e8, 1e18])
@pytest.mark.parametrize("other", [1e-30, 1.0, 1e20])
def test_numbers_of_any_size(scale: float, other: float) -> None:
    g = torch.Generator().manual_seed(3)
    table = torch.randn(900, 20, generator=g) * other
    check(torch.randn(20, generator=g) * scale, table, 10, [5, 9])
    check(torch.zeros(20), table, 10, [5, 9])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_ranked_by_the_whole_table(wrong: float) -> None:
    g = torch.Generator().manual_seed(4)
    user, table = torch.randn(16, generator=g), torch.randn(500, 16, generator=g)
    table[77, 3] = wrong
    check(user, table, 10, [3], screens=False)
    table[77, 3] = 0.0
    user[2] = wrong
    check(user, table, 10, [3])


@given(st.integers(0, 2**31), st.integers(1, 40), st.sampled_from([1, 5, 8, 33, 64]))
def test_vectors_that_nearly_tie(seed: int, k: int, size: int) -> None:
    """Items that differ by about what int8 rounds, around one direction."""
    g = torch.Generator().manual_seed(seed)
    user = torch.randn(size, generator=g)
    table = user + 0.01 * torch.randn(400, size, generator=g)
    check(user, table, k, torch.randint(1, 400, (9,), generator=g).tolist())


def remembered(
    items: int, g: torch.Generator, entries: Tensor, factors: tuple[float, float, float]
) -> TransitionWeights:
    """As many entries a row as ``entries`` has columns, ``[items, M]``."""
    most = entries.shape[1]
    neighbours = torch.stack([torch.randperm(items, generator=g)[:most] for _ in range(items)])
    rows = torch.cat([torch.zeros(1).long(), torch.arange(items + 1) * most])
    return TransitionWeights(
        rows, 1 + neighbours.sort(1).values.flatten().int(), entries.flatten(), most, *factors
    )


def check_remembered(
    user: Tensor, table: Tensor, memory: TransitionWeights, k: int, seen: list[int]
) -> None:
    """By the screen, by the whole table, alone and among others: the op's bits."""
    values, offsets = torch.tensor([1, 3, 2, 3]), torch.tensor([0, 4])
    masked = torch.tensor(seen, dtype=torch.int64), torch.tensor([0, len(seen)])
    wanted = memory_topk(
        user[None], table, values, offsets, *masked, memory, k, max_length=4, backend="cpp"
    )
    for screened in (True, False):
        serving = answering(user, table, screened, memory)
        for users in (1, 12):
            repeated = [t.repeat(users) for t in (values, masked[0])]
            ends = [torch.arange(users + 1) * n for n in (4, len(seen))]
            found = serving.answer(repeated[0], ends[0], repeated[1], ends[1], k)
            assert found is not None
            for ours, theirs in zip(found[:2], wanted, strict=True):
                assert torch.equal(ours, theirs.expand(users, -1))


@pytest.mark.parametrize("size", [1, 16, 130])
@pytest.mark.parametrize("factors", [(0.75, 30.0, 0.8), (0.0, 9.0, 0.5), (50.0, 1e6, 1.0)])
def test_the_screen_changes_no_bit_with_a_memory(
    size: int, factors: tuple[float, float, float]
) -> None:
    items = 1300
    g = torch.Generator().manual_seed(size)
    user, table = torch.randn(size, generator=g), torch.randn(items + 1, size, generator=g)
    entries = torch.rand(items, 40, generator=g)
    entries[entries < 0.2] = 0.0
    memory = remembered(items, g, entries, factors)
    led_to = memory.neighbours[: 3 * 40 : 9].tolist()  # some of what gains may not come
    for k in (1, 20, items // 4, items):
        for seen in ([], [3, 3, *led_to], list(range(1, items - 5))):
            check_remembered(user, table, memory, k, seen)


@given(st.integers(0, 2**31), st.integers(1, 40), st.sampled_from([0.0, 1e-6, 0.01, 1.0]))
def test_gains_that_nearly_tie(seed: int, k: int, alpha: float) -> None:
    """Items and gains differ by about what int8 rounds; some gain exactly alike."""
    g = torch.Generator().manual_seed(seed)
    user = torch.randn(16, generator=g)
    table = user + 0.01 * torch.randn(401, 16, generator=g)
    entries = torch.randint(0, 3, (400, 30), generator=g).float()
    memory = remembered(400, g, entries, (alpha, 10.0, 0.9))
    check_remembered(user, table, memory, k, torch.randint(1, 400, (9,), generator=g).tolist())


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
def test_a_memory_of_what_is_no_weight_is_not_taken(wrong: float) -> None:
    g = torch.Generator().manual_seed(7)
    entries = torch.rand(50, 4, generator=g)
    entries[7, 2] = wrong
    memory = remembered(50, g, entries, (1.0, 1.0, 0.5))
    with pytest.raises(ValueError, match=r"memory\.weights\[30\]=.* must be finite"):
        answering(torch.randn(8), torch.randn(51, 8), memory=memory)


def test_it_reads_the_copy_and_can_do_without() -> None:
    g = torch.Generator().manual_seed(5)
    user, table = torch.randn(64, generator=g), torch.randn(3000, 64, generator=g)
    screened, plain = answering(user, table), answering(user, table, screened=False)
    assert plain.screen_bytes == 0
    assert screened.screen_bytes == pytest.approx(3000 * (64 + 8), rel=0.01)
    before = screened.of_lists([[1]], 20, False)
    assert before is not None
    last = int(score_topk(-user[None], table, torch.tensor([], dtype=torch.int64),
                          torch.tensor([0, 0]), 1)[1])  # fmt: skip
    table[last] = 9 * user  # the worst item becomes the best: what was copied does not know
    after, other = (serving.of_lists([[1]], 20, False) for serving in (screened, plain))
    assert after is not None
    assert other is not None
    assert torch.equal(after[1], before[1])
    assert int(other[1][0, 0]) == last


def test_any_number_of_threads_and_users() -> None:
    g = torch.Generator().manual_seed(6)
    user, table = torch.randn(32, generator=g), torch.randn(5000, 32, generator=g)
    serving = answering(user, table)
    alone = serving.of_lists([[4, 5]], 30, True)
    assert alone is not None
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        for users in (1, 3, 8, 9, 40):
            values, offsets = torch.tensor([4, 5] * users), torch.arange(0, 2 * users + 1, 2)
            found = serving.answer(values, offsets, None, None, 30)
            assert found is not None
            for ours, wanted in zip(found[:2], alone[:2], strict=True):
                assert torch.equal(ours, wanted.expand(users, -1))


INDEX = torch.tensor([1, 2])
WRONG: dict[str, tuple[Any, ...]] = {
    "an unknown item": (torch.tensor([1, 99]), torch.tensor([0, 2]), None, None, 3),
    "padding": (torch.tensor([0, 1]), torch.tensor([0, 2]), None, None, 3),
    "int32": (INDEX.int(), torch.tensor([0, 2]), None, None, 3),
    "a matrix": (INDEX[None], torch.tensor([0, 2]), None, None, 3),
    "steps": (torch.tensor([1, 5, 2, 5])[::2], torch.tensor([0, 2]), None, None, 3),
    "sparse": (INDEX.to_sparse(), torch.tensor([0, 2]), None, None, 3),
    "beyond the values": (INDEX, torch.tensor([0, 3]), None, None, 3),
    "an empty history": (INDEX, torch.tensor([0, 0, 2]), None, None, 3),
    "falling offsets": (INDEX, torch.tensor([0, 2, 1]), None, None, 3),
    "not from 0": (INDEX, torch.tensor([1, 2]), None, None, 3),
    "no users": (INDEX, torch.tensor([0]), None, None, 3),
    "k of 0": (INDEX, torch.tensor([0, 2]), None, None, 0),
    "k beyond": (INDEX, torch.tensor([0, 2]), None, None, 60),
    "seen unknown": (INDEX, torch.tensor([0, 2]), torch.tensor([77]), torch.tensor([0, 1]), 3),
    "seen of nobody": (INDEX, torch.tensor([0, 2]), INDEX, torch.tensor([0, 1, 2]), 3),
    "no seen offsets": (INDEX, torch.tensor([0, 2]), INDEX, None, 3),
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG)
def test_what_is_not_as_it_must_be_is_not_taken(arguments: tuple[Any, ...]) -> None:
    serving = answering(torch.randn(8), torch.randn(60, 8))
    assert serving.answer(*arguments) is None


@pytest.mark.parametrize(
    ("histories", "k"),
    [([[1], [2]], 3), ([[]], 3), ([(1, 2)], 3), ([[1, True]], 3), ([[1, 2.0]], 3), ([[2**70]], 3),
     ([[-1]], 3), ([[60]], 3), ([["a"]], 3), ([[1]], True), ([[1]], 0), ([[1]], 60), ([], 3)],
)  # fmt: skip
def test_lists_that_need_a_look_are_not_taken(histories: Any, k: Any) -> None:
    serving = answering(torch.randn(8), torch.randn(60, 8))
    assert serving.of_lists(histories, k, True) is None
    assert serving.of_lists([[1, 59]], 59, True) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [({"norm.b": torch.zeros(3)}, r"norm\.b has shape \[3\]; it must be \[8\]"),
     ({"positions": None}, "weights lack positions"),
     ({"table": torch.zeros(9, 8)}, "table has shape"),
     ({"norm.w": torch.zeros(8, dtype=torch.float64)}, r"norm\.w has dtype Double")],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    weights = {
        "items": torch.zeros(60, 8), "positions": torch.zeros(4, 8), "norm.w": torch.zeros(8),
        "norm.b": torch.zeros(8), "table": torch.zeros(60, 8), **change,
    }  # fmt: skip
    given = {name: tensor for name, tensor in weights.items() if tensor is not None}
    table = given.pop("table")
    parts = RequestParts(given, {"norm.eps": 1e-12, "layers": 0}, ())
    with pytest.raises((ValueError, RuntimeError), match=message):
        Serving(parts, table, None, screened=True)
