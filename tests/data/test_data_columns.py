"""Which columns are users, items and times: found, told why, or refused; never wrong in silence."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from adarec_fast.data import DataError, InteractionData, load

Rows = list[tuple[Any, ...]]
Make = Callable[[Path, Sequence[str], Rows], Any]


def as_csv(folder: Path, names: Sequence[str], rows: Rows) -> Path:
    path = folder / "d.csv"
    path.write_text("\n".join(",".join(map(str, row)) for row in [tuple(names), *rows]))
    return path


def as_tsv(folder: Path, names: Sequence[str], rows: Rows) -> Path:
    path = folder / "d.tsv"
    path.write_text("\n".join("\t".join(map(str, row)) for row in [tuple(names), *rows]))
    return path


def as_inter(folder: Path, names: Sequence[str], rows: Rows) -> Path:
    path = folder / "d.inter"
    header = "\t".join(f"{name}:token" for name in names)
    path.write_text("\n".join([header, *("\t".join(map(str, row)) for row in rows)]))
    return path


def as_jsonl(folder: Path, names: Sequence[str], rows: Rows) -> Path:
    path = folder / "d.jsonl"
    lines = (json.dumps(dict(zip(names, row, strict=True)), default=str) for row in rows)
    path.write_text("\n".join(lines))
    return path


def as_frame(folder: Path, names: Sequence[str], rows: Rows) -> Any:
    return pytest.importorskip("pandas").DataFrame(rows, columns=list(names))


def as_polars(folder: Path, names: Sequence[str], rows: Rows) -> Any:
    return pytest.importorskip("polars").DataFrame(rows, schema=list(names), orient="row")


def as_parquet(folder: Path, names: Sequence[str], rows: Rows) -> Path:
    pytest.importorskip("pyarrow")
    path = folder / "d.parquet"
    as_polars(folder, names, rows).write_parquet(path)
    return path


MAKERS = [as_csv, as_tsv, as_inter, as_jsonl, as_frame, as_polars, as_parquet]


def order(data: InteractionData, user: int = 0) -> list[Any]:
    return data.items.decode(data.sequence(user))


def days(*numbers: int) -> list[date]:
    return [date(2020, 1, number) for number in numbers]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("t_dat", [d.isoformat() for d in days(3, 1, 2)]),
        ("Invoice Date", ["1/31/2011 8:26", "1/4/2011 17:01", "1/4/2011 17:02"]),
        ("event_time", ["2020-01-01 00:00:02 UTC", "2020-01-01 00:00:00 UTC",
                        "2020-01-01 00:00:01 UTC"]),
        ("utc_timestamp", [1600000003, 1600000001, 1600000002]),
        ("created_at", ["2020-01-03T00:00:00Z", "2020-01-01T01:00:00Z", "2020-01-01T03:00:00+01"]),
        ("time", [3, 1, 2]),
    ],
)  # fmt: skip
def test_a_column_of_times_is_found(
    tmp_path: Path, make: Make, name: str, times: list[Any]
) -> None:
    rows = [("u", item, time) for item, time in zip("cab", times, strict=True)]
    data = load(make(tmp_path, ("user_id", "item_id", name), rows))
    assert order(data) == ["a", "b", "c"]
    assert data.report is not None
    assert data.report.columns == {"user": "user_id", "item": "item_id", "time": name}
    assert data.report.why["time"].startswith("by its name")
    assert data.report.num_ties == 0


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("c4", ["2020-01-03", "2020-01-01", "2020-01-02"]),
        ("c4", [1600000003, 1600000001, 1600000002]),
        ("release_date", ["2020-01-03", "2020-01-01", "2020-01-02"]),
        ("when", [30, 10, 20]),
        ("hour", [3, 1, 2]),
        ("time", ["9:30", "8:15", "8:20"]),
        ("created_at", ["long ago", "lately", "now"]),
        ("lastseen_at", [17, 15, 16]),
        ("year", [2020, 2018, 2019]),
    ],
)
def test_what_looks_like_times_is_refused_unless_named(
    tmp_path: Path, make: Make, name: str, times: list[Any]
) -> None:
    rows = [("u", item, time) for item, time in zip("cab", times, strict=True)]
    source = make(tmp_path, ("user_id", "item_id", name), rows)
    with pytest.raises(DataError, match=f"no column of times was named, and '{name}'") as problem:
        load(source)
    assert f"--time-column {name}" in str(problem.value)
    assert "--time-column file-order" in str(problem.value)
    assert order(load(source, time="file-order")) == ["c", "a", "b"]
    if name not in ("time", "created_at"):
        assert order(load(source, time=name)) == ["a", "b", "c"]


@pytest.mark.parametrize("make", MAKERS)
def test_two_columns_that_may_be_the_time_are_refused(tmp_path: Path, make: Make) -> None:
    rows = [("u", 1, "2020-01-02", "2020-02-01"), ("u", 2, "2020-01-01", "2020-02-02"),
            ("u", 3, "2020-01-03", "2020-01-01")]  # fmt: skip
    for names in (("listened_at", "created_at"), ("added_at", "removed_at")):
        source = make(tmp_path, ("user_id", "item_id", *names), rows)
        with pytest.raises(DataError, match=rf"'{names[0]}' \(.*\), '{names[1]}' \(.*\) look "):
            load(source)
        assert order(load(source, time=names[0])) == [2, 1, 3]
        assert order(load(source, time=names[1])) == [3, 1, 2]
    source = make(tmp_path, ("user_id", "item_id", "order_date", "date_shipped"), rows)
    assert order(load(source)) == [2, 1, 3]  # the one by its name
    minutes = [(*row[:3], f"{row[3]} 10:00") for row in rows]
    source = make(tmp_path, ("user_id", "item_id", "date", "updated_at"), minutes)
    with pytest.raises(DataError, match=r"'date' .*, 'updated_at' .* look like"):
        load(source)  # finer, and perhaps of something else


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("names", "times"),
    [
        (("date", "time"), "2020-01-02 08:00; 2020-01-01 9:05; 2020-01-01 17:00"),
        (("date", "time"), "20200102 90000; 20200101 100000; 20200101 110000"),
        (("date", "time"), "1/13/20 1:05PM; 1/12/20 12:05AM; 1/12/20 1:00AM"),
        (("eventdate", "timeframe"), "2020-01-02 17; 2020-01-01 900; 2020-01-01 1000"),
        (("day", "clock"), "2020-01-02 00:01; 2020-01-01 8:00; 2020-01-01 10:00"),
        (("year", "month", "day"), "2021 1 1; 2020 2 27; 2020 10 1"),
        (("date", "hour", "minute"), "20200102 0 3; 20200101 3 59; 20200101 20 4"),
    ],
)
def test_days_and_times_of_day(
    tmp_path: Path, make: Make, names: tuple[str, ...], times: str
) -> None:
    cells = [[int(x) if x.isdigit() else x for x in row.split()] for row in times.split("; ")]
    rows = [("u", item, *time) for item, time in zip("cab", cells, strict=True)]
    # In whatever order the columns stand, and where they are named too.
    turned = [(*reversed(row[2:]), row[0], row[1]) for row in rows]
    source = make(tmp_path, (*reversed(names), "user_id", "item_id"), turned)
    named = load(source, time=",".join(names))
    assert order(named) == order(load(source, time=list(names))) == ["a", "b", "c"]
    if names[0] != "day":  # no usual name
        assert order(load(source)) == ["a", "b", "c"]
        found = load(source).report
        assert found is not None
        assert found.columns["time"] == ", ".join(names)


def test_typed_days_and_times_of_day() -> None:
    polars, pandas = pytest.importorskip("polars"), pytest.importorskip("pandas")
    moments = [datetime(2020, 1, 2, 8), datetime(2020, 1, 1, 9), datetime(2020, 1, 1, 17)]
    columns = {"user": ["u"] * 3, "item": list("cab"), "date": [m.date() for m in moments],
               "time": [m.time() for m in moments]}  # fmt: skip
    for frame in (polars.DataFrame(columns), pandas.DataFrame(columns)):
        assert order(load(frame)) == ["a", "b", "c"]


@pytest.mark.parametrize("make", MAKERS)
def test_times_beside_numbers_of_their_own_kind(tmp_path: Path, make: Make) -> None:
    """How long something took is no time, nor is the date of something else."""
    rows = [("u", 1, 5, "2020-01-02 10:00"), ("u", 2, 9, "2020-01-01 10:00"),
            ("u", 3, 1, "2020-01-03 10:00")]  # fmt: skip
    source = make(tmp_path, ("user_id", "item_id", "watch_time", "timestamp"), rows)
    assert order(load(source)) == [2, 1, 3]
    source = make(tmp_path, ("user_id", "item_id", "time", "created_at"), rows)
    assert order(load(source)) == [2, 1, 3]
    source = make(tmp_path, ("user_id", "item_id", "rating", "watch_time"), rows[:0] or [
        ("u", i, r, w) for i, r, w in ((1, 5, 30), (2, 3, 10), (3, 4, 20))])  # fmt: skip
    data = load(source)
    assert order(data) == [1, 2, 3]
    assert data.report is not None
    assert data.report.columns["time"] == ""
    assert data.report.why["time"] == "no column looks like times"


def test_ids_of_the_size_of_times_are_no_times(tmp_path: Path) -> None:
    rows = [("u", i, 1600000000 - i) for i in range(3)]
    assert order(load(as_csv(tmp_path, ("user_id", "item_id", "order_no"), rows))) == [0, 1, 2]


def test_order_by_position_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = as_csv(tmp_path, ("user_id", "item_id"), [("u", i) for i in (3, 1, 2)])
    with caplog.at_level(logging.WARNING):
        load(source)
    assert "no column looks like times; histories keep the order of the rows" in caplog.text
    with pytest.raises(DataError, match="there is no column 'day,hour'"):
        load(source, time="day,hour")


@pytest.mark.parametrize("make", MAKERS)
def test_ties_are_counted(tmp_path: Path, make: Make) -> None:
    rows = [("u", i, t) for i, t in ((1, 7), (2, 7), (3, 5), (4, 7))] + [("v", 1, 7), ("v", 2, 8)]
    data = load(make(tmp_path, ("user", "item", "ts"), rows), min_length=1)
    assert order(data) == [3, 1, 2, 4]
    assert data.report is not None
    assert data.report.num_ties == 2


def test_a_member_may_be_absent_from_the_first_line(tmp_path: Path) -> None:
    lines = [{"user": "u", "item": "x"}] + [
        {"user": "u", "item": i, "timestamp": t} for i, t in (("a", 3), ("b", 2), ("c", 1))
    ]
    path = tmp_path / "d.jsonl"
    for objects in (lines, lines[::-1], lines[1:3] + lines[:1] + lines[3:]):
        path.write_text("\n".join(map(json.dumps, objects)))
        line = objects.index(lines[0]) + 1
        told = rf"d\.jsonl:{line}: 'timestamp' is missing or null, .*\(--time-column file-order"
        with pytest.raises(DataError, match=told):
            load(path)
        assert len(order(load(path, time="file-order"))) == 4
    # Columns that nobody asked for may be absent anywhere; the wanted ones stand in any order.
    del lines[0]
    lines[0] = {"note": 1, "timestamp": 3, "item": "a", "user": "u"}
    path.write_text("\n".join(map(json.dumps, lines)))
    assert order(load(path)) == ["c", "b", "a"]
    # A name that only one line far down has.
    many = [{"user": "u", "item": str(i)} for i in range(2500)]
    many[1234]["ts"] = "5"
    path.write_text("\n".join(map(json.dumps, many)))
    with pytest.raises(DataError, match=r"d\.jsonl:1: 'ts' is missing or null"):
        load(path)


@pytest.mark.parametrize("make", MAKERS)
def test_a_column_name_twice_is_refused_alike(tmp_path: Path, make: Make) -> None:
    if make in (as_jsonl, as_polars, as_parquet):
        pytest.skip("such a table cannot be made of this kind")
    source = make(tmp_path, ("user_id", "item_id", "item_id"), [(1, 10 + i, 99) for i in range(3)])
    with pytest.raises(DataError, match="the column 'item_id' occurs twice; rename one"):
        load(source)
    source = make(tmp_path, ("user_id", "item_id", "x", "x"), [(1, i, 5, 6) for i in range(3)])
    assert order(load(source)) == [0, 1, 2]
    if make is not as_inter:
        with pytest.raises(DataError, match="the column 'x' occurs twice"):
            load(source, item="x")


def test_names_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    rows = [(1, i, 2) for i in range(3)]
    for make in MAKERS:
        with pytest.raises(DataError, match="'user_id' and 'UserID' may both hold the user ids"):
            load(make(tmp_path, ("user_id", "item", "UserID"), rows))


def test_a_member_twice_in_an_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"user": 1, "item": 2}\n{"user": 1, "item": 2, "item": 3}\n')
    with pytest.raises(DataError, match=r"d\.jsonl:2: the object has 'item' twice"):
        load(path)
    path.write_text('{"user": 1, "item": 2, "n": "\\"item\\"", "note": {"item": 3}}\n' * 3)
    assert order(load(path)) == [2, 2, 2]


def test_twice_in_parquet_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table([[1, 1, 1], [1, 2, 3], [4, 5, 6]], names=["user", "item", "item"])
    parquet.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(DataError, match="the column 'item' occurs twice"):
        load(tmp_path / "d.parquet")


@pytest.mark.parametrize("make", [as_csv, as_tsv, as_inter, as_jsonl])
@pytest.mark.parametrize("missing", ["NA", "null", "nan", "N/A"])
def test_users_mostly_missing_give_way_to_sessions(
    tmp_path: Path, make: Make, missing: str
) -> None:
    rows = [(s // 4, missing if s % 16 else 7, s % 9, s) for s in range(64)]
    data = load(make(tmp_path, ("sessionId", "userId", "itemId", "ts"), rows))
    assert data.num_users == 16
    assert data.report is not None
    assert data.report.columns["user"] == "sessionId"
    assert "'userId' is missing in 94% of the rows" in data.report.why["user"]
    known = [(s // 4, s // 8, s % 9, s) for s in range(64)]
    data = load(make(tmp_path, ("sessionId", "userId", "itemId", "ts"), known))
    assert data.num_users == 8


def test_users_mostly_null_in_typed_tables(tmp_path: Path) -> None:
    rows = [(s // 4, None if s % 16 else 7, s % 9, s) for s in range(64)]
    for make in (as_jsonl, as_frame, as_polars, as_parquet):
        data = load(make(tmp_path, ("session_id", "user_id", "item_id", "ts"), rows))
        assert data.num_users == 16


def test_names_of_shops(tmp_path: Path) -> None:
    begin = datetime(2011, 1, 4, 8)
    times = [f"{begin - timedelta(hours=i):%m/%d/%Y %H:%M}" for i in range(400)]
    rows = [(536365 + i, f"{85123 + i % 5}A", "lamp", 1, time, 2.5, 17850 + i % 2)
            for i, time in enumerate(times)]  # fmt: skip
    names = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice",
             "Customer ID")  # fmt: skip
    data = load(as_csv(tmp_path, names, rows))
    assert data.report is not None
    assert data.report.columns == {
        "user": "Customer ID", "item": "StockCode", "time": "InvoiceDate",
    }  # fmt: skip
    assert order(data)[-1] == "85123A"
