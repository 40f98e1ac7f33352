"""The model under torch.compile and torch.export: whole graphs, few of them, the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers_suite import compile_counter
from torch import Tensor

from adarec_fast import ADARec, Recommender
from adarec_fast.data import Batch
from adarec_fast.ranking.recommender import exportable

SMALL: dict[str, Any] = {
    "num_items": 40,
    "hidden_size": 16,
    "num_layers": 1,
    "max_length": 8,
    "max_depth": 3,
}
VALUES = torch.tensor([3, 4, 9, 1, 2, 7, 5, 39, 40])

# Tracing the reference unrolls every GRU step and every Philox round: short histories, two levels
# and no dropout keep that to seconds.
TRACED: dict[str, Any] = {
    **SMALL,
    "max_length": 3,
    "max_depth": 1,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


@pytest.mark.parametrize(
    ("backend", "supervision"),
    # Tracing the reference takes a minute or two; the suites of the ops do so op by op.
    [pytest.param("reference", "prefix", marks=pytest.mark.slow), ("packed", "all")],
)
def test_training_compiles_whole(backend: str, supervision: str) -> None:
    torch._dynamo.reset()
    model = ADARec(**TRACED, backend=backend, supervision=supervision)
    compiled = torch.compile(
        lambda v, o, t: model.loss(Batch(v, o, t, o)).total,
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for offsets in ([0, 2, 5], [0, 1, 3, 6]):
        bounds = torch.tensor(offsets)
        values = VALUES[: offsets[-1]]
        targets = values if supervision == "all" else values[: len(offsets) - 1]
        seed = model.noise_seed.clone()
        model.zero_grad()
        loss = compiled(values, bounds, targets)
        loss.backward()
        gradient = model.denoiser.w1.grad.clone()
        model.noise_seed.copy_(seed)
        model.zero_grad()
        eager = model.loss(Batch(values, bounds, targets, bounds)).total
        eager.backward()
        torch.testing.assert_close(loss.detach(), eager.detach())
        torch.testing.assert_close(gradient, model.denoiser.w1.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    # By torch's own compiler, a minute each.
    "backend", [pytest.param(name, marks=pytest.mark.slow) for name in ("reference", "packed")]
)
def test_inference_compiles_whole(backend: str) -> None:
    torch._dynamo.reset()
    model = ADARec(**TRACED, backend=backend).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    histories = VALUES[:6], torch.tensor([0, 2, 3, 6])
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(histories).user, model(histories).user, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.slow)])
def test_padded_histories_compile_whole(side: str) -> None:
    """Of more shapes than compilations; histories longer than max_length among them."""
    torch._dynamo.reset()
    model = ADARec(**SMALL)
    counter = compile_counter("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for users, longest in ((3, 5), (4, 9), (7, 12), (2, 8), (9, 3)):
        ids = torch.randint(1, 41, (users, longest))
        empty = torch.randint(0, longest, (users, 1))
        place = torch.arange(longest)
        ids[place < empty if side == "left" else place >= longest - empty] = 0
        targets = torch.randint(1, 41, (users,))
        found = []
        for function in (compiled, model):
            model.noise_seed.fill_(7)
            model.zero_grad()
            output = function(ids, targets=targets)
            output.losses.total.backward()
            found.append((output.user, output.losses.total, model.denoiser.w1.grad.clone()))
        for one, two in zip(*found, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    assert counter.frame_count <= 3


@pytest.mark.parametrize(
    ("rows", "lengths", "message"),
    [
        ([[1, 0, 3], [1, 2, 3]], None, "between items"),
        ([[0, 0, 0], [1, 2, 3]], None, "no item"),
        ([[0, 2, 3], [1, 2, 3]], [3, 3], "lengths"),
    ],
)
def test_padded_histories_that_are_not_whole_stop_a_graph(
    rows: list[list[int]], lengths: list[int] | None, message: str
) -> None:
    model = ADARec(**TRACED).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    given = None if lengths is None else torch.tensor(lengths)
    with torch.no_grad():
        whole = torch.tensor([[0, 2, 3], [1, 2, 3]])
        right = None if lengths is None else torch.tensor([2, 3])
        torch.testing.assert_close(compiled(whole, right).user, model(whole, right).user)
        with pytest.raises(RuntimeError, match=message):
            compiled(torch.tensor(rows), given)


@pytest.mark.parametrize("offsets", [[1, 2, 5], [0, 0, 5], [0, 3, 2], [0, 3, 6]])
def test_offsets_that_do_not_fit_stop_a_graph(offsets: list[int]) -> None:
    model = ADARec(**TRACED).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        whole = VALUES[:5], torch.tensor([0, 2, 5])
        torch.testing.assert_close(compiled(whole).user, model(whole).user)
        with pytest.raises(RuntimeError, match="offsets must begin at 0"):
            compiled((VALUES[:5], torch.tensor(offsets)))


def test_long_jagged_histories_are_cut_as_in_eager() -> None:
    torch._dynamo.reset()
    model = ADARec(**SMALL).eval()
    counter = compile_counter("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    ranker = torch.compile(exportable(model, k=5), fullgraph=True, backend="eager")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for sizes in ([20, 3, 8], [1, 9, 9, 30], [8, 8], [25, 9]):
            offsets = torch.tensor([0, *sizes]).cumsum(0)
            values = torch.randint(1, 41, (sum(sizes),), generator=generator)
            request = values, offsets
            torch.testing.assert_close(compiled(request).user, model(request).user)
            items, scores = ranker(values, offsets)
            expected, expected_scores = model.recommend(request, k=5)
            assert torch.equal(items, expected)
            torch.testing.assert_close(scores, expected_scores)
    assert counter.frame_count <= 2


def _ragged_batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of 1 to 29 histories, all different."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        users = int(torch.randint(1, 30, (1,), generator=generator))
        sizes = torch.randint(1, 9, (users,), generator=generator)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        yield torch.randint(1, 41, (int(offsets[-1]),), generator=generator), offsets


@pytest.mark.parametrize(
    ("supervision", "depth_gradient"),
    [("prefix", "truncated"), pytest.param("all", "full", marks=pytest.mark.slow)],
)
def test_fifty_ragged_batches_compile_three_times(supervision: str, depth_gradient: str) -> None:
    """The first shape, then any shape, then a single user: torch tells sizes of 1 from others."""
    model = ADARec(**SMALL, supervision=supervision, depth_gradient=depth_gradient)
    counter = compile_counter("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for number, (values, offsets) in enumerate(_ragged_batches(50)):
        targets = values if supervision == "all" else values[: offsets.shape[0] - 1]
        seed = model.noise_seed.clone()
        model.zero_grad()
        total = compiled((values, offsets), targets=targets).losses.total
        total.backward()
        if number % 10 == 0:
            gradient = model.denoiser.w1.grad.clone()
            model.noise_seed.copy_(seed)
            model.zero_grad()
            eager = model.loss(Batch(values, offsets, targets, offsets)).total
            eager.backward()
            torch.testing.assert_close(total.detach(), eager.detach())
            torch.testing.assert_close(gradient, model.denoiser.w1.grad, rtol=1e-4, atol=1e-7)
        assert torch.equal(model.noise_seed, seed + 1)
    assert counter.frame_count <= 3


def test_recommending_compiles_three_times() -> None:
    model = ADARec(**SMALL).eval()
    counter = compile_counter("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(exportable(model, k=20), fullgraph=True, backend=counter)
    with torch.no_grad():
        for values, offsets in _ragged_batches(50):
            items, scores = compiled(values, offsets)
            expected, expected_scores = model.recommend((values, offsets), k=20)
            assert torch.equal(items, expected)
            torch.testing.assert_close(scores, expected_scores)
    assert counter.frame_count <= 3


@pytest.mark.parametrize("backend", ["auto", "packed"])
def test_the_exported_program_recommends_the_same(backend: str, tmp_path: Any) -> None:
    model = ADARec(**SMALL, backend=backend)
    with torch.no_grad():
        model.depth_controller.b_out += torch.randn(4)
    program = exportable(model, k=20)
    tokens, users = torch.export.Dim("tokens", min=2), torch.export.Dim("users", min=2)
    exported = torch.export.export(
        program,
        (VALUES, torch.tensor([0, 2, 3, 9])),
        dynamic_shapes=({0: tokens}, {0: users + 1}),
    )
    single = torch.export.export(
        program, (VALUES[:5], torch.tensor([0, 5])), dynamic_shapes=({0: tokens}, None)
    ).module()
    torch.export.save(exported, tmp_path / "recommend.pt2")
    loaded = torch.export.load(tmp_path / "recommend.pt2").module()
    recommender = Recommender(model)
    requests = [(VALUES[:n], torch.tensor([0, n])) for n in (2, 5, 8)]
    for values, offsets in (*requests, *(b for b in _ragged_batches(20) if b[0].shape[0] > 1)):
        items, scores = (single if offsets.shape[0] == 2 else loaded)(values, offsets)
        expected = recommender.recommend((values, offsets), k=20)
        assert torch.equal(items, expected.items)
        torch.testing.assert_close(scores, expected.scores, rtol=1e-5, atol=1e-6)
