"""Every bad input is refused with file and line, or argument and value."""

from __future__ import annotations

import contextlib
import importlib.util
import struct
import sys
import tempfile
from pathlib import Path

import pytest
from fuzz_readers import SEEDS, TOKENS, parquet_seeds
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adarec_fast.data import DataError, load

PARQUET = parquet_seeds() if importlib.util.find_spec("polars") else []


def write(folder: Path, content: str | bytes, name: str = "data.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


INTER = "user_id:token\titem_id:token\ttimestamp:float\n"
LARGE = b"1" + b"0" * 400
FILES: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "d.txt", r"d\.txt: the file is empty"),
    "blank": (b" \n\n", "d.txt", r"d\.txt: the file is empty"),
    "only a byte order mark": (b"\xef\xbb\xbf\n", "d.csv", r"d\.csv: the file is empty"),
    "latin-1": (b"1 2 3 4\n2 \xe9 5 6\n", "d.txt", r"d\.txt:2: not UTF-8 \(byte 0xe9"),
    "a time of 401 digits among floats": (
        b'{"user": 1, "item": 2, "time": %b}\n{"user": 1, "item": 3, "time": 1e999}' % LARGE,
        "d.jsonl", r"d\.jsonl:2: time inf is not a finite number",
    ),
    "an exponent that nothing holds": (
        b'[{"user": 1, "item": 2, "time": 11e992184467440737095516}]', "d.json",
        r"d\.json, element 0: time inf is not a finite number",
    ),
    "an item of such an exponent": (
        b"[[1, 11e992184467440737095516]]", "d.json", r"inf \(number 2\) is a float; an id must be",
    ),
    "NUL": (b"1 2 3 4\n2 3\0 5 6\n", "d.txt", r"d\.txt:2: a NUL byte"),
    "no item": (b"1 2 3 4\n\n2\n3 4 5 6\n", "d.txt", r"d\.txt:3: user '2' but no item"),
    "commas": (b"1,2\n1,3\n", "d.txt", r"d\.txt:1: user '1,2' but no item; .*user_id,item_id"),
    "stray item": (
        b"1 2 3 4\n2 3 4x 6\n",
        "d.txt",
        r"d\.txt:2: item id '4x' is not an integer, as the other item ids are",
    ),
    "stray user": (
        b"1 2 3 4\n2 3 4 6\n3 4 5 6\nuser4 1 2 3\n",
        "d.txt",
        r"d\.txt:4: user id 'user4' is not an integer",
    ),
    "decimal item": (b"1 2 3 4\n2 3 4.5 6\n", "d.txt", r"d\.txt:2: item id '4\.5' is not"),
    "header over pairs": (b"u i\n1 2\n1 3\n1 4\n", "d.txt", r"d\.txt:1: user id 'u' is not"),
    "user again": (
        b"1 2 3 4\n2 3 4 5\n\n1 7 8 9\n",
        "d.txt",
        r"d\.txt:4: user '1' again, already on line 1",
    ),
    "ragged inter": (
        (INTER + "1\t2\t3\n1\t2\n").encode(),
        "d.inter",
        r"d\.inter:3: 2 tab-separated fields, the header has 3",
    ),
    "inter without item": (
        b"user_id:token\titem_id_list:token_seq\n1\t2 3\n",
        "d.inter",
        r"which column holds the item ids; name it with item=.*'user_id', 'item_id_list'",
    ),
    "inter without header": (b"1\t2\t3\n", "d.inter", r"d\.inter:1: '1.t2.t3' is no header"),
    "inter without rows": (INTER.encode(), "d.inter", "a header but no interaction"),
    "inter, stray id": ((INTER + "1\t2\t3\n1\t5\t3\n1\tx\t4\n").encode(), "d.inter",
                        r"d\.inter:4: item id 'x' is not an integer"),
    "inter, bad time": ((INTER + "1\t2\t3\n1\t2\tnoon\n").encode(), "d.inter",
                        r"d\.inter:3: time 'noon' is not a finite number"),
    "inter, infinite time": ((INTER + "1\t2\tinf\n").encode(), "d.inter",
                             r"d\.inter:2: time 'inf' is not a number or an ISO 8601"),
    "inter, mixed times": ((INTER + "1\t2\t2024-01-01\n1\t2\tx\n").encode(), "d.inter",
                           r"d\.inter:3: time 'x' is not an ISO 8601 date and time, as the first"),
    "jsonl": (b'{"user": 1, "item": 2}\n{"user": 1\n', "d.jsonl", r"d\.jsonl:2: not JSON"),
    "jsonl, a list": (b'{"user": 1, "item": 2}\n[1, 2]\n', "d.jsonl",
                      r"d\.jsonl:2: list, not a JSON object"),
    "jsonl, float id": (b'{"user": 1, "item": 2}\n{"user": 1, "item": 2.5}\n', "d.jsonl",
                        r"d\.jsonl:2: 'item' is 2\.5; ids must be int or str"),
    "jsonl, bad time": (b'{"user": 1, "item": 2, "time": 1}\n{"user": 1, "item": 2, "time": []}\n',
                        "d.jsonl", r"d\.jsonl:2: time \[\] is not a number, as the first is"),
    "jsonl, true time": (b'{"user": 1, "item": 2, "time": true}\n', "d.jsonl",
                         r"d\.jsonl:1: time True is not a number or an ISO 8601 text"),
    "jsonl, huge id": (b'{"user": 1, "item": 2}\n{"user": 1, "item": 18446744073709551616}\n',
                       "d.jsonl", r"d\.jsonl:2: 'item' is 18446744073709551616; .* 64 bits"),
    "jsonl, surrogate": (b'{"user": 1, "item": "\\ud800"}\n', "d.jsonl",
                         r"d\.jsonl:1: 'item' is '\\ud800'; .* valid Unicode"),
    "jsonl, too deep": (b'{"user": 1, "item": 2}\n{"user": ' + b"[" * 200_000, "d.jsonl",
                        r"d\.jsonl:2: not JSON"),
    "jsonl, no user": (b'{"name": 1, "item": 2}\n', "d.jsonl",
                       r"d\.jsonl:1: cannot tell which column holds the user ids"),
    "parquet": (b"PAR1 and nothing more", "d.parquet", r"not a readable Parquet file"),
    "csv, more fields": (b"user,item\n1,2\n1,2,3\n", "d.csv",
                         r"d\.csv:3: 3 fields, the header has 2"),
    "csv, stray id": (b'user,item,note\n1,2,"a\nb"\n1,3,\n1,x,\n', "d.csv",
                      r"d\.csv:5: item id 'x' is not an integer"),
    "csv, open quote": (b'user,item\n1,2\n1,"3\n1,4\n', "d.csv",
                        r"d\.csv:3: unexpected end of data"),
    "csv, columns": (b"a,b\n1,2\n", "d.csv",
                     r"user ids; name it with user=… \(--user-column\); columns: 'a', 'b'"),
    "csv, mixed times": (b"user,item,ts\n1,2,3\n1,2,2020-01-01\n", "d.csv",
                         r"d\.csv:3: time '2020-01-01' is not a finite number, as the first is"),
    "csv, mixed times, dates first": (
        b"user,item,ts\n1,2,2020-01-01\n1,2,3\n", "d.csv",
        r"d\.csv:3: time '3' is not an ISO 8601 date and time, as the first is \(2020-01-01\)"),
    "csv, no rows": (b"user,item\n", "d.csv", r"d\.csv: there is a header but no row"),
    "csv, bad time": (b"user,item,ts\n1,2,3\n1,2,soon\n", "d.csv",
                      r"d\.csv:3: time 'soon' is not a finite number"),
    "tsv, more fields": (b"user\titem\n1\t2\n1\t2\t\"3\n", "d.tsv",
                         r"d\.tsv:3: 3 fields, the header has 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_bad_files(tmp_path: Path, case: str) -> None:
    content, name, message = FILES[case]
    if name.endswith((".csv", ".tsv")):
        pytest.importorskip("polars")
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, content, name))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.txt: there is no such file"):
        load(tmp_path / "absent.txt")
    with pytest.raises(DataError, match="is a folder; give the path of a file"):
        load(str(tmp_path))


