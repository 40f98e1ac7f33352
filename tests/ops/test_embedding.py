"""`embedding`: items and positions of packed histories, LayerNorm and dropout."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import pytest
import torch
from helpers import Backend, Batch, OpCase, random_batch
from helpers_accuracy import check_against_float64
from helpers_suite import OpSuite
from torch import Tensor

from adarec_fast import ADARec, rng
from adarec_fast.ops import Embedded, embedding, linear_cross_entropy
from adarec_fast.ops._library import unavailable
from adarec_fast.ops._ownership import give_away, ours_to_change

ITEMS = 30


def build(batch: Batch, *, p: float = 0.0, items: int = ITEMS) -> OpCase:
    g, size = batch.generator(), batch.size
    ids = torch.randint(1, items + 1, (batch.num_tokens,), generator=g)
    return OpCase(
        function=embedding,
        arguments={
            # At capacity padding, or items that must not count.
            "item_ids": ids if batch.seed % 2 else torch.where(batch.real(), ids, 0),
            "offsets": batch.offsets(),
            "table": torch.randn(items + 1, size, generator=g),
            "positions": torch.randn(batch.max_length, size, generator=g),
            "norm_weight": torch.randn(size, generator=g),
            "norm_bias": torch.randn(size, generator=g),
            "seed": rng.as_seed(batch.seed),
        },
        differentiable=("table", "positions", "norm_weight", "norm_bias"),
        options={"eps": 1e-5, "p": p},
        written=(batch.real(), None),
        axes={"item_ids": ("token", 0)},
        output_axes=(("token", 0), None),
    )


class TestEmbedding(OpSuite):
    op = "embedding"
    variants: ClassVar = {
        "dropout": partial(build, p=0.3),
        "plain": build,
        "one-item": partial(build, items=1),
    }
    noisy = ("dropout",)
    free = ("item_ids", "offsets", "table", "positions")
    # Interpreted, every token is compared with every other.
    many = 1000

    @pytest.mark.parametrize("batch", [random_batch(70, size=20, capacity=5, seed=3)])
    def test_sorted_tokens_and_parts_of_positions(
        self, batch: Batch, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What larger batches take: torch's sort, and positions that several programs sum."""
        if backend.name == "triton":
            from adarec_fast.kernels import embedding as kernels

            monkeypatch.setattr(kernels, "COUNTED", 10)
            monkeypatch.setattr(kernels, "SEQUENCES", 16)
        for variant in self.variants.values():
            check_against_float64(variant(batch), backend, torch.float32)

    def test_padding_has_no_gradient(self, backend: Backend) -> None:
        found, table = _embedded(backend, ids=(0, 3, 0, 3, 7))
        found.x.sum().backward()
        assert not table.grad[0].any()
        assert table.grad[[3, 7]].any(1).all()

    def test_a_large_catalogue(self, backend: Backend) -> None:
        table = torch.zeros(1_000_001, 4, device=backend.device)
        ids = (1_000_000, 1, 1_000_000, 999_999)
        small, few = _embedded(backend, ids=(3, 1, 3, 2), table=torch.zeros(4, 4))
        large, _ = _embedded(backend, ids=ids, table=table)
        for found in (small, large):
            (found.x * torch.arange(16.0, device=found.x.device).view(4, 4)).sum().backward()
        rows = [1, 999_999, 1_000_000]
        assert torch.equal(table.grad[rows], few.grad[1:])
        table.grad[rows] = 0.0
        assert not table.grad.any()


def _embedded(
    backend: Backend, ids: tuple[int, ...] = (3, 1, 3, 2), table: Tensor | None = None
) -> tuple[Embedded, Tensor]:
    """The op of one sequence, and its table."""
    g, device = torch.Generator().manual_seed(0), backend.device
    table = torch.randn(12, 4, generator=g) if table is None else table
    table = table.to(device).requires_grad_()
    positions, weight, bias = (torch.randn(n, 4, generator=g) for n in (6, 1, 1))
    item_ids, offsets = torch.tensor(ids), torch.tensor([0, len(ids)])
    found = embedding(
        item_ids.to(device), offsets.to(device), table, positions.to(device),
        weight[0].to(device), bias[0].to(device), eps=1e-5, backend=backend.name,
    )  # fmt: skip
    return found, table


