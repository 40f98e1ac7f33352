"""Jagged batches: packing and unpacking, masks, and what bad input is told."""

from __future__ import annotations

import pytest
import torch
from helpers import Batch, batches
from hypothesis import given
from hypothesis import strategies as st

from adarec_fast import ragged


def rows_of(batch: Batch) -> list[list[int]]:
    """Token numbers, sequence by sequence."""
    starts = batch.offsets().tolist()
    return [list(range(starts[i], starts[i + 1])) for i in range(batch.num_sequences)]


@given(batches())
def test_owners_and_positions(batch: Batch) -> None:
    offsets = batch.offsets()
    owner = ragged.sequence_ids(offsets, batch.num_tokens).tolist()
    place = ragged.positions(offsets, batch.num_tokens).tolist()
    for sequence, row in enumerate(rows_of(batch)):
        assert [owner[token] for token in row] == [sequence] * len(row)
        assert [place[token] for token in row] == list(range(len(row)))
    assert owner[sum(batch.lengths) :] == [batch.num_sequences] * batch.capacity
    assert ragged.lengths(offsets).tolist() == list(batch.lengths)
    assert ragged.last_tokens(offsets).tolist() == [row[-1] for row in rows_of(batch)]


@given(batches(), st.integers(0, 2))
def test_padding_and_back(batch: Batch, dim: int) -> None:
    offsets = batch.offsets()
    shape = [2, 3]
    shape.insert(dim, batch.num_tokens)
    values = torch.randn(shape, generator=batch.generator())
    real = values.movedim(dim, 0)
    real[sum(batch.lengths) :] = float("nan")
    padded = ragged.to_padded(values, offsets, batch.max_length, dim=dim)
    assert padded.shape[dim : dim + 2] == (batch.num_sequences, batch.max_length)
    front = padded.movedim((dim, dim + 1), (0, 1))
    for sequence, row in enumerate(rows_of(batch)):
        assert torch.equal(front[sequence, : len(row)], real[row])
        assert not front[sequence, len(row) :].any()
    back = ragged.from_padded(padded, offsets, batch.num_tokens, dim=dim)
    assert back.shape == values.shape
    back = back.movedim(dim, 0)
    assert torch.equal(back[: sum(batch.lengths)], real[: sum(batch.lengths)])
    assert not back[sum(batch.lengths) :].any()


@given(batches())
def test_masks(batch: Batch) -> None:
    offsets, depth = batch.offsets(), batch.depth()
    mask = ragged.padding_mask(offsets, batch.max_length)
    assert mask.sum(1).tolist() == list(batch.lengths)
    assert not (mask[:, 1:] & ~mask[:, :-1]).any()
    assert torch.equal(ragged.reached_levels(depth, batch.levels), batch.reached())
    x = torch.full((batch.levels, batch.num_tokens, 2), float("nan"))
    x = torch.where(batch.computed()[..., None], 1.0, x)
    assert torch.equal(ragged.mask_levels(x, offsets, depth)[..., 0], batch.computed().float())
    ones = torch.ones_like(x)
    every = ragged.mask_levels(ones, offsets, None)[..., 0]
    assert torch.equal(every, batch.real().float().expand_as(every))


@given(batches())
def test_rows_spread_to_their_tokens(batch: Batch) -> None:
    rows = torch.arange(1.0, batch.num_sequences + 1)[None, :, None].expand(2, -1, 3)
    spread = ragged.row_of_tokens(rows, batch.offsets(), batch.num_tokens, dim=1)
    wanted = [i + 1.0 for i, row in enumerate(rows_of(batch)) for _ in row]
    wanted += [0.0] * batch.capacity
    assert torch.equal(spread, torch.tensor(wanted)[None, :, None].expand(2, -1, 3))


@given(batches(), st.booleans())
def test_padded_ids_are_packed(batch: Batch, on_the_left: bool) -> None:
    ids = torch.zeros(batch.num_sequences, batch.max_length, dtype=torch.int64)
    flat: list[int] = []
    for sequence, length in enumerate(batch.lengths):
        history = [100 * sequence + place + 1 for place in range(length)]
        flat += history
        start = batch.max_length - length if on_the_left else 0
        ids[sequence, start : start + length] = torch.tensor(history)
    for lengths in (None, torch.tensor(batch.lengths, dtype=torch.int64)):
        values, offsets = ragged.from_padded_ids(ids, lengths)
        assert values.tolist() == flat
        assert torch.equal(offsets, batch.offsets())


