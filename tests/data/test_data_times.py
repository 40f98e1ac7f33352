"""Times are read as they are written, and kept as finely as they are given."""

from __future__ import annotations

from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adarec_fast.data import DataError, load
from adarec_fast.data.moments import Unreadable, clocks, moments
from adarec_fast.data.times import UNITS, cell_times, nanoseconds, sort_key, text_times

NOON = 1_578_139_200 * 10**9  # 4 January 2020, 12:00 UTC


def where(row: int) -> str:
    return f"row {row}"


@pytest.mark.parametrize(
    "text",
    [
        "2020-01-04T12:00:00Z", "2020-01-04 12:00:00", "2020-01-04 12:00", "2020-1-4 12:00",
        "2020/01/04 12:00:00", "2020.01.04 12:00", "2020-01-04 12:00:00 UTC", "2020-01-04 12:00GMT",
        "2020-01-04T12:00:00+0000", "2020-01-04T13:00:00+01:00", "2020-01-04 04:30:00-0730",
        "2020-01-04 12:00:00.000", "2020-01-04 12:00:00,000000", "2020-01-04T12:00:00.000000000Z",
        "20200104 12:00:00", "20200104T12:00", "4-Jan-2020 12:00", "04 January 2020 12:00:00",
        "Jan 4, 2020 12:00 PM", "January 4th, 2020, 12:00 pm", "Sat Jan 04 12:00:00 +0000 2020",
        "Sat Jan  4 12:00:00 2020", "Sat, 04 Jan 2020 12:00:00 GMT", "04.01.2020 12:00",
        "Saturday, January 4, 2020 12:00:00 PM", "2020-01-04 12:00:00 p.m.", "4-Jan-20 12:00",
    ],
)  # fmt: skip
def test_one_moment_in_many_ways(text: str) -> None:
    assert text_times([text], where).tolist() == [NOON]


def test_texts_that_are_no_moments() -> None:
    for text in ("2020-02-30", "2020-13-01", "25:00", "2020-01-04 24:00", "2020-01-04 12:60",
                 "13:00 PM on Monday", "4 Foo 2020", "2020-01-04 13:00 PM", "tomorrow", "2020-01",
                 "2020-01-04+99:00", "2020-01-04 12:00 EST", "99/99/2020", "now"):  # fmt: skip
        with pytest.raises((DataError, Unreadable)):
            text_times([text], where)


@pytest.mark.parametrize(
    ("texts", "days"),
    [
        (["12/1/2010", "12/13/2010"], [(2010, 12, 1), (2010, 12, 13)]),
        (["1/12/2010", "13/12/2010"], [(2010, 12, 1), (2010, 12, 13)]),
        (["1-12-2010", "13-12-2010"], [(2010, 12, 1), (2010, 12, 13)]),
        (["1.12.2010", "2.12.2010"], [(2010, 12, 1), (2010, 12, 2)]),
        (["12/1/10", "12/13/10"], [(2010, 12, 1), (2010, 12, 13)]),
        (["5/5/2010", "6/6/2010"], [(2010, 5, 5), (2010, 6, 6)]),
        (["75-12-31", "75-12-01"], [(1975, 12, 31), (1975, 12, 1)]),
        (["12/13/68", "12/13/69"], [(2068, 12, 13), (1969, 12, 13)]),
    ],
)
def test_day_and_month_are_told_by_the_column(
    texts: list[str], days: list[tuple[int, int, int]]
) -> None:
    expected = [(date(*day) - date(1970, 1, 1)).days * UNITS["D"] for day in days]
    assert moments(texts) == expected


@pytest.mark.parametrize("texts", [["1/2/2010", "2/1/2010"], ["13/05/21"], ["01-02-03 10:00"]])
def test_day_and_month_that_nothing_tells_are_refused(texts: list[str]) -> None:
    with pytest.raises(DataError, match=r"row 0: time '.*' may be day/month/year or .*time-format"):
        text_times(texts, where)


