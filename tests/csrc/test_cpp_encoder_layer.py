"""The C++ encoder layer: threads, refusals, lengths beyond a tile. The rest: the op's suite."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import Backend, Batch, OpCase, evaluate, random_batch
from helpers_accuracy import check_against_float64
from hypothesis import given
from hypothesis import strategies as st
from test_encoder_layer import build

from adarec_fast.ops._library import unavailable

CPP = Backend("encoder_layer", "cpp", "cpu")
VARIANTS = {
    "plain": build,
    "last": partial(build, last_only=True),
    "dropout": partial(build, dropout=(0.3, 0.5)),
    "whole": partial(build, dropout=(0.3, 0.5), causal=False),
    "last-dropout": partial(build, dropout=(0.5, 0.2), last_only=True),
}


@pytest.fixture(autouse=True)
def _built() -> Iterator[None]:
    why = unavailable("encoder_layer", "cpp", "cpu")
    if why is not None:
        pytest.skip(f"cpp cannot run encoder_layer: {why}")
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_number_of_threads_gives_the_same_bits(variant: str) -> None:
    # Enough tokens for all groups of tiles that sum weight gradients on their own.
    case = VARIANTS[variant](random_batch(400, size=32, max_depth=6, capacity=3))
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(evaluate(case, "cpp", torch.float32))
    for result in results[1:]:
        for one, other in zip(results[0].outputs, result.outputs, strict=True):
            assert torch.equal(one, other)
        for name, one in results[0].gradients.items():
            assert torch.equal(one, result.gradients[name]), f"d {name}"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lengths", [(16, 17, 64, 1), (65, 2), (257, 40)], ids=str)
def test_sequences_longer_than_a_block_or_a_tile(
    variant: str, lengths: tuple[int, ...]
) -> None:
    case = VARIANTS[variant](
        Batch(lengths, (2, 0, 1, 2)[: len(lengths)], size=24, capacity=1, max_length=300)
    )
    case.options["max_length"] = 300
    check_against_float64(case, CPP, torch.float32)


def test_heads_of_every_width() -> None:
    for heads in (1, 4, 8):
        case = build(random_batch(6, size=72, capacity=1), dropout=(0.2, 0.2))
        case.options["heads"] = heads
        check_against_float64(case, CPP, torch.float32)


def last_positions(
    batch: Batch, heads: int, inner: int, dropout: tuple[float, float], depth: bool = True
) -> OpCase:
    """A case of last positions alone, with any number of heads and any inner size."""
    case = build(batch, depth=depth, dropout=dropout, last_only=True)
    case.options.update(heads=heads, max_length=batch.max_length)
    g = batch.generator()
    case.arguments.update(
        ff1_w=torch.randn(inner, batch.size, generator=g) / batch.size**0.5,
        ff1_b=torch.randn(inner, generator=g) / 4,
        ff2_w=torch.randn(batch.size, inner, generator=g) / inner**0.5,
    )
    return case


@pytest.mark.parametrize("dropout", [(0.0, 0.0), (0.3, 0.0), (0.5, 0.2)], ids=str)
@pytest.mark.parametrize(
    ("size", "heads", "inner"),
    [(15, 1, 15), (15, 3, 37), (12, 4, 20), (32, 1, 48), (48, 2, 100), (72, 4, 9), (16, 16, 64)],
)
def test_last_positions_with_heads_and_sizes_of_every_kind(
    size: int, heads: int, inner: int, dropout: tuple[float, float]
) -> None:
    # Lengths around whole vectors and blocks of four rows, and levels of two Philox groups.
    batch = Batch(
        (1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 33, 70), (0, 5, 1, 4, 0, 2, 3, 5, 4, 0, 3, 5),
        size=size, max_depth=5, max_length=80, capacity=2,
    )  # fmt: skip
    check_against_float64(last_positions(batch, heads, inner, dropout), CPP, torch.float32)


@pytest.mark.parametrize("depth", [True, False])
@pytest.mark.parametrize(
    ("lengths", "depths"),
    [((1,), (0,)), ((1, 1, 1), (0, 2, 1)), ((3, 7), (0, 0)), ((2100, 3), (0, 0))],
    ids=str,
)
def test_last_positions_of_histories_of_every_length(
    lengths: tuple[int, ...], depths: tuple[int, ...], depth: bool
) -> None:
    # Alone in a tile or not; the longest has more keys than a tile may.
    batch = Batch(
        lengths, depths, size=24, max_depth=max(depths), max_length=max(lengths), capacity=1
    )
    case = last_positions(batch, 2, 40, (0.0, 0.3), depth)
    check_against_float64(case, CPP, torch.float32)


@pytest.mark.parametrize("size", [16, 20])
def test_last_positions_in_bfloat16(size: int) -> None:
    batch = random_batch(20, size=size, max_depth=5, capacity=2)
    check_against_float64(last_positions(batch, 2, 40, (0.3, 0.2)), CPP, torch.bfloat16)


def test_the_bias_of_keys_has_no_gradient_at_last_positions() -> None:
    # It shifts all scores of a query alike.
    batch = random_batch(20, size=20, capacity=2)
    result = evaluate(last_positions(batch, 2, 40, (0.3, 0.2)), "cpp", torch.float32)
    query, key, value = result.gradients["qkv_b"].chunk(3)
    assert query.abs().min() > 0
    assert value.abs().min() > 0
    assert torch.equal(key, torch.zeros(20))


def test_strided_arguments_are_read_right() -> None:
    case = build(random_batch(5, size=16))
    plain = case.tensors(torch.float32)
    strided = dict(plain)
    for name in ("x", "qkv_w", "ff2_w", "offsets", "depth"):
        value = plain[name]
        strided[name] = torch.stack([value, value], -1)[..., 0].detach()
        assert not strided[name].is_contiguous()
    (wanted,), (got,) = case.call(plain, "cpp"), case.call(strided, "cpp")
    written = case.written[0]
    assert torch.equal(got[written], wanted[written])


BATCH = Batch((3, 1, 4), (2, 0, 1), capacity=2)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("offsets", torch.tensor([0, 3, 2, 8]), "must not decrease"),
        ("offsets", torch.tensor([1, 3, 4, 8]), "must begin at 0"),
        ("offsets", torch.tensor([0, 3, 3, 8]), "sequence 1 is empty"),
        ("offsets", torch.tensor([0, 3, 4, 11]), "beyond the 10 tokens"),
        ("offsets", torch.tensor([0.0, 3.0, 4.0, 8.0]), "offsets has dtype"),
        ("depth", torch.tensor([0, 3, 1]), r"depth\[1\]=3 must lie in 0..2"),
        ("depth", torch.tensor([-1, 0, 1]), r"depth\[0\]=-1 must lie in 0..2"),
        ("depth", torch.tensor([0, 1]), "depth has shape"),
        ("x", torch.zeros(3, 10, 16, dtype=torch.float16), "x has dtype"),
        ("ff1_b", torch.zeros(63), "ff1_b has shape"),
        ("ln2_w", torch.zeros(16, 1), "ln2_w has shape"),
        ("seed", torch.tensor([1, 2]), "seed has shape"),
    ],
)
def test_bad_tensors_are_refused(name: str, value: torch.Tensor, message: str) -> None:
    case = build(BATCH, dropout=(0.1, 0.1))
    tensors = case.tensors(torch.float32)
    tensors[name] = value
    with pytest.raises(ValueError, match=message):
        case.call(tensors, "cpp")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 3}, "sequence 2 has 4 items, more than max_length=3"),
        ({"max_length": 1 << 17}, "max_length=131072"),
        ({"attention_dropout": 1.0}, "attention_dropout=1"),
        ({"hidden_dropout": -0.1}, "hidden_dropout=-0.1"),
        ({"heads": 3}, "heads=3 does not divide"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    case = build(BATCH, dropout=(0.1, 0.1))
    case.options.update(options)
    with pytest.raises(ValueError, match=message):
        case.call(case.tensors(torch.float32), "cpp")


@given(
    offsets=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 12), max_size=5),
    depth=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 3), max_size=4),
)
def test_any_offsets_and_depths_run_or_are_refused(offsets: list[int], depth: list[int]) -> None:
    case = build(BATCH)
    tensors = case.tensors(torch.float32)
    tensors["offsets"] = torch.tensor(offsets, dtype=torch.int64)
    tensors["depth"] = torch.tensor(depth, dtype=torch.int64)
    steps = [b - a for a, b in pairwise(offsets)]
    fits = (
        len(offsets) == len(depth) + 1
        and offsets[0] == 0
        and offsets[-1] <= BATCH.num_tokens
        and all(1 <= step <= case.options["max_length"] for step in steps)
        and all(0 <= level < BATCH.levels for level in depth)
    )
    if fits:
        (y,) = case.call(tensors, "cpp")
        assert y.shape == tensors["x"].shape
    else:
        with pytest.raises(ValueError, match=r"offsets|depth"):
            case.call(tensors, "cpp")