@pytest.mark.parametrize(
    ("ids", "lengths", "message"),
    [
        (torch.ones(2, 3), None, r"item_ids must be int64 \[B, L\].*float32"),
        (torch.ones(3, dtype=torch.int64), None, r"item_ids must be int64 \[B, L\].*\[3\]"),
        (torch.tensor([[1, 2], [0, 0]]), None, "row 1 has no item"),
        (torch.tensor([[1, 2, 3], [1, 0, 3]]), None, r"row 1 has padding \(0\) between items"),
        (
            torch.tensor([[1, 2, 0]]),
            torch.tensor([3]),
            r"lengths\[0\]=3 disagrees with the padding: row 0 has 2 items",
        ),
        (torch.tensor([[1, 2]]), torch.tensor([2, 2]), r"lengths must be int64 \[1\]"),
        (torch.tensor([[1, 2]]), torch.tensor([2.0]), r"lengths must be int64 \[1\]"),
    ],
)
def test_bad_padding(ids: torch.Tensor, lengths: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ragged.from_padded_ids(ids, lengths)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (torch.tensor([0.0, 2.0]), "offsets must be int64"),
        (torch.tensor([[0, 2]]), r"offsets must be int64 \[B\+1\]"),
        (torch.tensor([], dtype=torch.int64), r"offsets must be int64 \[B\+1\]"),
        (torch.tensor([1, 2]), "offsets must begin at 0, got 1"),
        (torch.tensor([0, 2, 1]), "sequence 1 has length -1"),
        (torch.tensor([0, 2, 2]), "sequence 1 has length 0; each needs at least one item"),
        (torch.tensor([0, 2, 9]), "offsets end at 9, beyond the 6 tokens"),
        (torch.tensor([0, 5, 6]), "a sequence has 5 items, more than max_length=4"),
    ],
)
def test_bad_offsets(offsets: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ragged.check_offsets(offsets, 6, max_length=4)


@given(batches())
def test_good_offsets(batch: Batch) -> None:
    ragged.check_offsets(batch.offsets(), batch.num_tokens, max_length=batch.max_length)


@given(batches(), st.booleans(), st.integers(1, 6))
def test_packing_in_place(batch: Batch, on_the_left: bool, limit: int) -> None:
    ids = torch.zeros(batch.num_sequences, batch.max_length, dtype=torch.int64)
    for row, length in enumerate(batch.lengths):
        items = torch.arange(1, length + 1)
        if on_the_left:
            ids[row, batch.max_length - length :] = items
        else:
            ids[row, :length] = items
    if batch.num_sequences:
        expected = ragged.keep_last(*ragged.from_padded_ids(ids), limit)
        found = ragged.packed_in_place(ids, limit)
        assert found.values.shape == (ids.numel(),)
        assert torch.equal(found.offsets, expected.offsets)
        assert torch.equal(found.values[: expected.values.shape[0]], expected.values)


@given(batches(), st.integers(1, 6), st.integers(0, 3))
def test_cutting_in_place(batch: Batch, limit: int, room: int) -> None:
    values, offsets = torch.arange(batch.num_tokens + room), batch.offsets()
    found = ragged.keep_last_in_place(values, offsets, limit)
    expected = ragged.keep_last(values, offsets, limit)
    assert found.values.shape == values.shape
    assert torch.equal(found.offsets, expected.offsets)
    assert torch.equal(found.values[: expected.values.shape[0]], expected.values)


@given(batches(), st.data())
def test_parts_of_a_batch_joined_with_another(batch: Batch, data: st.DataObject) -> None:
    lists = rows_of(batch)
    whole = ragged.Jagged(torch.arange(sum(batch.lengths)), batch.offsets())
    start = data.draw(st.integers(0, len(lists)))
    stop = data.draw(st.integers(start, len(lists)))
    if start < stop:
        part = ragged.rows(whole, start, stop)
        assert as_lists(part) == lists[start:stop]
        twice = ragged.joined(part, ragged.Jagged(-part.values, part.offsets))
        assert as_lists(twice) == [row + [-token for token in row] for row in lists[start:stop]]


def as_lists(jagged: ragged.Jagged) -> list[list[int]]:
    values, ends = jagged.values.tolist(), jagged.offsets.tolist()
    return [values[ends[i] : ends[i + 1]] for i in range(len(ends) - 1)]