def test_stray_ids_late_in_a_large_file(tmp_path: Path) -> None:
    lines = [f"{user} 1 2 3\n" for user in range(5000)]
    lines[4321] = "4321 1 2 three\n"
    with pytest.raises(DataError, match=r"data\.txt:4322: item id 'three' is not an integer"):
        load(write(tmp_path, "".join(lines)))


def test_formats_and_columns_that_do_not_fit(tmp_path: Path) -> None:
    path = write(tmp_path, "1 2 3 4\n")
    with pytest.raises(DataError, match="format='xml' must be one of 'auto', 'sequences'"):
        load(path, format="xml")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data\.txt:1: 4 fields; in format 'pairs'"):
        load(path, format="pairs")
    with pytest.raises(DataError, match="user='u': format 'sequences' has no named columns"):
        load(path, format="sequences", user="u")
    with pytest.raises(DataError, match="user='u' given, but the first line '1 2 3 4' names no"):
        load(path, user="u")
    with pytest.raises(DataError, match="format='csv' is for files; the source is a list"):
        load([[1, 2, 3]], format="csv")
    with pytest.raises(DataError, match="item='i': format 'lists' has no named columns"):
        load([[1, 2, 3]], item="i")
    csv_file = write(tmp_path, "user,item\n1,2\n", "d.csv")
    pytest.importorskip("polars")
    with pytest.raises(DataError, match="there is no column 'when'; columns: 'user', 'item'"):
        load(csv_file, time="when")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (5, "source is a int; give a path"),
        ([], "source is empty"),
        ({}, "source is empty"),
        ([[1, 2, 3], 4], r"source\[1\] is a int; each history must be a list"),
        ({"a": "xyz"}, r"source\['a'\] is a str; each history must be a list"),
        ([[1, 2, b"3"]], "b'3' .* is a bytes; an id must be an int or a str"),
        ([[1, 2, 2.5]], r"2\.5 .* is a float"),
        ({1.5: [1, 2, 3]}, r"user ids: 1\.5"),
        ({1: [1], "1": [2]}, "id '1' occurs twice"),
        ([[]], "all 1 users have fewer than 3 items"),
    ],
)
def test_bad_lists(source: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(source)


def test_bad_frames() -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    good = {"user": [1, 1, 1], "item": [1, 2, 3]}
    for library in (pandas, polars):
        frame = library.DataFrame
        with pytest.raises(DataError, match="columns: 'user', 'thing'"):
            load(frame({"user": [1], "thing": [2]}))
        with pytest.raises(DataError, match=r"row 2: 'item' is 2\.5; ids must be int or str"):
            load(frame({**good, "item": [1.0, 2.0, 2.5]}))
        with pytest.raises(DataError, match="data frame: no row"):
            load(frame({"user": [], "item": []}))
        with pytest.raises(DataError, match="row 1: time inf is not a finite number"):
            load(frame({**good, "time": [1.0, float("inf"), 2.0]}))
        with pytest.raises(DataError, match="row 1: time 'x' is not"):
            load(frame({**good, "time": ["2024-01-01", "x", "y"]}))
        with pytest.raises(DataError, match=r"row 0: 'item' .*ids must be int or str"):
            load(frame({**good, "item": [True, False, True]}))
    with pytest.raises(DataError, match="the column 'item' occurs twice"):
        load(pandas.DataFrame([[1, 2, 3]], columns=["user", "item", "item"]))
    with pytest.raises(DataError, match=r"source is a polars\.LazyFrame; give .* DataFrame"):
        load(polars.DataFrame(good).lazy())


def test_without_its_library_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    path = write(tmp_path, "user,item\n1,2\n", "d.csv")
    with pytest.raises(DataError, match=r"needs polars: pip install adarec_fast\[data\]"):
        load(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"Parquet needs pyarrow: pip install"):
        load(write(tmp_path, b"PAR1....PAR1", "d.bin"))


def read_or_refused(content: bytes, name: str) -> None:
    """Nothing but DataError comes out, and it names the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), content, name)
        problem, interactions = "", 1
        try:
            interactions = load(path, min_length=1).num_interactions
        except DataError as error:
            problem = str(error)
        assert interactions > 0
        assert not problem or problem.startswith(folder)


@settings(deadline=None, max_examples=60)
@given(content=st.binary(max_size=60) | st.text('12 \t\n,x:{}"', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    assume(b"PAR1" not in content)
    for name in ("d.txt", "d.inter", "d.csv", "d.tsv", "d.jsonl"):
        read_or_refused(content, name)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(data: st.DataObject) -> None:
    """Good files with a piece exchanged, cut out or doubled; ``fuzz_readers.py`` does it longer."""
    seeds = [(name, seed) for name, files in SEEDS.items() for seed in files]
    if importlib.util.find_spec("polars") and importlib.util.find_spec("pyarrow"):
        seeds += [("parquet", seed) for seed in PARQUET]
    name, seed = data.draw(st.sampled_from(seeds))
    begin = data.draw(st.integers(0, len(seed)))
    end = data.draw(st.integers(begin, min(len(seed), begin + 8)))
    token = st.sampled_from(TOKENS).map(lambda text: text.encode().decode("unicode_escape"))
    piece = data.draw(st.binary(max_size=8) | token.map(lambda text: text.encode("latin-1")))
    read_or_refused(seed[:begin] + piece + seed[end:], f"d.{name}")


def test_parquet_cut_at_every_length() -> None:
    """A cut file made polars' own reader panic in Rust, which no ``except Exception`` catches."""
    pytest.importorskip("polars")
    pytest.importorskip("pyarrow")
    whole = PARQUET[0]
    for length in range(0, len(whole), 7):
        with pytest.raises(DataError):
            load_bytes(whole[:length])
    # The last eight bytes are the footer's length and the magic; before them, the footer.
    (footer,) = struct.unpack("<I", whole[-8:-4])
    for place in range(len(whole) - 8 - footer, len(whole)):
        with contextlib.suppress(DataError):
            load_bytes(whole[:place] + bytes([whole[place] ^ 0x7F]) + whole[place + 1 :])
    for claimed in (0, 2**31 - 1, 2**32 - 1):
        with pytest.raises(DataError):
            load_bytes(whole[:-8] + struct.pack("<I", claimed) + b"PAR1")


def load_bytes(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        load(write(Path(folder), content, "d.parquet"), min_length=1)


def test_parquet_of_more_rows_than_bytes_bear_out(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    pytest.importorskip("pyarrow")
    rows = 2_000_000  # all alike, so that a few hundred bytes hold them
    frame = polars.select(user=polars.repeat(1, rows), item=polars.repeat(2, rows))
    path = tmp_path / "d.parquet"
    frame.write_parquet(path)
    with pytest.raises(DataError, match=r"claims 2000000 rows in \d+ bytes"):
        load(path)


def test_parquet_columns_that_are_no_ids(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    pytest.importorskip("pyarrow")
    path = tmp_path / "d.parquet"
    for items, message in (
        ([[[1]], [[2]]], "'item' has type large_list<.*>; ids must be int or str"),
        ([{"a": 1}, {"a": 2}], "'item' has type struct<.*>; ids must be int or str"),
        ([True, False], "'item' has type bool; ids must be int or str"),
        ([1.5, 2.0], "row 0: 'item' is 1.5; ids must be int or str"),
        ([None, None], "'item' has type null"),
    ):
        polars.DataFrame({"user": [1, 1], "item": items}).write_parquet(path)
        with pytest.raises(DataError, match=message):
            load(path)
    empty = polars.DataFrame({"user": [], "item": []}, schema={"user": int, "item": int})
    empty.write_parquet(path)
    with pytest.raises(DataError, match="no row"):
        load(path)