def test_a_format_says_what_the_column_does_not(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    path = tmp_path / "d.csv"
    path.write_text("user,item,date\nu,1,1/2/2010\nu,2,2/1/2010\nu,3,3/1/2010\n")
    with pytest.raises(DataError, match=r"d\.csv:2: time '1/2/2010' may be"):
        load(path)
    for form, expected in (("%m/%d/%Y", [1, 2, 3]), ("%d/%m/%Y", [2, 3, 1])):
        data = load(path, time_format=form)
        assert data.items.decode(data.sequence(0)) == expected
    with pytest.raises(DataError, match=r"d\.csv:2: time '1/2/2010' is not written as time_format"):
        load(path, time_format="%Y-%m-%d")
    with pytest.raises(DataError, match="time_format is for times written as text"):
        load(
            pytest.importorskip("pandas").DataFrame({"user": [1], "item": [1], "time": [1]}),
            time_format="%Y",
        )
    with pytest.raises(DataError, match="time_format='%Y': format 'lists' has no named columns"):
        load([[1, 2, 3]], time_format="%Y")


def test_clocks() -> None:
    found = clocks(["0:00", "9:05", "09:05:01", "12:01 AM", "12:00 PM", "11:59:59.5 pm"])
    assert found == [x * 10**8 for x in (0, 327000, 327010, 600, 432000, 863995)]
    for text in ("24:00", "9", "9:5", "13:00 PM", "0:00 AM", "9:05:61"):
        with pytest.raises(Unreadable):
            clocks([text])
    with pytest.raises(DataError, match=r"row 0: time '9:05' .* a time of day alone.*date,time"):
        text_times(["9:05"], where)


@pytest.mark.parametrize(
    "rising",
    [
        ["2020-01-01T00:00:00.123456788", "2020-01-01T00:00:00.123456789"],
        ["2020-01-01T00:00:00.123456788Z", "2020-01-01T00:00:00.1234567881Z"],
        ["0001-01-01", "9999-12-31T23:59:59.999999", "9999-12-31T23:59:59.9999999"],
        ["1960-01-01T00:00:00.0000000001", "1960-01-01T00:00:00.0000000002"],
        ["9223372036854775807", "9223372036854775808", "18446744073709551617"],
        ["-9223372036854775809", "-9223372036854775808", "9223372036854775808"],
        ["1600000000000000001.0", "1600000000000000002", "1600000000000000002.5"],
        ["1600000000.123456788", "1600000000.123456789", "1600000001"],
        ["0.1", "0.10000000000000000001"],
        ["1e-300", "1e-5", "1e300"],
    ],
)
def test_fine_times_do_not_tie(tmp_path: Path, rising: list[str]) -> None:
    times = sort_key(text_times(rising[::-1], where))
    assert np.all(np.diff(times.astype(float) if times.dtype == np.uint64 else times) < 0)
    for name, head, mark in (("d.csv", "user,item,ts\n", ","),
                             ("d.inter", "user:token\titem:token\tts:float\n", "\t")):  # fmt: skip
        path = tmp_path / name
        rows = [f"u{mark}{item}{mark}{time}\n" for item, time in enumerate(rising[::-1])]
        path.write_text(head + "".join(rows))
        data = load(path, min_length=1)
        assert data.items.decode(data.sequence(0)) == list(range(len(rising)))[::-1]
    path = tmp_path / "d.jsonl"
    quote = '"' if "-" in rising[-1] else ""
    rows = [f'{{"user": "u", "item": {item}, "ts": {quote}{time}{quote}}}\n'
            for item, time in enumerate(rising[::-1])]  # fmt: skip
    path.write_text("".join(rows))
    data = load(path, min_length=1)
    assert data.items.decode(data.sequence(0)) == list(range(len(rising)))[::-1]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.integers(-(2**70), 2**70)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.decimals(allow_nan=False, allow_infinity=False, places=12),
        min_size=1,
    )
)
def test_numbers_sort_as_their_exact_values(numbers: list[Any]) -> None:
    exact = [Decimal(repr(x) if isinstance(x, float) else x) for x in numbers]
    texts = text_times([str(x) for x in numbers], where)
    order = sorted(range(len(exact)), key=exact.__getitem__)
    assert np.argsort(sort_key(texts), kind="stable").tolist() == order
    typed = sort_key(cell_times(list(numbers), where))
    if not any(isinstance(x, Decimal) for x in numbers):
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
    if any(abs(x) > 2**53 for x in numbers):
        assert np.argsort(typed, kind="stable").tolist() == order


