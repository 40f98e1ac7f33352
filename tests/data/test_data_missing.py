"""Ids that are missing, blanks around ids, and integer names of columns, in every format."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adarec_fast.data import DataError, InteractionData, inspect, load

# user, item, time; two rows have no user and one no item.
ROWS: list[tuple[str | None, str | None, int]] = [
    ("ann", "a", 3), (None, "a", 1), ("ann", "b", 2), ("ann", None, 5), ("ann", "c", 1),
    (None, "b", 4),
]  # fmt: skip
WORDS = ["", " ", "NA", "N/A", "null", "NULL", "None", "nan", "NaN", "<NA>", "\\N", "-"]


def histories(data: InteractionData) -> dict[Any, list[Any]]:
    return {
        data.users.decode([u])[0]: data.items.decode(data.sequence(u))
        for u in range(data.num_users)
    }


def check(data: InteractionData) -> None:
    """Only ann is a user, and what was left out is counted."""
    assert histories(data) == {"ann": ["c", "b", "a"]}
    report = data.report
    assert report is not None
    counted = (report.num_read, report.num_missing_users, report.num_missing_items)
    assert counted == (6, 2, 1)
    assert inspect(data)["report"]["num_missing_users"] == 2


def write(folder: Path, content: str, name: str) -> Path:
    path = folder / name
    path.write_text(content)
    return path


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("kind", ["csv", "quoted", "tsv", "inter", "jsonl"])
def test_words_for_no_value(tmp_path: Path, kind: str, word: str) -> None:
    cells = [(user or word, item or word, when) for user, item, when in ROWS]
    if kind == "jsonl":
        lines = [json.dumps({"user": u, "item": i, "time": t}) for u, i, t in cells]
    elif kind == "inter":
        lines = ["user:token\titem:token\ttime:float", *("\t".join(map(str, x)) for x in cells)]
    else:
        pytest.importorskip("polars")
        separator = "\t" if kind == "tsv" else ","
        quote = '"' if kind == "quoted" else ""
        table = [("user", "item", "time"), *cells]
        lines = [separator.join(f"{quote}{x}{quote}" for x in row) for row in table]
    check(load(write(tmp_path, "\n".join(lines) + "\n", "d.txt")))


def test_nulls_of_frames_json_and_parquet(tmp_path: Path) -> None:
    lines = [json.dumps({"user": u, "item": i, "time": t}) for u, i, t in ROWS]
    check(load(write(tmp_path, "\n".join(lines), "d.jsonl")))
    absent = [{k: v for k, v in json.loads(line).items() if v is not None} for line in lines]
    check(load(write(tmp_path, json.dumps(absent), "d.json")))
    columns = dict(zip(("user", "item", "time"), map(list, zip(*ROWS, strict=True)), strict=True))
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    check(load(pandas.DataFrame(columns)))
    check(load(pandas.DataFrame(columns).astype({"user": "category", "item": "category"})))
    check(load(pandas.DataFrame(columns).astype({"user": str, "item": str})))
    check(load(polars.DataFrame(columns)))
    pytest.importorskip("pyarrow")
    polars.DataFrame(columns).write_parquet(tmp_path / "d.parquet")
    check(load(tmp_path / "d.parquet"))


def test_numbers_with_holes_stay_numbers(tmp_path: Path) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    users, items = [1, None, 1, 1, 1], [7, 8, 9, None, 5]
    rows = zip(users, items, strict=True)
    text = "user,item\n" + "".join(f"{u or 'NA'},{i or ''}\n" for u, i in rows)
    columns = {"user": users, "item": items}
    polars.DataFrame(columns).write_parquet(tmp_path / "d.parquet")
    for source in (
        write(tmp_path, text, "d.csv"), pandas.DataFrame(columns), polars.DataFrame(columns),
        pandas.DataFrame(columns).astype("Int64"), tmp_path / "d.parquet",
        polars.DataFrame(columns, schema={"user": polars.Float64, "item": polars.Int64}),
    ):  # fmt: skip
        assert histories(load(source)) == {1: [7, 9, 5]}


def test_missing_in_text_and_lists(tmp_path: Path) -> None:
    data = load(write(tmp_path, "NA a b c\nann a NA b c\nNaN a\n", "d.txt"))
    assert histories(data) == {"ann": ["a", "b", "c"]}
    assert data.report is not None
    assert (data.report.num_read, data.report.num_missing_users) == (8, 4)
    assert data.report.num_missing_items == 1
    pairs = load(write(tmp_path, "u a\nNA a\nu null\nu b\nu c\nNA c\n", "d.txt"))
    assert histories(pairs) == {"u": ["a", "b", "c"]}
    lists = load({"": ["a", "b", "c"], "ann": ["a", None, " b", float("nan"), "c", ""]})
    assert histories(lists) == {"ann": ["a", "b", "c"]}
    assert lists.report is not None
    assert (lists.report.num_missing_users, lists.report.num_missing_items) == (3, 3)
    assert histories(load([[1, None, 2, 3]])) == {0: [1, 2, 3]}


def test_what_was_left_out_is_told_with_its_first_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("polars")
    text = 'user,item,note\nann,a,"x\ny"\nann,b,\nann,c,\n\nNA,d,z\nann,,z\n'
    with caplog.at_level(logging.WARNING):
        load(write(tmp_path, text, "d.csv"))
    assert "1 of 5 rows have no user id and 1 no item id; they were left out" in caplog.text
    assert "d.csv:7)" in caplog.text
    with pytest.raises(DataError, match="none of 2 rows has both a user id and an item id; 2 have"):
        load(write(tmp_path, "user,item\nNA,a\n,b\n", "d.csv"))


def test_a_row_without_an_id_needs_no_time(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    path = write(tmp_path, "user,item,time\nu,a,3\n,b,\nu,c,1\nu,d,2\n", "d.csv")
    assert histories(load(path)) == {"u": ["c", "d", "a"]}
    with pytest.raises(DataError, match=r"d\.csv:3: 'time' is empty"):
        load(write(tmp_path, "user,item,time\nu,a,3\nu,b,\n", "d.csv"))


def test_times_of_frames_may_be_missing_with_the_ids() -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    moments = [pandas.Timestamp(2020, 1, day) for day in (3, 2, 1)]
    columns = {"user": ["u", None, "u", "u"], "item": list("abcd"),
               "time": [moments[0], None, *moments[1:]]}  # fmt: skip
    for frame in (pandas.DataFrame(columns), polars.DataFrame(columns)):
        assert histories(load(frame)) == {"u": ["d", "c", "a"]}
    with pytest.raises(DataError, match="data frame, row 1: 'time' is null"):
        load(pandas.DataFrame({**columns, "user": ["u"] * 4}))


# --- blanks ------------------------------------------------------------------------------------


def test_blanks_are_no_part_of_ids(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("polars")
    text = "user, item, time\nu v, 11, 3\n u v, 12, 2\nu v\xa0, 9 , 1\n"
    expected = {"u v": [9, 12, 11]}
    assert histories(load(write(tmp_path, text, "d.csv"))) == expected
    assert histories(load(write(tmp_path, text.replace(",", "\t"), "d.tsv"))) == expected
    assert histories(load(write(tmp_path, text.replace(",", ";"), "d.txt"))) == expected
    quoted = 'user, item, time\n"u v", "x", 3\n"u v ", "y,z", 2\n" u v", " w", 1\n'
    expected_text = {"u v": ["w", "y,z", "x"]}
    assert histories(load(write(tmp_path, quoted, "d.csv"))) == expected_text
    rows = [{"user": "u v", "item": "x "}, {"user": " u v", "item": "\tx"}, {"user": "u v",
                                                                         "item": "y"}]  # fmt: skip
    assert histories(load(write(tmp_path, json.dumps(rows), "d.json"))) == {"u v": ["x", "x", "y"]}
    assert histories(load(pandas.DataFrame(rows))) == {"u v": ["x", "x", "y"]}
    inter = "user:token\titem:token\n" + "u \t 1\nu\t2 \n u\t3\n"
    assert histories(load(write(tmp_path, inter, "d.inter"))) == {"u": [1, 2, 3]}


def test_look_ups_do_not_care_for_blanks_either() -> None:
    data = load([["a", "b", " c"]])
    assert data.items.encode([" a", "b ", "c"]).tolist() == [1, 2, 3]
    assert " a" in data.items
    assert "a b" not in data.items


# --- names of columns ----------------------------------------------------------------------------


def test_columns_with_numbers_for_names() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([[1, 10, 5, 3], [1, 11, 4, 2], [1, 12, 3, 1]])
    for names in ((0, 1, 3), ("0", "1", "3"), (np.int64(0), 1, "3")):
        user, item, time = names
        data = load(frame, user=user, item=item, time=time)  # type: ignore[arg-type]
        assert histories(data) == {1: [12, 11, 10]}
    with pytest.raises(DataError, match="there is no column '7'; columns: '0', '1', '2', '3'"):
        load(frame, user=7, item=1)  # type: ignore[arg-type]
    levels = frame.set_axis(pandas.MultiIndex.from_tuples([("x", i) for i in range(4)]), axis=1)
    assert histories(load(levels, user="('x', 0)", item="('x', 1)")) == {1: [10, 11, 12]}
    spaced = frame.set_axis(["user", " item", "rating ", " time "], axis=1)
    assert histories(load(spaced)) == {1: [12, 11, 10]}
