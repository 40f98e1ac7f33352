"""Every format reads back what was written, and every bad input is named by file and line."""

from __future__ import annotations

import csv
import io
import json
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adarec_fast.data import InteractionData, load
from adarec_fast.data.text import MISSING, Fields, _parse_integers, split_whitespace

HISTORY = dict[object, list[object]]


def histories(data: InteractionData) -> HISTORY:
    return {
        data.users.decode([u])[0]: data.items.decode(data.sequence(u))
        for u in range(data.num_users)
    }


def write(folder: Path, content: str | bytes, name: str = "data.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- round trips -----------------------------------------------------------------------------



def is_id(text: str) -> bool:
    """Whether it stands for itself: no blanks around it, and no word for a missing value."""
    return text == text.strip() and text.lower() not in MISSING and not text.startswith("[")


# A token is something that cannot be taken for an integer.
WORD = st.text("abcXYZé_-.:", min_size=1, max_size=6).filter(is_id)
CELL = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=6).filter(
    lambda s: not any(c.isdigit() for c in s) and is_id(s)
)


def histories_of(ids: st.SearchStrategy[object], least: int = 3) -> st.SearchStrategy[HISTORY]:
    items = st.lists(ids, min_size=least, max_size=8)
    return st.dictionaries(ids, items, min_size=1, max_size=8)


INTEGERS = histories_of(st.integers(-(10**18) + 1, 10**18 - 1))
WORDS = histories_of(WORD)
CELLS = histories_of(CELL)


def as_rows(source: HISTORY) -> list[tuple[object, object]]:
    """User by user, in the order of the histories."""
    return [(user, item) for user, items in source.items() for item in items]


def read_back(content: str, name: str, **options: object) -> InteractionData:
    with tempfile.TemporaryDirectory() as folder:
        return load(write(Path(folder), content, name), **options)


@settings(deadline=None, max_examples=30)
@given(source=INTEGERS | WORDS, blank=st.sampled_from(["", "\n", " \r\n"]))
def test_sequences(source: HISTORY, blank: str) -> None:
    lines = [f"{user} {' '.join(map(str, items))}" for user, items in source.items()]
    data = read_back(blank + ("\n" + blank).join(lines) + blank, "d.txt", format="sequences")
    assert histories(data) == source
    assert list(histories(data)) == list(source)


@settings(deadline=None, max_examples=30)
@given(source=INTEGERS | WORDS, separator=st.sampled_from([" ", "\t", "  "]))
def test_pairs(source: HISTORY, separator: str) -> None:
    content = "\n".join(f"{user}{separator}{item}" for user, item in as_rows(source))
    data = read_back(content, "d.txt")
    assert data.report is not None
    assert data.report.format == "pairs"
    assert histories(data) == source


@settings(deadline=None, max_examples=30)
@given(source=INTEGERS | WORDS, line_end=st.sampled_from(["\n", "\r\n"]), data=st.data())
def test_inter(source: HISTORY, line_end: str, data: st.DataObject) -> None:
    rows = shuffled_rows(source, data)
    lines = ["item_id:token\trating:float\tuser_id:token\ttimestamp:float"]
    lines += [f"{item}\t5\t{user}\t{when}" for user, item, when in rows]
    assert histories(read_back(line_end.join(lines), "d.txt")) == source


def shuffled_rows(source: HISTORY, data: st.DataObject) -> list[tuple[object, object, int]]:
    """Rows with rising times, in any order of the file."""
    rows = [(user, item, when) for when, (user, item) in enumerate(as_rows(source))]
    return data.draw(st.permutations(rows), label="rows")


@settings(deadline=None, max_examples=30)
@given(source=INTEGERS | CELLS, kind=st.sampled_from(["csv", "tsv"]), data=st.data())
def test_csv_and_tsv(source: HISTORY, kind: str, data: st.DataObject) -> None:
    pytest.importorskip("polars")
    rows = shuffled_rows(source, data)
    buffer = io.StringIO()
    if kind == "csv":
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["userId", "movieId", "rating", "ts"])
        writer.writerows([user, item, "", when] for user, item, when in rows)
    else:
        buffer.write("userId\tmovieId\trating\tts\n")
        for user, item, when in rows:
            buffer.write(f"{user}\t{item}\t\t{when}\n")
    assert histories(read_back(buffer.getvalue(), "d.txt")) == source


