"""Packed batches against plain Python loops, and exact resumption."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adarec_fast.data import (
    Batch,
    DataError,
    EvaluationBatches,
    Split,
    TrainingBatches,
    load,
    pack,
)

HISTORIES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=9), min_size=1, max_size=9)


def jagged(histories: list[list[int]]) -> tuple[Tensor, Tensor]:
    return pack(histories, max_length=1000)


def rows(values: Tensor, offsets: Tensor) -> list[list[int]]:
    bounds = offsets.tolist()
    return [values[a:b].tolist() for a, b in itertools.pairwise(bounds)]


def examples(batch: Batch, supervision: str) -> list[tuple[int, list[int], list[int]]]:
    inputs = rows(batch.item_ids, batch.offsets)
    targets = (
        [[t] for t in batch.targets.tolist()]
        if supervision == "prefix"
        else rows(batch.targets, batch.offsets)
    )
    return list(zip(batch.users.tolist(), inputs, targets, strict=True))


def naive(
    histories: list[list[int]], supervision: str, max_length: int
) -> list[tuple[int, list[int], list[int]]]:
    result = []
    for user, history in enumerate(histories):
        if supervision == "prefix":
            for end in range(1, len(history)):
                result.append((user, history[:end][-max_length:], [history[end]]))
        elif len(history) >= 2:
            last = history[-(max_length + 1) :]
            result.append((user, last[:-1], last[1:]))
    return result


@settings(deadline=None, max_examples=60)
@given(
    histories=HISTORIES,
    supervision=st.sampled_from(["prefix", "all"]),
    batch_size=st.integers(1, 7),
    max_length=st.integers(1, 10),
    drop_last=st.booleans(),
)
def test_an_epoch_holds_every_example_once(
    histories: list[list[int]],
    supervision: str,
    batch_size: int,
    max_length: int,
    drop_last: bool,
) -> None:
    expected = naive(histories, supervision, max_length)
    values, offsets = jagged(histories)

    def build() -> TrainingBatches:
        return TrainingBatches(
            values,
            offsets,
            supervision=supervision,  # type: ignore[arg-type]
            batch_size=batch_size,
            max_length=max_length,
            seed=3,
            drop_last=drop_last,
        )

    if not expected:
        with pytest.raises(DataError, match="no training history has two items"):
            build()
        return
    batches = build()
    assert batches.num_examples == len(expected)
    epoch = list(batches.epoch(0))
    assert len(epoch) == len(batches)
    got = [example for batch in epoch for example in examples(batch, supervision)]
    sizes = [batch.users.numel() for batch in epoch]
    if drop_last:
        assert sizes == [batch_size] * (len(expected) // batch_size)
        remaining = list(expected)
        for example in got:
            remaining.remove(example)
    else:
        assert sum(sizes) == len(expected)
        assert all(size == batch_size for size in sizes[:-1])
        assert sorted(got) == sorted(expected)
    for batch in epoch:
        assert all(tensor.dtype == torch.int64 for tensor in batch)
        assert int(batch.offsets[-1]) == batch.item_ids.numel()


@pytest.mark.parametrize("supervision", ["prefix", "all"])
def test_resumption_is_exact(supervision: str) -> None:
    values, offsets = jagged([list(range(1, 2 + n % 7)) for n in range(1, 60)])

    def build(seed: int = 11) -> TrainingBatches:
        return TrainingBatches(
            values,
            offsets,
            supervision=supervision,  # type: ignore[arg-type]
            batch_size=8,
            max_length=4,
            seed=seed,
        )

    for epoch in (0, 5):
        whole = list(build().epoch(epoch))
        for start in range(len(whole) + 1):
            rest = list(build().epoch(epoch, start))
            assert len(rest) == len(whole) - start
            for ours, theirs in zip(rest, whole[start:], strict=True):
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    def order(seed: int, epoch: int) -> list[int]:
        return [u for batch in build(seed).epoch(epoch) for u in batch.users.tolist()]

    assert order(11, 0) != order(11, 1)
    assert order(11, 0) != order(12, 0)
    # (seed, epoch) are not merely added up.
    assert order(11, 1) != order(12, 0)


def test_epochs_leave_the_global_generator_alone() -> None:
    values, offsets = jagged([[1, 2, 3]] * 5)
    batches = TrainingBatches(values, offsets, batch_size=2, max_length=5, seed=0)
    before = torch.get_rng_state()
    first = [batch.users.tolist() for batch in batches.epoch(0)]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(123)
    assert [batch.users.tolist() for batch in batches.epoch(0)] == first


@settings(deadline=None, max_examples=40)
@given(
    histories=st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=9), min_size=1, max_size=9),
    part=st.sampled_from(["valid", "test"]),
    batch_size=st.integers(1, 5),
    max_length=st.integers(1, 10),
    data=st.data(),
)
def test_evaluation_batches(
    histories: list[list[int]],
    part: str,
    batch_size: int,
    max_length: int,
    data: st.DataObject,
) -> None:
    split = Split(load(histories))
    encoded = [split.data.items.encode(h).tolist() for h in histories]
    subset = data.draw(
        st.none() | st.lists(st.integers(0, len(histories) - 1), max_size=8), label="users"
    )
    batches = EvaluationBatches(
        split,
        part,  # type: ignore[arg-type]
        batch_size=batch_size,
        max_length=max_length,
        users=None if subset is None else torch.tensor(subset, dtype=torch.int64),
    )
    from_end = 2 if part == "valid" else 1
    seen, inputs, targets, users = [], [], [], []
    for batch in batches:
        assert batch.users.numel() <= batch_size
        inputs += rows(batch.item_ids, batch.offsets)
        seen += rows(batch.seen_values, batch.seen_offsets)
        targets += batch.targets.tolist()
        users += batch.users.tolist()
    expected = list(range(len(histories))) if subset is None else subset
    assert users == expected
    assert seen == [encoded[u][:-from_end] for u in expected]
    assert inputs == [encoded[u][:-from_end][-max_length:] for u in expected]
    assert targets == [encoded[u][-from_end] for u in expected]
    assert len(batches) == -(-len(expected) // batch_size)


def test_batches_move_between_devices() -> None:
    values, offsets = jagged([[1, 2, 3]])
    batch = next(TrainingBatches(values, offsets, batch_size=2, max_length=5, seed=0).epoch(0))
    assert isinstance(batch.to("meta"), Batch)
    assert all(tensor.device.type == "meta" for tensor in batch.to("meta"))
    chunk = next(iter(EvaluationBatches(Split(load([[1, 2, 3]])), "test", batch_size=1,
                                        max_length=5)))  # fmt: skip
    assert all(tensor.device.type == "meta" for tensor in chunk.to(torch.device("meta")))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("supervision", ["prefix", "all"])
def test_a_gpu_gives_the_same_batches(supervision: str) -> None:
    values, offsets = jagged([list(range(1, 2 + n % 7)) for n in range(1, 60)])
    epochs = [
        list(
            TrainingBatches(
                values,
                offsets,
                supervision=supervision,  # type: ignore[arg-type]
                batch_size=8,
                max_length=4,
                seed=1,
                device=device,
            ).epoch(0)
        )
        for device in ("cpu", "cuda")
    ]
    for ours, theirs in zip(*epochs, strict=True):
        assert all(torch.equal(a, b.cpu()) for a, b in zip(ours, theirs, strict=True))


def test_pack() -> None:
    values, offsets = pack([[1, 2, 3], [4], [5, 6]], max_length=2)
    assert values.tolist() == [2, 3, 4, 5, 6]
    assert offsets.tolist() == [0, 2, 3, 5]
    assert values.dtype == offsets.dtype == torch.int64
    values, offsets = pack([], max_length=2)
    assert values.tolist() == []
    assert offsets.tolist() == [0]


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([[1], []], r"sequences\[1\] is empty"),
        ([[1, 0]], r"sequences\[0\] holds 0"),
        ([["a"]], r"sequences\[0\] holds 'a'"),
        ([[1.0]], r"sequences\[0\] holds 1\.0"),
    ],
)
def test_pack_refuses(sequences: list[list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        pack(sequences, max_length=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be an int of at least 1"),
        ({"batch_size": 2.5}, r"batch_size=2\.5 must be"),
        ({"max_length": 0}, "max_length=0 must be"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"supervision": "last"}, "supervision='last' must be 'prefix' or 'all' or 'cloze' or"),
        ({"window_targets": 0}, "window_targets=0 must be"),
    ],
)
def test_training_batches_refuse(changes: dict[str, object], message: str) -> None:
    values, offsets = jagged([[1, 2, 3]])
    arguments: dict[str, object] = {"batch_size": 2, "max_length": 5, "seed": 0}
    with pytest.raises(ValueError, match=message):
        TrainingBatches(values, offsets, **{**arguments, **changes})  # type: ignore[arg-type]


def test_epoch_refuses_at_once() -> None:
    values, offsets = jagged([[1, 2, 3]])
    batches = TrainingBatches(values, offsets, batch_size=1, max_length=5, seed=0)
    with pytest.raises(ValueError, match="e=-1"):
        batches.epoch(-1)
    with pytest.raises(ValueError, match=r"start=3 must be in 0\.\.2"):
        batches.epoch(0, 3)


def test_evaluation_batches_refuse() -> None:
    split = Split(load([[1, 2, 3]]))
    with pytest.raises(DataError, match=r"user index 1 is outside 0\.\.0"):
        EvaluationBatches(split, "test", batch_size=1, max_length=1, users=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"torch\.nonzero"):
        EvaluationBatches(split, "test", batch_size=1, max_length=1, users=torch.tensor([True]))
    with pytest.raises(ValueError, match="part='train'"):
        EvaluationBatches(split, "train", batch_size=1, max_length=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_length=0"):
        EvaluationBatches(split, "test", batch_size=1, max_length=0)
