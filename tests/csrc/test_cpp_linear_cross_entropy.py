"""The C++ catalogue cross entropy: threads, both sweeps, refusals. The rest: the op's suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers import Backend, Batch, evaluate, random_batch
from helpers_accuracy import check_against_float64
from test_linear_cross_entropy import build
from torch import Tensor

from adarec_fast.ops import linear_cross_entropy
from adarec_fast.ops._library import unavailable

CPP = Backend("linear_cross_entropy", "cpp", "cpu")


@pytest.fixture(autouse=True)
def _built() -> Iterator[None]:
    why = unavailable("linear_cross_entropy", "cpp", "cpu")
    if why is not None:
        pytest.skip(f"cpp cannot run linear_cross_entropy: {why}")
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("items", [1, 95, 96, 97, 5000])
@pytest.mark.parametrize("rows", [1, 64, 129, 300])
def test_any_number_of_threads_gives_the_same_bits(items: int, rows: int) -> None:
    case = build(random_batch(rows, size=20), items=items)
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(evaluate(case, "cpp", torch.float32))
    for result in results[1:]:
        assert torch.equal(results[0].outputs[0], result.outputs[0])
        for name, one in results[0].gradients.items():
            assert torch.equal(one, result.gradients[name]), f"d {name}"
    check_against_float64(case, CPP, torch.float32)


def test_a_catalogue_too_large_to_keep_its_exponentials() -> None:
    # 128 rows of more than 4 Mi / 128 items: the second sweep makes them again.
    case = build(random_batch(130, size=4), items=40_000)
    check_against_float64(case, CPP, torch.float32)


@pytest.mark.parametrize("scale", [30.0, 1e-3])
def test_large_and_small_logits(scale: float) -> None:
    case = build(random_batch(70, size=16), items=700)
    case.arguments["weight"] = case.arguments["weight"] * scale
    check_against_float64(case, CPP, torch.float32)


def test_padding_takes_no_part() -> None:
    case = build(random_batch(10, size=8), items=30)
    tensors = case.tensors(torch.float32)
    wanted = case.call(tensors, "cpp")[0]
    with torch.no_grad():
        tensors["weight"][0] = float("nan")
    got = case.call(tensors, "cpp")[0]
    assert torch.equal(wanted, got)
    got.backward()
    assert tensors["weight"].grad is not None
    assert not tensors["weight"].grad[0].any()
    assert tensors["weight"].grad.isfinite().all()


def test_no_row_counts() -> None:
    hidden = torch.randn(3, 8, requires_grad=True)
    weight = torch.randn(5, 8, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.zeros(3, dtype=torch.int64), backend="cpp")
    loss.backward()
    assert loss == 0
    for leaf in (hidden, weight):
        assert leaf.grad is not None
        assert not leaf.grad.any()


def test_nan_is_not_hidden() -> None:
    hidden = torch.randn(3, 8)
    hidden[1, 2] = float("nan")
    assert linear_cross_entropy(
        hidden, torch.randn(5, 8), torch.tensor([1, 2, 3]), backend="cpp"
    ).isnan()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("targets", torch.tensor([1, 41, 0]), r"targets\[1\]=41 must lie in 0..40"),
        ("targets", torch.tensor([1, -1, 0]), r"targets\[1\]=-1 must lie in 0..40"),
        ("targets", torch.tensor([1, 2**62, 0]), r"targets\[1\]=\d+ must lie in 0..40"),
        ("targets", torch.tensor([1, 2, 0], dtype=torch.int32), "targets has dtype"),
        ("hidden", torch.zeros(3, 16, dtype=torch.float16), "hidden has dtype"),
        ("weight", torch.zeros(41, 15), "weight has shape"),
        ("weight", torch.zeros(1, 16), "weight has shape"),
    ],
)
def test_bad_tensors_are_refused(name: str, value: Tensor, message: str) -> None:
    case = build(Batch((1, 1, 1), (0, 0, 0)))
    tensors = case.tensors(torch.float32)
    tensors[name] = value
    with pytest.raises(ValueError, match=message):
        case.call(tensors, "cpp")
