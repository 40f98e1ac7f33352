"""`linear_cross_entropy`: Eq. 13 over the whole catalogue."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from helpers import Backend, Batch, OpCase, backends_for, random_batch, sized
from helpers_accuracy import check_against_float64, rounded
from helpers_suite import OpSuite
from torch import Tensor

from adarec_fast.ops import linear_cross_entropy
from adarec_fast.ops._library import interpreting


def build(
    batch: Batch, *, items: int = 40, left_out: bool = True, targets: Tensor | None = None,
    smoothing: float = 0.0,
) -> OpCase:
    """A row a sequence; with ``left_out`` some of them have target 0."""
    g = batch.generator()
    rows = batch.num_sequences
    drawn = torch.randint(0 if left_out else 1, items + 1, (rows,), generator=g)
    return OpCase(
        function=linear_cross_entropy,
        arguments={
            "hidden": torch.randn(rows, batch.size, generator=g),
            "weight": torch.randn(items + 1, batch.size, generator=g) / batch.size**0.25,
            "targets": drawn if targets is None else targets,
        },
        differentiable=("hidden", "weight"),
        options={"label_smoothing": smoothing},
        # The slope of a softmax errs by the rounding of its scores: sums of D products, which the
        # kernels make once for the normaliser and again, in another order, for the slope.
        scale=batch.size**0.5 / items + 2 * batch.size**0.75 / max(rows, 1),
        axes={"hidden": ("sequence", 0), "targets": ("sequence", 0)},
    )


class TestLinearCrossEntropy(OpSuite):
    op = "linear_cross_entropy"
    variants: ClassVar = {
        "plain": partial(build, left_out=False),
        "rows-left-out": build,
        "one-item": partial(build, items=1),
        "large-catalogue": partial(build, items=3000),
        "smoothed": partial(build, smoothing=0.3),
    }
    # The loss is the mean over the batch.
    test_a_sequence_does_not_depend_on_its_batch = None


BACKENDS = pytest.mark.parametrize("backend", backends_for("linear_cross_entropy"), indirect=True)
ROWS = 7


def loss_and_gradients(
    backend: Backend, case: OpCase, change: Any = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = case.tensors(dtype, backend.device)
    if change is not None:
        with torch.no_grad():
            change(tensors)
    (loss,) = case.call(tensors, backend.name)
    return loss.detach(), *torch.autograd.grad(loss, (tensors["hidden"], tensors["weight"]))


SMOOTHED = pytest.mark.parametrize("smoothing", [0.0, 0.3])


@BACKENDS
@SMOOTHED
def test_rows_that_are_left_out_may_hold_anything(backend: Backend, smoothing: float) -> None:
    if backend.name == "reference":
        pytest.skip("autograd multiplies what is there with a gradient of zero")
    case = build(random_batch(90, size=20), items=70, smoothing=smoothing)
    left_out = case.arguments["targets"] == 0
    assert left_out.any()

    def spoil(tensors: dict[str, Any]) -> None:
        tensors["hidden"][left_out] = float("nan")

    loss, d_hidden, d_weight = loss_and_gradients(backend, case, spoil)
    wanted = loss_and_gradients(backend, case)
    assert not d_hidden[left_out].any()
    for got, want in zip((loss, d_hidden, d_weight), wanted, strict=True):
        assert torch.equal(got, want)


@BACKENDS
@SMOOTHED
def test_padding_takes_no_part(backend: Backend, smoothing: float) -> None:
    case = build(sized(random_batch(10, size=8), backend), items=30, smoothing=smoothing)

    def spoil(tensors: dict[str, Any]) -> None:
        tensors["weight"][0] = float("nan")

    wanted = loss_and_gradients(backend, case)
    for got, want in zip(loss_and_gradients(backend, case, spoil), wanted, strict=True):
        assert torch.equal(got, want)
    assert not wanted[2][0].any()


@BACKENDS
def test_nan_is_not_hidden(backend: Backend) -> None:
    case = build(sized(random_batch(3, size=8), backend), items=30, left_out=False)

    def spoil(tensors: dict[str, Any]) -> None:
        tensors["hidden"][1, 2] = float("nan")

    assert loss_and_gradients(backend, case, spoil)[0].isnan()


@BACKENDS
@pytest.mark.parametrize("rows", [0, 3, 70])
def test_no_row_counts(backend: Backend, rows: int) -> None:
    case = build(sized(random_batch(rows, size=8), backend), items=30, smoothing=0.3)
    case.arguments["targets"].zero_()
    loss, d_hidden, d_weight = loss_and_gradients(backend, case)
    assert loss == 0
    assert not d_hidden.any()
    assert not d_weight.any()


@BACKENDS
def test_smoothing_is_torchs(backend: Backend) -> None:
    case = build(random_batch(50, size=16), items=70, smoothing=0.2)
    loss, *gradients = loss_and_gradients(backend, case)
    tensors = case.tensors(torch.float64)
    hidden, weight = tensors["hidden"], tensors["weight"]
    assert hidden is not None
    assert weight is not None
    gold = F.cross_entropy(
        hidden @ weight[1:].T, case.arguments["targets"] - 1, ignore_index=-1, label_smoothing=0.2
    )
    torch.testing.assert_close(loss.double(), gold.detach(), rtol=1e-6, atol=0)
    for got, want in zip(gradients, torch.autograd.grad(gold, (hidden, weight)), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-7)


@BACKENDS
@pytest.mark.parametrize("items", [63, 64, 65, 129])
def test_targets_at_the_last_item(backend: Backend, items: int) -> None:
    for rows in (1, ROWS):
        targets = torch.full((rows,), items)
        case = build(sized(random_batch(rows, size=8), backend), items=items, targets=targets)
        check_against_float64(case, backend, torch.float32)


@BACKENDS
def test_a_row_over_many_items(backend: Backend) -> None:
    targets = torch.tensor([9_999])
    case = build(random_batch(1, size=3), items=10_000, targets=targets)
    check_against_float64(case, backend, torch.float32)


@pytest.mark.parametrize(
    "backend",
    [p for p in backends_for("linear_cross_entropy") if p.values[0].name != "reference"],
    indirect=True,
)
def test_a_million_items(backend: Backend) -> None:
    """Targets at both ends, and logits that nobody holds."""
    if interpreting():
        pytest.skip("interpreted, a tile takes milliseconds, and these are 15,625 a pass")
    items, rows = 1_000_000, 5
    targets = torch.tensor([1, 500_000, items - 1, items, items])
    case = build(random_batch(rows, size=16), items=items, targets=targets)
    check_against_float64(case, backend, torch.float32)


@BACKENDS
@pytest.mark.parametrize("scale", [30.0, 1e-3])
def test_large_and_small_logits(backend: Backend, scale: float) -> None:
    case = build(random_batch(70, size=16), items=300)
    case.arguments["weight"] = case.arguments["weight"] * scale
    check_against_float64(case, backend, torch.float32)


@BACKENDS
def test_gradients_are_fresh_in_every_backward_pass(backend: Backend) -> None:
    case = build(sized(random_batch(ROWS, size=8), backend))
    tensors = case.tensors(torch.float32, backend.device)
    (loss,) = case.call(tensors, backend.name)
    inputs = (tensors["hidden"], tensors["weight"])
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.fill_(float("nan"))  # whoever receives it may add to it in place
    for got, want in zip(torch.autograd.grad(3.0 * loss, inputs), kept, strict=True):
        torch.testing.assert_close(got, 3.0 * want)


@BACKENDS
@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
def test_logits_are_not_rounded(backend: Backend, autocast: bool) -> None:
    """Only operands may be: a loss of logits rounded to bfloat16 is off by 1e-5 and more."""
    if backend.name == "reference":
        pytest.skip("it is PyTorch's product in whatever precision is asked for")
    # Values that bfloat16 has: the interpreter cuts off what others round.
    case = rounded(build(random_batch(60, size=64), items=500, left_out=False), torch.bfloat16)
    tensors = case.tensors(torch.float32 if autocast else torch.bfloat16, backend.device)
    with torch.autocast(backend.device, dtype=torch.bfloat16, enabled=autocast):
        (loss,) = case.call(tensors, backend.name)
    assert loss.dtype == torch.float32
    (gold,) = case.call(case.tensors(torch.float64), "reference")
    assert abs(loss.item() - gold.item()) < 1e-6 * gold.item()


def test_kernels_lose_nothing_of_small_gradients() -> None:
    """Where p is almost 1, p - 1 has no digits in float32; the kernels do not form it."""
    backend = next(
        (p.values[0] for p in backends_for("linear_cross_entropy") if p.values[0].name == "triton"),
        None,
    )
    if backend is None:
        pytest.skip("no triton here")
    weight = torch.randn(41, 16, generator=torch.Generator().manual_seed(0))
    weight /= weight.norm(dim=1, keepdim=True)
    targets = torch.arange(1, 21)
    case = build(random_batch(20, size=16), targets=targets)
    case.arguments.update(hidden=30 * weight[targets], weight=weight)
    loss, *gradients = loss_and_gradients(backend, case)
    exact = Backend("linear_cross_entropy", "reference", backend.device)
    gold, *wanted = loss_and_gradients(exact, case, dtype=torch.float64)
    torch.testing.assert_close(loss.double(), gold, rtol=0, atol=1e-7)
    for got, want in zip(gradients, wanted, strict=True):
        rows = want.norm(dim=1)
        assert float(rows[rows > 0].min()) < 1e-8
        off = (got.double() - want).norm(dim=1)
        assert bool((off <= 1e-5 * rows).all())


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_a_smoothing_that_is_none(smoothing: float) -> None:
    tensors = build(random_batch(3, size=8)).tensors(torch.float32)
    with pytest.raises(ValueError, match=r"label_smoothing=\S+ must lie in \[0, 1\)"):
        linear_cross_entropy(**tensors, label_smoothing=smoothing)
