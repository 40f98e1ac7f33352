"""A split by global time: a few lines by hand, ties, new items and users, what is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars
import pytest
import torch

from adarec_fast.config import ConfigError, DataConfig
from adarec_fast.data import DataError, InteractionData, Split, TrainingBatches, inspect, load
from adarec_fast.data.configured import load_data

ROWS = """user,item,time
a,x,2025-01-01
a,y,2025-02-01
a,z,2025-11-01
a,x,2026-01-05
b,x,2025-03-01
b,w,2025-03-02
b,y,2025-12-31
b,x,2026-02-01
c,new,2026-01-01
c,x,2026-01-02
d,y,2025-10-05
d,new,2026-03-01
"""
CUT: dict[str, Any] = {"split": "time", "at": "2026-01-01", "valid_at": "2025-10-01"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "events.csv").write_text(ROWS)
    return tmp_path / "events.csv"


def part(data: InteractionData, name: Any) -> dict[str, tuple[list[str], str | None]]:
    """History and next item (None: not in the catalogue) of those who are asked."""
    split = Split(data)
    values, offsets = split.inputs(name)
    found = {}
    for user in split.users(name).tolist():
        target = int(split.targets(name)[user])
        found[data.users.ids[user]] = (
            data.items.decode(values[offsets[user] : offsets[user + 1]]),
            data.items.decode([target])[0] if target else None,
        )
    return found  # type: ignore[return-value]


def test_ten_lines_by_hand(file: Path) -> None:
    data = load(file, **CUT)
    # z and new come up after training: neither candidates, nor part of a history.
    assert data.items.ids == ["w", "x", "y"]
    values, offsets = Split(data).inputs("train")
    assert data.items.decode(values) == ["x", "y", "x", "w"]
    assert offsets.tolist() == [0, 2, 4, 4, 4]
    assert part(data, "valid") == {"a": (["x", "y"], None), "b": (["x", "w"], "y")}
    assert part(data, "test") == {
        "a": (["x", "y"], "x"), "b": (["x", "w", "y"], "x"), "d": (["y"], None),
    }  # fmt: skip
    assert data.cuts is not None
    assert data.cuts.facts == {
        "valid_at": "2025-10-01", "at": "2026-01-01", "interactions": [4, 3, 5],
        # d has nothing before the validation, c nothing before the test.
        "valid": {"users": 2, "cold": 1, "unseen_targets": 1, "unseen_items": 1,
                  "unseen_interactions": 1},
        "test": {"users": 3, "cold": 1, "unseen_targets": 1, "unseen_items": 1,
                 "unseen_interactions": 2},
    }  # fmt: skip
    assert Split(data).cold_users("test") == 1
    assert Split(data).training_prefixes() == 2
    facts = inspect(data)["split"]
    assert facts["kind"] == "time"
    assert "3 users, 1 of them with a next item that training does not have" in facts["in_words"]


def test_however_the_moment_and_the_times_are_written(file: Path) -> None:
    expected = load(file, **CUT)
    frame = polars.read_csv(file, try_parse_dates=True)
    seconds = frame.with_columns(time=polars.col("time").cast(polars.Datetime).dt.epoch("s"))
    days = frame.with_columns(time=polars.col("time").dt.strftime("%Y%m%d").cast(int))
    apart = frame.with_columns(clock=polars.lit("00:00:00"))
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    for source, given in (
        (frame, {**CUT, "at": moment}),
        (seconds, CUT),
        (seconds, {**CUT, "at": int(moment.timestamp())}),
        (days, CUT),
        (days, {**CUT, "at": "20260101"}),
        (apart, {**CUT, "time": "time,clock"}),
        # Seven of twelve lie before the eighth, and four before the fifth.
        (frame, {**CUT, "at": 7.5 / 12, "valid_at": 0.4}),
    ):
        data = load(source, **given)
        assert data.cuts is not None
        assert torch.equal(data.values, expected.values)
        assert torch.equal(data.cuts.test, expected.cuts.test)  # type: ignore[union-attr]
        assert torch.equal(data.cuts.valid, expected.cuts.valid)  # type: ignore[union-attr]


def test_ties_at_the_cut_lie_behind_it() -> None:
    frame = {"user": list("aabbcc"), "item": list("xyxyxy"), "time": [1, 2, 1, 2, 1, 3]}
    data = load(polars.DataFrame(frame), split="time", at=3, valid_at=2)
    assert data.cuts is not None
    assert data.cuts.facts["interactions"] == [3, 2, 1]
    # A share that falls among equal times goes to the first of them.
    data = load(polars.DataFrame(frame), split="time", at=5.5 / 6, valid_at=4 / 6)
    assert data.cuts is not None
    assert data.cuts.facts["interactions"] == [3, 2, 1]


def test_validation_is_as_long_as_the_test(tmp_path: Path) -> None:
    frame = polars.DataFrame({
        "user": [0, 1] * 10, "item": [1, 2] * 10, "time": list(range(20))
    })  # fmt: skip
    data = load(frame, split="time", at=0.8)
    assert data.cuts is not None
    assert data.cuts.facts["interactions"] == [12, 4, 4]
    with pytest.raises(DataError, match=r"10 of 20 interactions lie behind at=10"):
        load(frame, split="time", at=0.5)


def test_filters_count_what_lies_before_the_test(file: Path) -> None:
    # x has two interactions before the test, and y three; those behind it do not count.
    data = load(file, **CUT, k_core=2)
    assert data.items.ids == ["x", "y"]
    assert data.users.ids == ["a", "b", "c"]  # d has one, c none before the test
    assert data.dropped is not None
    assert data.dropped.histories.users.ids == ["d"]
    assert part(data, "test") == {"a": (["x", "y"], "x"), "b": (["x", "y"], "x")}
    once = load(file, **CUT, deduplicate="all")
    assert part(once, "test") == {"d": (["y"], None)}
    assert once.report is not None
    assert once.report.num_duplicates == 2
    cut = load(file, **CUT, truncate=1)
    assert part(cut, "test")["b"] == (["w", "y"], "x")


def test_nothing_behind_a_cut_is_known_before_it(file: Path) -> None:
    """Other interactions behind the cuts leave every bit of what trains."""
    lines = ROWS.splitlines()
    other = [line for line in lines if "2026" not in line and "2025-1" not in line]
    other += ["a,y,2025-10-02", "a,q,2026-01-01", "e,y,2025-12-01", "e,x,2026-01-01"]
    file.with_name("other.csv").write_text("\n".join(other))
    first, second = (load(path, **CUT) for path in (file, file.with_name("other.csv")))
    assert first.items == second.items
    batches = [
        [*TrainingBatches(*Split(data).stepped_on(), batch_size=2, max_length=5, seed=0).epoch(0)]
        for data in (first, second)
    ]
    for one, two in zip(*batches, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"at": "2027-01-01"}, r"at='2027-01-01': the times run from 2025-01-01 to 2026-03-01, and "
                               r"no interaction would lie behind it"),
        ({"at": "2024-05-06"}, "no interaction would lie before it"),
        ({"at": "soon"}, "at: time 'soon' is not a number"),
        ({"at": None}, r"needs at=…"),
        ({"at": "2026-01-01", "valid_at": "2026-01-01"}, "valid_at=2026-01-01 must lie before"),
        ({"at": 0.9, "valid_at": 0.95}, "must lie before at="),
        ({"at": "2025-01-02", "valid_at": 1}, "valid_at=1: the times run from"),
        ({"split": "leave-one-out"}, r"at='2026-01-01' cuts at a time: say split='time'"),
        ({"split": "thyme"}, "split='thyme' must be one of"),
        ({"time": "file-order"}, "needs times, and there are none"),
        ({"at": True}, "must be a moment or a share"),
    ],
)  # fmt: skip
def test_what_is_refused(file: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(file, **{"split": "time", "at": "2026-01-01", **given})


def test_lists_and_counters_have_no_dates() -> None:
    with pytest.raises(DataError, match="lists: split='time' needs times"):
        load([[1, 2, 3]], split="time", at=0.5)
    frame = polars.DataFrame({"user": [1, 1, 1], "item": [1, 2, 3], "time": [1, 2, 3]})
    with pytest.raises(DataError, match="the times are none that can be told, such as 1"):
        load(frame, split="time", at="2026-01-01")
    with pytest.raises(DataError, match="nobody to ask in valid"):
        load(frame.with_columns(user=polars.Series([1, 2, 1])), split="time", at=3, valid_at=2)


def test_of_a_configuration(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"split=time needs at"):
        load_data({"data": str(file), "split": "time"})
    with pytest.raises(ConfigError, match=r"at=0\.8: cuts at a time; say split=time"):
        load_data({"at": 0.8})
    section = {"data": str(file), **CUT}
    assert DataConfig.create(**section).min_length == 1
    # As it is stored, defaults and all.
    data = load_data(DataConfig.create(**section).to_dict())
    assert torch.equal(data.values, load(file, **CUT).values)
    with pytest.raises(ConfigError, match=r"at.* are for files"):
        load_data({"split": "time", "at": "0.8"})
    everything = load_data({"split": "none"})
    assert not Split(everything).holds_out
    assert Split(everything).inputs("train")[0].numel() == everything.num_interactions