MOMENTS = [datetime(2020, 1, 2, 3), datetime(2020, 1, 2, 4), datetime(2020, 1, 1, 5)]


def frames() -> dict[str, Any]:
    """Frames of every kind of typed times; right order: c, a, b."""
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    pyarrow = pytest.importorskip("pyarrow")
    ids = {"user": ["u"] * 3, "item": list("abc")}
    stamps = pandas.to_datetime(pandas.Series(MOMENTS))
    aware = stamps.dt.tz_localize("Asia/Tokyo")
    utc = [m.replace(tzinfo=timezone.utc) for m in MOMENTS]

    def arrow(series: Any, kind: Any) -> Any:
        return series.astype(pandas.ArrowDtype(kind))

    columns = {
        "datetime objects": pandas.Series(MOMENTS, dtype=object),
        "aware objects": pandas.Series(utc, dtype=object),
        "Timestamp objects": stamps.astype(object),
        "aware Timestamps": aware.astype(object),
        "datetime64 objects": pandas.Series([np.datetime64(m) for m in MOMENTS], dtype=object),
        "datetime64": stamps,
        "datetime64[s]": stamps.astype("datetime64[s]"),
        "aware": aware,
        "period": stamps.dt.to_period("h"),
        "timestamp[us, tz]": arrow(aware, pyarrow.timestamp("us", "Asia/Tokyo")),
        "timestamp[ns]": arrow(stamps, pyarrow.timestamp("ns")),
        "Int64": pandas.Series([5, 6, 4], dtype="Int64"),
        "int64[pyarrow]": arrow(pandas.Series([5, 6, 4]), pyarrow.int64()),
        "string[pyarrow]": pandas.Series([str(m) for m in MOMENTS], dtype="string[pyarrow]"),
        "decimals": pandas.Series([Decimal("1.5"), Decimal("1.6"), Decimal(1)], dtype=object),
        "timedelta": stamps - stamps[0],
        "category": pandas.Series([str(m) for m in MOMENTS], dtype="category"),
    }  # fmt: skip
    made = {f"pandas {n}": pandas.DataFrame({**ids, "timestamp": c}) for n, c in columns.items()}
    for unit in ("ms", "us", "ns"):
        for zone in (None, "UTC", "Asia/Tokyo"):
            made[f"polars {unit} {zone}"] = polars.DataFrame({**ids, "timestamp": polars.Series(
                MOMENTS).dt.cast_time_unit(unit).dt.replace_time_zone(zone)})  # fmt: skip
    made["polars decimal"] = polars.DataFrame({**ids, "timestamp": polars.Series(
        [Decimal("1.5"), Decimal("1.6"), Decimal("1.0")])})  # fmt: skip
    made["polars objects"] = polars.DataFrame(
        {**ids, "timestamp": polars.Series(MOMENTS, dtype=polars.Object)}
    )
    made["polars strings"] = polars.DataFrame({**ids, "timestamp": [str(m) for m in MOMENTS]})
    return made


def test_typed_times_of_frames(tmp_path: Path) -> None:
    for name, frame in frames().items():
        data = load(frame)
        assert data.items.decode(data.sequence(0)) == ["c", "a", "b"], name
        if "object" in name or "datetime64 objects" in name:
            continue
        path = tmp_path / "d.parquet"
        if name.startswith("polars"):
            frame.write_parquet(path)
        elif name not in ("pandas period", "pandas timedelta", "pandas aware Timestamps"):
            frame.to_parquet(path)
        else:
            continue
        data = load(path)
        assert data.items.decode(data.sequence(0)) == ["c", "a", "b"], name


