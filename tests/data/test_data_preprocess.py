"""Filters and splits against plain Python loops."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adarec_fast.data import (
    DataError,
    InteractionData,
    PlantedLabels,
    Split,
    Vocabulary,
    deduplicate,
    drop_short,
    inspect,
    k_core,
    load,
    synthetic,
    truncate_histories,
)
from adarec_fast.data.cuts import Cuts
from adarec_fast.data.preprocess import owners_of, select_interactions, select_users

HISTORIES = st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=12), min_size=1, max_size=12)


def as_dict(data: InteractionData) -> dict[object, list[object]]:
    """External ids: user to history."""
    return {
        data.users.decode([u])[0]: data.items.decode(data.sequence(u))
        for u in range(data.num_users)
    }


@settings(deadline=None, max_examples=40)
@given(histories=HISTORIES)
def test_deduplicate(histories: list[list[int]]) -> None:
    data = load(histories)
    consecutive = as_dict(deduplicate(data, "consecutive"))
    every = as_dict(deduplicate(data, "all"))
    for user, history in enumerate(histories):
        expected = [x for i, x in enumerate(history) if i == 0 or x != history[i - 1]]
        assert consecutive[user] == expected
        assert every[user] == list(dict.fromkeys(history))


@settings(deadline=None, max_examples=40)
@given(histories=HISTORIES, k=st.integers(0, 5))
def test_k_core(histories: list[list[int]], k: int) -> None:
    left = dict(enumerate(histories))
    while True:
        counts = Counter(x for history in left.values() for x in history)
        smaller = {u: [x for x in h if counts[x] >= k] for u, h in left.items()}
        smaller = {u: h for u, h in smaller.items() if len(h) >= max(k, 1)}
        if smaller == left:
            break
        left = smaller
    data = load(histories)
    if not left:
        with pytest.raises(DataError, match=f"k_core={k} leaves nothing"):
            k_core(data, k)
        return
    core = k_core(data, k)
    assert as_dict(core) == left
    assert core.items.ids == sorted({x for h in left.values() for x in h})


@settings(deadline=None, max_examples=30)
@given(
    histories=st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=10),
    least=st.integers(1, 6),
)
def test_min_length(histories: list[list[int]], least: int) -> None:
    expected = {u: h for u, h in enumerate(histories) if len(h) >= least}
    if not expected:
        with pytest.raises(DataError, match=f"all {len(histories)} users have fewer than"):
            load(histories, min_length=least)
        return
    data = load(histories, min_length=least)
    assert as_dict(data) == expected
    assert data.report is not None
    assert data.report.num_dropped_short == len(histories) - len(expected)
    assert data.report.num_read == sum(map(len, histories))


def test_dropped_users_are_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    data = load([[1, 2], [1, 2, 3], [4]])
    assert data.num_users == 1
    assert data.items.ids == [1, 2, 3]
    assert "2 of 3 users have fewer than 3 items and were dropped" in caplog.text
    caplog.clear()
    load([[1, 2, 3]])
    assert not caplog.text


def test_report_counts_every_filter() -> None:
    histories = [[1, 1, 2, 3], [1, 2, 2, 3], [1, 2], [9, 1, 8, 7]]
    report = load(histories, deduplicate="consecutive", k_core=2).report
    assert report is not None
    assert report.num_duplicates == 2
    assert report.num_k_core_users == 1
    assert report.num_k_core_items == 3
    assert report.num_dropped_short == 1


NAMED = st.dictionaries(
    st.integers(0, 9), st.lists(st.integers(0, 5), min_size=1, max_size=7), min_size=1, max_size=9
)


@settings(deadline=None, max_examples=60)
@given(histories=NAMED, k=st.integers(0, 3), least=st.integers(1, 4), how=st.sampled_from(
    [None, "consecutive", "all"]))  # fmt: skip
def test_filters_hold_together(
    histories: dict[int, list[int]], k: int, least: int, how: Any
) -> None:
    """Against dropping one thing at a time until nothing is left to drop."""
    left = {user: list(items) for user, items in histories.items()}
    while True:
        before = {user: list(items) for user, items in left.items()}
        for user, items in left.items():
            if how == "all":
                left[user] = list(dict.fromkeys(items))
            elif how == "consecutive":
                left[user] = [x for i, x in enumerate(items) if i == 0 or items[i - 1] != x]
        often = Counter(x for items in left.values() for x in items)
        rare = {x for x, count in often.items() if count < k}
        left = {user: [x for x in items if x not in rare] for user, items in left.items()}
        left = {user: items for user, items in left.items() if len(items) >= max(k, least, 1)}
        if left == before:
            break
    counts = [len(histories) - len(left), len({x for h in histories.values() for x in h})]
    if not left:
        with pytest.raises(DataError, match=r"leaves nothing|fewer than"):
            load(histories, k_core=k, min_length=least, deduplicate=how)
        return
    data = load(histories, k_core=k, min_length=least, deduplicate=how)
    assert as_dict(data) == left
    report = data.report
    assert report is not None
    assert report.num_k_core_users + report.num_dropped_short == counts[0]
    assert report.num_k_core_items + report.num_lost_items == counts[1] - data.num_items


def test_items_lost_with_short_users_are_counted() -> None:
    histories = {"a": [1, 2, 3], "b": [1, 2, 3], "c": [8, 9], "d": [8, 9, 1]}
    data = load(histories, k_core=2, min_length=3)
    assert as_dict(data) == {"a": [1, 2, 3], "b": [1, 2, 3]}
    report = load({"a": [1, 2, 3], "x": [50, 51], "y": [52, 1]}, truncate=1).report
    assert report is not None
    assert (report.num_dropped_short, report.num_lost_items, report.num_cut) == (2, 3, 0)
    report = load([[1, 2, 3, 4, 5]], truncate=1).report
    assert report is not None
    assert report.num_cut == 2


def test_truncate_keeps_targets_and_catalogue() -> None:
    histories = [list(range(1, 21)), [1, 2, 3]]
    whole, cut = load(histories), load(histories, truncate=5)
    assert cut.sequence(0).tolist() == list(range(14, 21))
    assert cut.sequence(1).tolist() == [1, 2, 3]
    assert cut.items == whole.items
    for part in ("valid", "test"):
        assert torch.equal(Split(cut).targets(part), Split(whole).targets(part))
    assert Split(cut).inputs("train")[1].diff().tolist() == [5, 1]
    assert torch.equal(truncate_histories(whole, 100).values, whole.values)


def test_filters_carry_planted_labels_along() -> None:
    data = synthetic(num_users=80, num_items=60, num_themes=2, subthemes_per_theme=2)
    core = k_core(data, 6)
    assert core.labels is not None
    assert 0 < core.num_items < data.num_items
    for index, name in enumerate(core.items.ids, start=1):
        assert name.startswith(f"t{int(core.labels.item_theme[index])}-")
    assert int(core.labels.item_theme[0]) == -1
    assert core.labels.user_theme.numel() == core.num_users
    kept = data.users.encode(core.users.ids)
    assert data.labels is not None
    assert torch.equal(core.labels.user_subtheme, data.labels.user_subtheme[kept])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k_core": -1}, "k_core=-1 must be"),
        ({"k_core": 2.0}, r"k_core=2\.0 must be"),
        ({"min_length": 0}, "min_length=0 must be"),
        ({"truncate": 0}, "truncate=0 must be"),
        ({"deduplicate": "some"}, "deduplicate='some' must be 'consecutive', 'all'"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load([[1, 2, 3]], **arguments)


@settings(deadline=None, max_examples=30)
@given(histories=HISTORIES)
def test_split_against_slices(histories: list[list[int]]) -> None:
    split = Split(load(histories))
    encoded = [split.data.items.encode(h).tolist() for h in histories]
    for part, stop in (("train", -2), ("valid", -2), ("test", -1)):
        for values, offsets in (split.inputs(part), split.seen(part)):
            got = [
                values[a:b].tolist()
                for a, b in zip(offsets.tolist(), offsets.tolist()[1:], strict=False)
            ]
            assert got == [h[:stop] for h in encoded]
    assert split.targets("valid").tolist() == [h[-2] for h in encoded]
    assert split.targets("test").tolist() == [h[-1] for h in encoded]
    assert split.sparse_users(4).tolist() == [len(h) - 1 <= 4 for h in encoded]
    assert split.training_prefixes() == sum(len(h) - 3 for h in encoded)
    assert split.repeated_targets("test").tolist() == [h[-1] in h[:-1] for h in encoded]


def test_split_refuses_short_histories_and_unknown_parts() -> None:
    with pytest.raises(DataError, match=r"user 'b' has 2 items; leave-one-out needs at least 3"):
        Split(load({"a": [1, 2, 3], "b": [1, 2]}, min_length=1))
    split = Split(load([[1, 2, 3]]))
    with pytest.raises(ValueError, match="part='dev' must be one of 'train', 'valid', 'test'"):
        split.inputs("dev")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="part='train' must be one of 'valid', 'test'"):
        split.targets("train")  # type: ignore[arg-type]


def test_inspect() -> None:
    data = load({"a": ["x", "y", "x"], "b": ["x", "z", "y", "w"], "c": list("xyzwvuts")})
    summary = inspect(data, top=2)
    json.dumps(summary)
    assert summary["users"] == 3
    assert summary["items"] == 8
    assert summary["interactions"] == 15
    assert summary["density"] == 15 / 24
    assert summary["items_untouched"] == 0
    assert summary["length"]["mean"] == 5
    assert summary["length"]["median"] == 4
    assert (summary["length"]["min"], summary["length"]["max"]) == (3, 8)
    assert summary["training_prefixes"] == 0 + 1 + 5
    assert summary["sparse_share"] == pytest.approx(2 / 3)
    assert summary["repeated_test_targets"] == pytest.approx(1 / 3)
    assert summary["top_items"] == [{"item": "x", "count": 4}, {"item": "y", "count": 3}]
    assert summary["report"]["format"] == "lists"


def flat(**changes: object) -> InteractionData:
    arguments: dict[str, object] = {
        "values": torch.tensor([1, 2, 3, 1]),
        "offsets": torch.tensor([0, 3, 4]),
        "items": Vocabulary([1, 2, 3], 1),
        "users": Vocabulary([7, 8], 0),
        "name": "flat",
    }
    return InteractionData.from_flat(**{**arguments, **changes})  # type: ignore[arg-type]


def test_from_flat_and_sequence() -> None:
    data = flat()
    assert (data.num_users, data.num_items, data.num_interactions) == (2, 3, 4)
    assert data.lengths.tolist() == [3, 1]
    assert data.sequence(1).tolist() == [1]
    with pytest.raises(DataError, match=r"user_index=2 is outside 0\.\.1"):
        data.sequence(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": torch.tensor([1.0])}, "values must be a 1-D int64 tensor, got torch.float32"),
        ({"values": [1, 2]}, "values must be a 1-D int64 tensor, got list"),
        ({"offsets": torch.tensor([[0, 4]])}, r"offsets must be .* \[1, 2\]"),
        ({"offsets": torch.tensor([0, 4])}, "2 entries for 2 users; it must have 3"),
        ({"offsets": torch.tensor([0, 3, 5])}, r"run from 0 to 5; .* len\(values\) = 4"),
        ({"offsets": torch.tensor([0, 5, 4])}, "offsets decrease at user index 1"),
        (
            {"values": torch.tensor([1, 4, 3, 1])},
            r"item index 4 at position 1 is outside the catalogue 1\.\.3",
        ),
        ({"values": torch.tensor([1, 2, 3, 0])}, "item index 0 at position 3"),
        ({"items": Vocabulary([1, 2, 3], 0)}, "items.first=0"),
        (
            {"labels": PlantedLabels(*[torch.zeros(4, dtype=torch.int64)] * 4)},
            r"labels.user_theme is torch.int64 \[4\]; it must be torch.int64 \[2\]",
        ),
    ],
)
def test_from_flat_validates(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        flat(**changes)


def test_drop_short_returns_its_count() -> None:
    data, dropped = drop_short(flat(), 2)
    assert dropped == 1
    assert data.users.ids == [7]


@pytest.mark.parametrize("cut", [False, True])
def test_whole_histories_are_those_of_their_interactions(cut: bool) -> None:
    data = synthetic(num_users=30, num_items=40, num_themes=2, subthemes_per_theme=2, seed=1)
    if cut:
        before = (data.lengths - 2).clamp(min=0)
        data = data.replace(cuts=Cuts.at("time", before, before + 1, {}))
    chosen = torch.rand(data.num_users, generator=torch.Generator().manual_seed(0)) < 0.4
    found = select_users(data, chosen)
    wanted = select_interactions(data, chosen[owners_of(data)])
    assert 0 < found.num_users < data.num_users
    assert (found.users.ids, found.items.ids) == (wanted.users.ids, wanted.items.ids)
    for name in ("values", "offsets"):
        assert torch.equal(getattr(found, name), getattr(wanted, name))
    assert (found.cuts is None) == (not cut)
    if found.cuts is not None and wanted.cuts is not None:
        for name in ("valid", "test", "lost", "unseen"):
            assert torch.equal(getattr(found.cuts, name), getattr(wanted.cuts, name))
