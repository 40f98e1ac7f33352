"""What an id is: an integer where all are, text where they are codes, never a rounded number."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adarec_fast.data import DataError, load


def written(folder: Path, kind: str, users: list[Any], items: list[Any]) -> Path:
    path = folder / f"d.{kind}"
    rows = list(zip(users, items, strict=True))
    if kind == "txt":
        path.write_text("\n".join(f"{u} {i}" for u, i in rows))
    elif kind == "inter":
        body = "\n".join(f"{u}\t{i}" for u, i in rows)
        path.write_text(f"user:token\titem:token\n{body}")
    else:
        mark = "," if kind == "csv" else "\t"
        path.write_text("\n".join([f"user{mark}item", *(f"{u}{mark}{i}" for u, i in rows)]))
    return path


KINDS = ["txt", "inter", "csv", "tsv"]


@pytest.mark.parametrize("kind", KINDS)
def test_codes_among_numbers_are_text(tmp_path: Path, kind: str) -> None:
    codes = ["85123A", "85099B", "C2", "gift_0001_20", "POST", "M"]
    items = [str(20000 + i) for i in range(94)] + codes
    data = load(written(tmp_path, kind, [i // 10 for i in range(100)], items))
    assert data.items.kind == "str"
    assert data.users.kind == "int"
    assert data.items.ids == sorted(items)
    data = load(written(tmp_path, kind, items, [i % 7 for i in range(100)]), min_length=1)
    assert data.users.ids == items
    again = items[:94] + ["85123A"] * 4 + ["POST"] * 2  # two only, but in many rows
    data = load(written(tmp_path, kind, [i // 10 for i in range(100)], again))
    assert data.items.kind == "str"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "strays", [["85123A"], ["kingdom", "lamp"], ["2.55", "2010-12-01", "x1", "y2"]]
)
def test_strays_are_refused_with_what_helps(tmp_path: Path, kind: str, strays: list[str]) -> None:
    items = [str(20000 + i) for i in range(100 - len(strays))] + strays
    path = written(tmp_path, kind, [i // 10 for i in range(100)], items)
    with pytest.raises(DataError, match=r"item id '.*' is not an integer.* \(--ids text\)"):
        load(path)
    data = load(path, ids="text")
    assert (data.items.kind, data.users.kind) == ("str", "str")
    assert data.items.ids == sorted(items)


@pytest.mark.parametrize("kind", KINDS)
def test_integers_that_pandas_wrote_as_floats(tmp_path: Path, kind: str) -> None:
    users = ["17850.0"] * 3 + ["-5.0"] * 3 + ["13047"] * 3
    data = load(written(tmp_path, kind, users, [1, 2, 3] * 3))
    assert data.users.ids == [17850, -5, 13047]
    data = load(written(tmp_path, kind, users, [1, 2, 3] * 3), ids="text")
    assert data.users.ids == ["17850.0", "-5.0", "13047"]
    versions = ["1.0", "1.5", "1.10"] * 3
    assert load(written(tmp_path, kind, [1] * 9, versions)).items.ids == ["1.0", "1.10", "1.5"]
    # Of more digits than a float holds, they are not integers that a float was made of.
    long = ["1234567890123456789.0", "1234567890123456788.0", "2.0"]
    assert load(written(tmp_path, kind, [1] * 3, long)).items.kind == "str"


def test_whole_numbers_of_typed_cells(tmp_path: Path) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    pyarrow = pytest.importorskip("pyarrow")
    item = [3.0, 4.0, 5.0]
    path = tmp_path / "d.parquet"
    frames = [
        pandas.DataFrame({"user": [7.0] * 3, "item": item}),
        pandas.DataFrame({"user": [7.0] * 3, "item": np.array(item, dtype=np.float32)}),
        pandas.DataFrame({"user": [7.0] * 3, "item": pandas.Series(item, dtype="Float64")}),
        pandas.DataFrame({"user": [7] * 3, "item": pandas.Series(item, dtype=object)}),
        pandas.DataFrame({"user": [7] * 3, "item": pandas.Series(
            item, dtype=pandas.ArrowDtype(pyarrow.float64()))}),
        polars.DataFrame({"user": [Decimal(7)] * 3, "item": item}),
        polars.DataFrame({"user": [7] * 3, "item": item}, schema_overrides={
            "user": polars.Int128, "item": polars.Float32}),
    ]  # fmt: skip
    for number, frame in enumerate(frames):
        data = load(frame)
        assert (data.users.ids, data.items.ids) == ([7], [3, 4, 5]), number
        assert load(frame, ids="text").items.ids == ["3", "4", "5"]
        if number != len(frames) - 1:
            write = frame.write_parquet if isinstance(frame, polars.DataFrame) else frame.to_parquet
            write(path)
            assert load(path).items.ids == [3, 4, 5], number
    lines = [{"user": 7.0, "item": x} for x in (3.0, 4, 5.0)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert load(tmp_path / "d.jsonl").items.ids == [3, 4, 5]


@pytest.mark.parametrize(("dtype", "limit"), [("float16", 2**11), ("float32", 2**24),
                                              ("float64", 2**53)])  # fmt: skip
def test_ids_that_a_narrow_type_rounds_are_refused(tmp_path: Path, dtype: str, limit: int) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    pytest.importorskip("pyarrow")
    items = np.array([1, limit - 1, limit], dtype=dtype)
    columns = {"user": [1, 1, 1], "item": items}
    message = rf"row 2: 'item' is {limit}, and {dtype} holds whole numbers only up to {limit:,}"
    with pytest.raises(DataError, match=message):
        load(pandas.DataFrame(columns))
    if dtype != "float16":
        polars.DataFrame(columns).write_parquet(tmp_path / "d.parquet")
        for source in (polars.DataFrame(columns), tmp_path / "d.parquet"):
            with pytest.raises(DataError, match=message):
                load(source)
    good = pandas.DataFrame({"user": [1, 1, 1], "item": np.array([1, 2, limit - 1], dtype=dtype)})
    assert load(good).items.ids == [1, 2, limit - 1]


def test_integers_that_int64_does_not_hold(tmp_path: Path) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    pytest.importorskip("pyarrow")
    items = np.array([1, 2**63 - 1, 2**63], dtype=np.uint64)
    frame = polars.DataFrame({"user": [1] * 3, "item": items})
    frame.write_parquet(tmp_path / "d.parquet")
    for source in (frame, frame.to_pandas(), pandas.DataFrame({"user": [1] * 3, "item": items}),
                   tmp_path / "d.parquet"):  # fmt: skip
        with pytest.raises(DataError, match=r"row 2: 'item' is 9223372036854775808, .*--ids text"):
            load(source)
        assert set(load(source, ids="text").items.ids) == {"1", str(2**63 - 1), str(2**63)}
    # As text they were never rounded.
    text = [str(x) for x in items]
    assert load(written(tmp_path, "csv", [1] * 3, text)).items.ids == sorted(text)


def test_the_kind_of_ids_must_be_one_of_two() -> None:
    with pytest.raises(DataError, match="ids='int' must be 'auto' or 'text'"):
        load([[1, 2, 3]], ids="int")  # type: ignore[arg-type]
    assert load([[1, 2, 3]], ids="text").items.ids == ["1", "2", "3"]