def test_typed_dates_of_frames() -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    pyarrow = pytest.importorskip("pyarrow")
    days = [date(2020, 1, 2), date(2020, 1, 3), date(2020, 1, 1)]
    ids = {"user": ["u"] * 3, "item": list("abc")}
    for kind in (object, *map(pandas.ArrowDtype, (pyarrow.date32(), pyarrow.date64()))):
        data = load(pandas.DataFrame({**ids, "date": pandas.Series(days, dtype=kind)}))
        assert data.items.decode(data.sequence(0)) == ["c", "a", "b"]
    data = load(polars.DataFrame({**ids, "date": days}))
    assert data.items.decode(data.sequence(0)) == ["c", "a", "b"]


def test_mixed_typed_times_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    for times, message in (
        ([datetime(2020, 1, 1), 5, 6], "row 1: time 5 is not a date or datetime, as the first is"),
        ([5, datetime(2020, 1, 1), 6], "row 1: time .* is not a number, as the first is"),
        (["2020-01-01", date(2020, 1, 1), 6], "row 1: time .* is not a number or an ISO 8601 text"),
        ([True, False, True], "times of dtype bool|time True is not a number"),
        ([1, None, 2], "row 1: 'time' is (missing or )?null"),
        ([datetime(2020, 1, 1), None, datetime(2020, 1, 2)], "row 1: 'time' is (missing or )?null"),
    ):
        with pytest.raises(DataError, match=message):
            load(pandas.DataFrame({"user": [1] * 3, "item": [1, 2, 3], "time": times}))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_times_rounded_by_a_narrow_type_are_refused(tmp_path: Path, dtype: str) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    times = np.array([60000.0, 60001.0, 60002.0] if dtype == "float16" else
                     [1600000000.0, 1600000001.0, 1600000002.0]).astype(dtype)  # fmt: skip
    columns = {"user": [1] * 3, "item": [1, 2, 3], "time": times}
    sources: list[Any] = [pandas.DataFrame(columns)]
    if dtype == "float32":
        sources.append(polars.DataFrame(columns))
        sources[-1].write_parquet(tmp_path / "d.parquet")
        sources.append(tmp_path / "d.parquet")
    for source in sources:
        with pytest.raises(DataError, match=f"row 0: time .* has dtype {dtype}, which holds whole"):
            load(source)


def test_seconds_among_milliseconds_are_refused(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    for texts in (
        ["1600000000", "1600000001000"],
        ["20200101", "20200101120000"],
        ["1600000000000", "1600000000000000"],
        ["1600000000.5", "1600000000500"],
    ):
        with pytest.raises(DataError, match=r"row 1: time .* looks like .*, the first, .* like"):
            text_times(texts, where)
        numbers = [float(text) if "." in text else int(text) for text in texts]
        frame = pandas.DataFrame({"user": [1, 1], "item": [1, 2], "time": numbers})
        with pytest.raises(DataError, match=r"row 1: time .* looks like .*, the first, .* like"):
            load(frame)
    # A counter is what it is.
    counter = [str(400_000_000 * 7**n) for n in range(12)]
    assert text_times(counter, where).tolist() == list(map(int, counter))


def test_units() -> None:
    assert nanoseconds(np.array([1, -1]), UNITS["ms"]).tolist() == [10**6, -(10**6)]
    far = nanoseconds(np.array([2**40, 0]), UNITS["D"])
    assert far.tolist() == [2**40 * UNITS["D"], 0]
    array = np.array(["9999-01-01", "2020-01-01"], dtype="datetime64[s]")
    assert sort_key(cell_times(array, where)).tolist() == [1, 0]
    minutes = np.array(["2020-01-01T10:05", "2020-01-01T10:00"], dtype="datetime64[m]")
    assert np.diff(cell_times(minutes, where)).tolist() == [-5 * 60 * 10**9]
