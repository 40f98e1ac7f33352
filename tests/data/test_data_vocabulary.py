"""Vocabularies: round trips, look-ups across types, and what they refuse."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adarec_fast.data import DataError, Vocabulary

IDS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=30),
    st.lists(st.text(max_size=8), unique=True, max_size=30),
)


@settings(deadline=None, max_examples=50)
@given(ids=IDS, first=st.integers(0, 5))
def test_round_trips(ids: list[int | str], first: int) -> None:
    vocabulary = Vocabulary(ids, first)
    assert len(vocabulary) == len(ids)
    assert vocabulary.ids == ids
    indices = vocabulary.encode(ids)
    assert indices.dtype == np.int64
    assert indices.tolist() == list(range(first, first + len(ids)))
    assert vocabulary.decode(indices[::-1]) == ids[::-1]
    assert all(x in vocabulary for x in ids)
    again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert again.ids == ids
    assert again.fingerprint() == Vocabulary(ids, first).fingerprint()
    assert again == vocabulary


def test_an_empty_vocabulary_keeps_its_kind() -> None:
    for ids in ([], np.zeros(0, dtype=np.int64)):
        vocabulary = Vocabulary(ids, 1)
        assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary


def test_kinds() -> None:
    assert Vocabulary([3, 1], 1).kind == "int"
    assert Vocabulary(["3", "1"], 1).kind == "str"
    mixed = Vocabulary([3, "a"], 1)
    assert mixed.kind == "str"
    assert mixed.ids == ["3", "a"]
    assert Vocabulary(np.array([3, 1], dtype=np.uint8), 1).ids == [3, 1]


def test_lookups_are_lenient_about_the_type_only() -> None:
    integers = Vocabulary([12, -7], 1)
    assert integers.encode(["12", -7, np.int32(12), " 12 "]).tolist() == [1, 2, 1, 1]
    assert "12" in integers
    assert "12x" not in integers
    assert 12.0 not in integers
    assert 10**30 not in integers
    strings = Vocabulary(["12", "x"], 0)
    assert strings.encode([12, "x"]).tolist() == [0, 1]
    assert 12 in strings
    assert None not in strings
    assert integers.encode(np.array([-7, 12])).tolist() == [2, 1]
    assert integers.encode([]).tolist() == []


def test_decode_takes_tensors_and_arrays() -> None:
    vocabulary = Vocabulary(["a", "b"], 1)
    assert vocabulary.decode(torch.tensor([2, 1])) == ["b", "a"]
    assert vocabulary.decode(np.array([1], dtype=np.int32)) == ["a"]


def test_equality_and_fingerprint_see_order_kind_and_first() -> None:
    base = Vocabulary([1, 2], 1)
    others = [Vocabulary([2, 1], 1), Vocabulary(["1", "2"], 1), Vocabulary([1, 2], 0)]
    assert base == Vocabulary([1, 2], 1)
    assert hash(base) == hash(Vocabulary([1, 2], 1))
    for other in others:
        assert base != other
        assert base.fingerprint() != other.fingerprint()
    assert Vocabulary(["ab", "c"], 0).fingerprint() != Vocabulary(["a", "bc"], 0).fingerprint()


def test_take() -> None:
    for ids in ([10, 20, 30], ["x", "y", "z"]):
        taken = Vocabulary(ids, 1).take(np.array([3, 1]))
        assert taken.ids == [ids[2], ids[0]]
        assert taken.first == 1


@pytest.mark.parametrize(
    ("ids", "first", "message"),
    [
        ([1, 2, 1], 1, "id 1 occurs twice"),
        (["a", "b", "a"], 1, "id 'a' occurs twice"),
        ([1, 2.5], 1, r"ids: 2.5 \(number 2\) is a float"),
        ([True], 1, "True .* is a bool"),
        ([2**63], 1, "9223372036854775808 does not fit"),
        (np.array([2**63], dtype=np.uint64), 1, "9223372036854775808 does not fit"),
        ([1], -1, "first=-1"),
        (["a", "x\ud800"], 1, r"an id holds '.ud800', which UTF-8 cannot express"),
    ],
)
def test_bad_construction(ids: list[int], first: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Vocabulary(ids, first)


def test_unknown_ids_are_named_with_a_hint() -> None:
    with pytest.raises(DataError, match=r"unknown id 'shos' .*close to it: 'shoes'"):
        Vocabulary(["shoes", "hat"], 1).encode(["hat", "shos"])
    with pytest.raises(DataError, match=r"unknown id 'qq' .*ids look like 'shoes'"):
        Vocabulary(["shoes", "hat"], 1).encode(["qq"])
    with pytest.raises(DataError, match=r"unknown id 9 \(2 ids are known; .* from 3 to 5"):
        Vocabulary([5, 3], 1).encode([3, 9])
    with pytest.raises(DataError, match="unknown id 'x'"):
        Vocabulary([5, 3], 1).encode(["x"])
    with pytest.raises(DataError, match=r"unknown id 1\.5"):
        Vocabulary([5, 3], 1).encode([1.5])  # type: ignore[list-item]
    with pytest.raises(DataError, match="vocabulary is empty"):
        Vocabulary([], 1).encode(["x"])
    with pytest.raises(DataError, match="not one str"):
        Vocabulary(["ab"], 1).encode("ab")


@pytest.mark.parametrize("index", [0, 3, -1])
def test_decode_outside(index: int) -> None:
    with pytest.raises(DataError, match=rf"index {index} is outside the vocabulary.*1\.\.2"):
        Vocabulary([5, 3], 1).decode([index])


def test_decode_wants_integers() -> None:
    with pytest.raises(DataError, match="float32"):
        Vocabulary([5, 3], 1).decode(torch.tensor([1.0]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must be a JSON object"),
        ({"kind": "int", "ids": []}, "keys kind, first, ids"),
        ({"kind": "float", "first": 0, "ids": []}, "kind='float'"),
        ({"kind": "int", "first": 0, "ids": "abc"}, "ids of a vocabulary must be a list"),
        ({"kind": "int", "first": 0, "ids": [1, "2"]}, "id '2' in a vocabulary of kind 'int'"),
        ({"kind": "str", "first": 0, "ids": [1]}, "id 1 in a vocabulary of kind 'str'"),
        ({"kind": "int", "first": 0, "ids": [True]}, "id True"),
        ({"kind": "int", "first": "0", "ids": [1]}, "first='0'"),
        ({"kind": "int", "first": 0, "ids": [1, 1]}, "occurs twice"),
        ({"kind": "int", "first": 0, "ids": [2**70]}, "does not fit"),
    ],
)
def test_from_json_validates(value: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Vocabulary.from_json(value)


def test_a_typo_in_a_large_catalogue_costs_no_minutes() -> None:
    vocabulary = Vocabulary([f"item{n:06d}" for n in range(300_000)], 1)
    begin = time.process_time()
    with pytest.raises(DataError, match="unknown id"):
        vocabulary.encode(["item00001"])
    assert time.process_time() - begin < 5


def test_find_gives_minus_one_for_what_is_unknown() -> None:
    numbers, names = Vocabulary([7, 3, 5], first=1), Vocabulary(["a", "12"], first=0)
    queries = [5, "7", 4, "x", 2**70, "9" * 5000, " 3 "]
    assert numbers.find(queries).tolist() == [3, 1, -1, -1, -1, -1, 2]
    assert names.find(["a", 12, "\ud800", 3]).tolist() == [0, 1, -1, -1]
    assert numbers.find([]).tolist() == names.find([]).tolist() == []
    with pytest.raises(DataError, match="not one str"):
        names.find("a")
    with pytest.raises(DataError, match="unknown id '99"):
        numbers.encode(["9" * 5000])