def _loss(weight: Tensor) -> Tensor:
    g = torch.Generator().manual_seed(1)
    hidden, targets = torch.randn(3, 4, generator=g), torch.tensor([2, 5, 2])
    return linear_cross_entropy(hidden.to(weight.device), weight, targets.to(weight.device))


class TestSharedTable:
    """The table's gradient from both of its uses."""

    @pytest.fixture(params=["reference", "packed", "cpp"])
    def used(self, request: pytest.FixtureRequest) -> Backend:
        if unavailable("embedding", request.param, "cpu") is not None:
            pytest.skip("the C++ extension is not there")
        return Backend("embedding", request.param, "cpu")

    def _separate(self) -> Tensor:
        found, table = _embedded(Backend("embedding", "reference", "cpu"))
        (found.x.square().sum() + _loss(table)).backward()
        return table.grad

    def test_both_uses_add_up(self, used: Backend) -> None:
        found, table = _embedded(used)
        assert found.table.data_ptr() == table.data_ptr()
        (found.x.square().sum() + _loss(found.table)).backward()
        torch.testing.assert_close(table.grad, self._separate())

    def test_two_backward_passes_give_twice_the_gradient(self, used: Backend) -> None:
        found, table = _embedded(used)
        loss = found.x.square().sum() + _loss(found.table)
        loss.backward(retain_graph=True)
        loss.backward()
        torch.testing.assert_close(table.grad, 2 * self._separate())

    def test_one_use_alone(self, used: Backend) -> None:
        for use in (lambda f: f.x.square().sum(), lambda f: _loss(f.table)):
            found, table = _embedded(used)
            use(found).backward()
            plain, wanted = _embedded(Backend("embedding", "reference", "cpu"))
            use(plain).backward()
            torch.testing.assert_close(table.grad, wanted.grad)

    def test_a_gradient_that_others_hold_is_left_alone(self, used: Backend) -> None:
        found, table = _embedded(used)
        # Both summands get the very same tensor as their gradient.
        other = torch.zeros_like(table).requires_grad_()
        given = torch.ones_like(table)
        (found.table + other).backward(given, retain_graph=True)
        torch.autograd.backward([found.x, found.table], [torch.ones_like(found.x), given])
        assert torch.equal(given, torch.ones_like(given))
        assert torch.equal(other.grad, given)
        assert not torch.equal(table.grad, 2 * given)

    def test_used_twice_by_losses(self, used: Backend) -> None:
        found, table = _embedded(used)
        (found.x.square().sum() + _loss(found.table) + 2 * _loss(found.table)).backward()
        plain, wanted = _embedded(Backend("embedding", "reference", "cpu"))
        (plain.x.square().sum() + 3 * _loss(plain.table)).backward()
        torch.testing.assert_close(table.grad, wanted.grad)


def test_a_gradient_is_given_away_by_its_maker_alone() -> None:
    gradient = torch.ones(2, 3)
    assert not ours_to_change(gradient)
    assert ours_to_change(give_away(gradient))
    assert not ours_to_change(gradient * 1)
    assert not ours_to_change(give_away(gradient.T))


@pytest.mark.parametrize("backend", ["packed", "cpp"])
def test_a_model_calls_the_op_where_a_kernel_runs_it(backend: str) -> None:
    if unavailable("embedding", backend, "cpu") is not None:
        pytest.skip("the C++ extension is not there")
    model = ADARec(
        num_items=20, hidden_size=8, num_layers=1, max_depth=1, max_length=5, backend=backend
    )
    names: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        model((torch.tensor([1, 2]), torch.tensor([0, 2])))
    whole = [name for name in names if name.startswith("adarec_fast.embedding")]
    assert len(whole) == (backend == "cpp")
    assert ("aten.embedding.default" in names) == (backend == "packed")
