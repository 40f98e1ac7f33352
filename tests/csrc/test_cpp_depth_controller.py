"""The C++ depth controller: threads, refusals, many lengths. The rest is in its op's suite."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from helpers import Backend, Batch, evaluate, random_batch
from helpers_accuracy import check_against_float64
from hypothesis import given
from hypothesis import strategies as st
from test_depth_controller import build

from adarec_fast.ops._library import unavailable

CPP = Backend("depth_controller", "cpp", "cpu")


@pytest.fixture(autouse=True)
def _built() -> Iterator[None]:
    why = unavailable("depth_controller", "cpp", "cpu")
    if why is not None:
        pytest.skip(f"cpp cannot run depth_controller: {why}")
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("count", [5, 200, 1500])
def test_any_number_of_threads_gives_the_same_bits(count: int) -> None:
    case = build(random_batch(count, size=32, capacity=3))
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(evaluate(case, "cpp", torch.float32))
    for result in results[1:]:
        assert torch.equal(results[0].outputs[0], result.outputs[0])
        for name, one in results[0].gradients.items():
            assert torch.equal(one, result.gradients[name]), f"d {name}"


@pytest.mark.parametrize("lengths", [(300, 1), (50,) * 70, (2, 90, 1, 90, 61)], ids=len)
def test_long_and_many_sequences(lengths: tuple[int, ...]) -> None:
    case = build(Batch(lengths, (0,) * len(lengths), size=20, capacity=2, max_length=300))
    case.options["max_length"] = 300
    check_against_float64(case, CPP, torch.float32)


def test_a_sequence_does_not_depend_on_its_batch_by_a_bit() -> None:
    batch = random_batch(100, size=24)
    whole = evaluate(build(batch), "cpp", torch.float32)
    order = [7, 3, 99, 42]
    part = evaluate(build(batch).select(batch, order), "cpp", torch.float32)
    assert torch.equal(part.outputs[0], whole.outputs[0][order])


BATCH = Batch((3, 1, 4), (2, 0, 1), capacity=2)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("offsets", torch.tensor([0, 3, 2, 8]), "must not decrease"),
        ("offsets", torch.tensor([1, 3, 4, 8]), "must begin at 0"),
        ("offsets", torch.tensor([0, 3, 3, 8]), "sequence 1 is empty"),
        ("offsets", torch.tensor([0, 3, 4, 11]), "beyond the 10 tokens"),
        ("offsets", torch.tensor([0, 3, 4, 8], dtype=torch.int32), "offsets has dtype"),
        ("embeddings", torch.zeros(10, 16, dtype=torch.float16), "embeddings has dtype"),
        ("b_hh", torch.zeros(25), "b_hh has shape"),
        ("sequence_bias", torch.zeros(2, 24), "sequence_bias has shape"),
    ],
)
def test_bad_tensors_are_refused(name: str, value: torch.Tensor, message: str) -> None:
    case = build(BATCH)
    tensors = case.tensors(torch.float32)
    tensors[name] = value
    with pytest.raises(ValueError, match=message):
        case.call(tensors, "cpp")


def test_a_longer_sequence_than_max_length_is_refused() -> None:
    case = build(BATCH)
    case.options["max_length"] = 3
    with pytest.raises(ValueError, match="sequence 2 has 4 items, more than max_length=3"):
        case.call(case.tensors(torch.float32), "cpp")


@given(offsets=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 12), max_size=5))
def test_any_offsets_run_or_are_refused(offsets: list[int]) -> None:
    case = build(BATCH)
    tensors = case.tensors(torch.float32)
    count = max(len(offsets) - 1, 0)
    tensors["offsets"] = torch.tensor(offsets, dtype=torch.int64)
    tensors["sequence_bias"] = torch.zeros(count, tensors["w_hh"].shape[0])
    steps = [b - a for a, b in pairwise(offsets)]
    fits = (
        bool(offsets)
        and offsets[0] == 0
        and offsets[-1] <= BATCH.num_tokens
        and all(1 <= step <= case.options["max_length"] for step in steps)
    )
    if fits:
        (logits,) = case.call(tensors, "cpp")
        assert logits.shape == (count, BATCH.levels)
    else:
        with pytest.raises(ValueError, match=r"offsets|sequence_bias"):
            case.call(tensors, "cpp")