@settings(deadline=None, max_examples=30)
@given(
    source=histories_of(st.integers(-(2**63), 2**63 - 1))
    | histories_of(st.text(max_size=5).filter(is_id))
)
def test_jsonl(source: HISTORY) -> None:
    lines = [json.dumps({"uid": user, "asin": item}) for user, item in as_rows(source)]
    assert histories(read_back("\n".join(lines) + "\n\n", "d.txt")) == source


@settings(deadline=None, max_examples=20)
@given(source=INTEGERS | CELLS, data=st.data(), kind=st.sampled_from(["pandas", "polars", "file"]))
def test_frames_and_parquet(source: HISTORY, data: st.DataObject, kind: str) -> None:
    rows = shuffled_rows(source, data)
    columns = dict(zip(("user", "item", "time"), map(list, zip(*rows, strict=True)), strict=True))
    if kind == "pandas":
        assert histories(load(pytest.importorskip("pandas").DataFrame(columns))) == source
        return
    frame = pytest.importorskip("polars").DataFrame(columns)
    if kind == "polars":
        assert histories(load(frame)) == source
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.bin"  # known by its content
        frame.write_parquet(path)
        assert histories(load(path)) == source


@settings(deadline=None, max_examples=30)
@given(source=INTEGERS | CELLS)
def test_lists(source: HISTORY) -> None:
    assert histories(load(source)) == source
    data = load(list(source.values()))
    assert histories(data) == dict(enumerate(source.values()))


@settings(deadline=None, max_examples=30)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50), st.integers(0, 3)), min_size=1)
)
def test_ties_keep_the_order_of_the_file(rows: list[tuple[int, int, int]]) -> None:
    content = "user_id:token\titem_id:token\ttimestamp:float\n"
    content += "".join(f"{user}\t{item}\t{when / 2}\n" for user, item, when in rows)
    expected: HISTORY = {}
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        expected.setdefault(user, []).append(item)
    data = read_back(content, "d.inter", min_length=1)
    assert histories(data) == expected


# --- details ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(tokens=st.lists(st.text("0123456789-x", min_size=1, max_size=21), min_size=1))
def test_integers_are_parsed_as_python_does(tokens: list[str]) -> None:
    text = " ".join(tokens).encode()
    fields = split_whitespace(Path("x"), text)
    assert isinstance(fields, Fields)
    assert fields.strings() == tokens
    values, good = _parse_integers(text, fields.starts, fields.ends)
    for token, value, is_good in zip(tokens, values.tolist(), good.tolist(), strict=True):
        try:
            canonical = str(int(token)) == token and len(token.lstrip("-")) <= 18
        except ValueError:
            canonical = False
        assert is_good == canonical
        if canonical:
            assert value == int(token)


def test_items_are_sorted_and_users_keep_their_order(tmp_path: Path) -> None:
    data = load(write(tmp_path, "9 30 4 200\n10 4 5 30\n"))
    assert data.users.ids == [9, 10]
    assert data.items.ids == [4, 5, 30, 200]
    assert data.values.tolist() == [3, 1, 4, 1, 2, 3]
    assert data.offsets.tolist() == [0, 3, 6]
    assert data.values.dtype == data.offsets.dtype == torch.int64
    assert data.name == "data"


def test_two_fields_a_line_are_sequences_when_no_user_recurs(tmp_path: Path) -> None:
    path = write(tmp_path, "1 5\n2 6\n")
    data = load(path, min_length=1)
    assert data.report is not None
    assert data.report.format == "sequences"
    assert load(path, min_length=1, format="pairs").report.format == "pairs"  # type: ignore[union-attr]


def test_pairs_of_a_user_need_not_be_neighbours(tmp_path: Path) -> None:
    data = load(write(tmp_path, "7 1\n8 5\n7 2\n8 4\n8 6\n7 3\n"))
    assert histories(data) == {7: [1, 2, 3], 8: [5, 4, 6]}


def test_text_ids(tmp_path: Path) -> None:
    data = load(write(tmp_path, "u1 B01 B02 007\nu2 7 B01 x\n"))
    assert histories(data) == {"u1": ["B01", "B02", "007"], "u2": ["7", "B01", "x"]}
    isbn = load(write(tmp_path, "1 0439893577 043989358X 0439893579\n"))
    assert isbn.items.kind == "str"
    assert isbn.users.kind == "int"
    long = load(write(tmp_path, f"1 {10**20} 3 4\n"))
    assert long.items.ids == sorted([str(10**20), "3", "4"])


