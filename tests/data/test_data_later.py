"""Interactions that came after those of a run: as a test of it, and as something to go on with."""

from __future__ import annotations

import pytest
import torch

from adarec_fast.data import DataError, InteractionData, Split, inspect, load
from adarec_fast.data.extend import extended, followed, new_held_out
from adarec_fast.data.readers import train_on_all

KNOWN = {"a": ["x", "y", "z"], "b": ["y", "y", "x"], "c": ["z", "x", "y"]}
LATER = {
    "a": ["x", "new"],  # asked for x
    "b": ["new", "x"],  # asked for what nobody knows
    "n": ["new", "y", "z"],  # y is its first known one: asked for z
    "m": ["x"],  # nothing behind its first
    "o": ["new", "newer"],  # nothing known
}


def asked(data: InteractionData) -> dict[object, tuple[list[object], object]]:
    split = Split(data)
    values, offsets = split.inputs("test")
    targets = split.targets("test")
    return {
        data.users.ids[u]: (
            data.items.decode(values[offsets[u] : offsets[u + 1]]),
            data.items.decode([int(targets[u])])[0] if targets[u] else None,
        )
        for u in split.users("test").tolist()
    }


def test_later_ones_by_hand() -> None:
    known, more = load(KNOWN), load(LATER, min_length=1)
    found = followed(known, more)
    assert found.items == known.items
    assert asked(found) == {
        "a": (["x", "y", "z"], "x"), "b": (["y", "y", "x"], None), "n": (["y"], "z"),
    }  # fmt: skip
    assert found.cuts is not None
    assert found.cuts.facts == {
        "interactions": 10, "known_users": 2, "new_users": 3, "new_items": 2,
        "test": {"users": 3, "cold": 2, "unseen_targets": 1, "unseen_items": 2,
                 "unseen_interactions": 5},
    }  # fmt: skip
    assert not Split(found).users("valid").numel()
    assert inspect(found)["split"]["in_words"] == "what came later is held out; test: 3 users"
    items, offsets, unseen = Split(found).relevant("test")
    assert found.items.decode(items) == ["x", "x", "z"]
    assert offsets.diff().tolist() == [1, 1, 1, 0]  # a, b, n, m
    assert unseen.tolist() == [1, 1, 0, 0]


def test_a_whole_log_is_refused() -> None:
    known = load(KNOWN)
    whole = load({user: [*items, "x"] for user, items in KNOWN.items()})
    with pytest.raises(DataError, match="3 of 3 known users begin there as they do"):
        followed(known, whole)
    with pytest.raises(DataError, match="give only what came later"):
        new_held_out(known, extended(known, whole), everything=True)
    # One who does the same again is no log.
    assert asked(followed(known, load({"a": KNOWN["a"], "b": ["z"], "c": ["z"]}, min_length=1)))
    with pytest.raises(DataError, match="nobody to ask: none of 1 users"):
        followed(known, load({"m": ["x"]}, min_length=1))
    with pytest.raises(DataError, match="nobody to ask"):
        followed(known, load({"m": ["q", "r"]}, min_length=1))


def test_only_what_is_new_is_held_out() -> None:
    known = load(KNOWN)
    grown = extended(known, load({"a": ["x", "w", "y"], "b": ["z"], "n": ["w", "x"], "m": ["w"]},
                                 min_length=1))  # fmt: skip
    data = new_held_out(known, grown, everything=False)
    assert data.items.ids == ["x", "y", "z", "w"]
    split = Split(data)
    names = dict(zip(data.users.ids, range(5), strict=True))
    assert asked(data) == {
        "a": (["x", "y", "z", "x", "w"], "y"), "b": (["y", "y", "x"], "z"), "n": (["w"], "x"),
    }  # fmt: skip
    assert split.users("valid").tolist() == [names["a"]]
    assert data.items.decode(split.targets("valid")[:1]) == ["w"]
    # c has nothing new: it is counted, and no step is taken on it.
    counted, stepped = (offsets.diff().tolist() for _, offsets in
                        (split.inputs("train"), split.stepped_on()))  # fmt: skip
    assert counted == [4, 3, 3, 1, 1]
    assert stepped == [4, 3, 0, 1, 1]
    everything = new_held_out(known, grown, everything=True)
    assert not Split(everything).holds_out
    assert Split(everything).stepped_on()[1].diff().tolist() == [6, 4, 0, 2, 1]
    with pytest.raises(DataError, match="valid: nobody has enough new interactions"):
        new_held_out(known, extended(known, load({"b": ["z"]}, min_length=1)), everything=False)


def test_everything() -> None:
    data = train_on_all(load(KNOWN))
    split = Split(data)
    assert torch.equal(split.inputs("train")[0], data.values)
    assert not split.users("valid").numel()
    assert not split.users("test").numel()
    assert not split.targets("test").any()