def test_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    for text in (b"\xef\xbb\xbf1 2 3 4\n", b"1 2 3 4\r\n", b"1 2 3 4", b"\n\n1 2 3 4\n\n  \n"):
        assert histories(load(write(tmp_path, text))) == {1: [2, 3, 4]}
    assert len(histories(load(write(tmp_path, b"1 2 3 4\r5 6 7 8\r")))) == 2
    pytest.importorskip("polars")
    text = b"\xef\xbb\xbfuser,item\r\n1,2\r\n\r\n1,3\r\n1,4\r\n\r\n"
    assert histories(load(write(tmp_path, text))) == {1: [2, 3, 4]}


def test_named_columns(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    path = write(tmp_path, "who,item,what,when\n1,x,5,30\n1,x,6,20\n1,x,7,10\n")
    data = load(path, user="who", item="what", time="when")
    assert histories(data) == {1: [7, 6, 5]}
    assert histories(load(path, user="who", item="what", time="file-order")) == {1: [5, 6, 7]}
    header_only_by_extension = write(tmp_path, "a,b\n1,5\n1,6\n1,7\n", "d.csv")
    assert histories(load(header_only_by_extension, user="a", item="b")) == {1: [5, 6, 7]}


@pytest.mark.parametrize(
    "times",
    [
        ["30", "20", "10"],
        ["1e3", "20.5", "-3"],
        ["1700000000000000003", "1700000000000000002", "1700000000000000001"],
        ["2024-03-01", "2024-02-29", "2023-12-31"],
        ["2024-01-01T00:00:00Z", "2023-12-31T23:30:00+00:00", "2024-01-01T00:00:00+01:00"],
        ["2024-01-01 00:00:00.000002", "2024-01-01 00:00:00.000001", "2024-01-01 00:00:00"],
    ],
)
def test_times_order_histories(tmp_path: Path, times: list[str]) -> None:
    text = "user_id:token\titem_id:token\ttimestamp:float\n"
    text += "".join(f"1\t{item}\t{when}\n" for item, when in enumerate(times))
    assert histories(load(write(tmp_path, text, "d.inter"))) == {1: [2, 1, 0]}
    lines = [json.dumps({"user": 1, "item": i, "time": t}) for i, t in enumerate(times)]
    assert histories(load(write(tmp_path, "\n".join(lines)))) == {1: [2, 1, 0]}


def test_typed_times_of_frames() -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    begin = datetime(2024, 1, 1, tzinfo=timezone.utc)
    for moments in (
        [begin + timedelta(hours=h) for h in (3, 2, 1)],
        [begin.replace(tzinfo=None, hour=h) for h in (3, 2, 1)],
        [3.5, 2.5, 1.5],
    ):
        columns = {"user": ["a"] * 3, "item": [1, 2, 3], "time": moments}
        for frame in (pandas.DataFrame(columns), polars.DataFrame(columns)):
            assert histories(load(frame)) == {"a": [3, 2, 1]}


def test_typed_ids_of_frames() -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    floats = pandas.DataFrame({"user": [1.0, 1.0, 1.0], "item": pandas.Categorical(list("xyz"))})
    assert histories(load(floats)) == {1: ["x", "y", "z"]}
    frame = polars.DataFrame({"user": ["7"] * 3, "item": ["1", "2", "3"]})
    frame = frame.with_columns(polars.col("item").cast(polars.Categorical))
    assert histories(load(frame)) == {"7": ["1", "2", "3"]}  # text stays text
    small = polars.DataFrame({"user": [1] * 3, "item": [3, 4, 5]}, schema_overrides={
        "user": polars.UInt8, "item": polars.Int16})  # fmt: skip
    assert histories(load(small)) == {1: [3, 4, 5]}


def test_lists_of_arrays_and_mixed_ids() -> None:
    assert histories(load([np.array([5, 4, 3])])) == {0: [5, 4, 3]}
    assert histories(load([(1, "a", 2)])) == {0: ["1", "a", "2"]}


def test_a_megabyte_is_read_in_a_moment(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    items = generator.integers(1, 12_000, size=(22_000, 9))
    lines = [f"{u} {' '.join(map(str, row))}\n" for u, row in enumerate(items.tolist())]
    path = write(tmp_path, "".join(lines))
    begin = time.process_time()
    assert load(path).num_interactions == 198_000
    assert time.process_time() - begin < 1
