"""Files as people have them: compressed, in other encodings and separators, several, of events."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adarec_fast.cli import app
from adarec_fast.config import DataConfig
from adarec_fast.data import DataError, InteractionData, load
from adarec_fast.data.configured import load_data
from adarec_fast.data.text import JoinedText

TABLE = "user_id,item_id,ts\nu,a,3\nu,b,2\nu,c,1\nv,a,1\n"
EXPECTED = {"u": ["c", "b", "a"], "v": ["a"]}


def histories(data: InteractionData) -> dict[Any, list[Any]]:
    return {
        data.users.decode([u])[0]: data.items.decode(data.sequence(u))
        for u in range(data.num_users)
    }


def read(folder: Path, content: str | bytes, name: str = "d.csv", **options: Any) -> dict[Any, Any]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return histories(load(path, min_length=1, **options))


@pytest.fixture(autouse=True)
def _with_polars() -> None:
    pytest.importorskip("polars")


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zstd(content: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


# --- compression and encodings --------------------------------------------------------------------


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, lzma.compress, zstd, lambda x: zipped({"in/x.csv": x}),
             lambda x: zipped({"x.csv.gz": gzip.compress(x), "__MACOSX/._x.csv": b"x"})],
    ids=["gzip", "bzip2", "xz", "zstd", "zip", "gzip in zip"],
)  # fmt: skip
def test_compressed(tmp_path: Path, pack: Any) -> None:
    packed = pack(TABLE.encode())
    assert read(tmp_path, packed, "no-matter-what") == EXPECTED
    data = load(tmp_path / "no-matter-what", min_length=1)
    assert data.name == "no-matter-what"
    # Columns that are not known by their names: the extension inside tells the format.
    other = pack(TABLE.replace("user_id", "who").encode())
    assert read(tmp_path, other, "d.csv.gz", user="who") == EXPECTED
    for length in (len(packed) // 3, len(packed) - 5):
        with pytest.raises(DataError, match=r"d\.gz: (cannot be unpacked|the archive)"):
            read(tmp_path, packed[:length], "d.gz")
    with pytest.raises(DataError, match="the file is empty"):
        read(tmp_path, pack(b"\n"), "d.gz")


def test_parquet_may_be_compressed(tmp_path: Path) -> None:
    import polars

    buffer = io.BytesIO()
    polars.read_csv(TABLE.encode()).write_parquet(buffer)
    assert read(tmp_path, gzip.compress(buffer.getvalue())) == EXPECTED


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = TABLE.replace("v", "ü")
    assert read(tmp_path, text.encode(encoding)) == {"u": ["c", "b", "a"], "ü": ["a"]}
    marked = ("\ufeff" if encoding.endswith("e") else "") + text
    assert read(tmp_path, gzip.compress(marked.encode(encoding)))["ü"] == ["a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped({"[Content_Types].xml": b"x", "xl/workbook.xml": b"y"}), "an Excel workbook"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), r"an Excel workbook \(\.xls\)"),
        (zipped({"a.csv": b"1", "b.csv": b"2"}), r"holds 2 files \('a\.csv', 'b\.csv'\)"),
        (zipped({}), r"holds 0 files \(none\)"),
        (b"<!DOCTYPE html><html>Not found</html>", "a web page, not data"),
        (b"x" * 257 + b"ustar" + bytes(250), "a tar archive; unpack it"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(20), "a 7z archive"),
        (b"\x80\x04\x95" + bytes(20), "a pickle"),
        (b"SQLite format 3\0" + bytes(20), "an SQLite database"),
        (b"\xff\xfea", "not utf-16"),
    ],
)
def test_what_is_no_data_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"d\.bin: .*{message}"):
        read(tmp_path, content, "d.bin")


def test_zstd_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = zstd(TABLE.encode())
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"zstd needs pyarrow: pip install adarec_fast\[data\]"):
        read(tmp_path, packed)


# --- separators, headers, quotes ------------------------------------------------------------------


@pytest.mark.parametrize("mark", [",", ";", "|", "\t", "::", " ", " \t ", " ; ", "\x01", ", "])
@pytest.mark.parametrize("name", ["d.txt", "d.csv"])
def test_separators(tmp_path: Path, mark: str, name: str) -> None:
    text = TABLE.replace(",", mark)
    assert read(tmp_path, text, name) == EXPECTED
    assert read(tmp_path, text.replace("\n", "\r\n"), name) == EXPECTED
    body = "\n" + text.split("\n", 1)[1]
    assert read(tmp_path, body, name, columns="user,item,time") == EXPECTED
    assert read(tmp_path, body, name, columns=["x", "y", "_"], user="x", item="y") == {
        "u": ["a", "b", "c"], "v": ["a"]
    }  # fmt: skip


def test_other_separators(tmp_path: Path) -> None:
    text = TABLE.replace(",", "~")
    assert read(tmp_path, text, separator="~") == EXPECTED
    assert read(tmp_path, TABLE.replace(",", "\t"), separator="tab") == EXPECTED
    assert read(tmp_path, "sep=;\r\n" + TABLE.replace(",", ";")) == EXPECTED  # of Excel
    # A comma in an id does not make it the separator.
    assert read(tmp_path, "user_id;item_id\nu;a,1\nu;b\n") == {"u": ["a,1", "b"]}
    for bad in ("", '"', "\n", "→"):
        with pytest.raises(DataError, match=r"separator=.* must be text between two fields"):
            read(tmp_path, text, separator=bad)
    with pytest.raises(DataError, match="is for text tables, not for format 'jsonl'"):
        read(tmp_path, '{"user": 1, "item": 2}', format="jsonl", separator=";")


def test_no_header(tmp_path: Path) -> None:
    for text, message in (
        ("1,10,5\n1,11,4\n", r"d\.csv:1: the first line, '1', '10', '5', names no columns; .*"
                             r"--columns user,item,time"),
        ("1::10::5\n1::11::4\n", r"fields between '::' need .*--columns user,item,time"),
        ("1 10 5\n1 11 4\n", r"columns=…, --columns user,item,time"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            read(tmp_path, text, "d.csv" if "," in text else "d.dat")
    with pytest.raises(DataError, match="'user_id', 'item_id', 'ts', names the columns already"):
        read(tmp_path, TABLE, columns="user,item,time")
    with pytest.raises(DataError, match="names 2, but with no separator known has the first line"):
        read(tmp_path, "1,2,3\n", columns="user,item")
    with pytest.raises(DataError, match="1: 3 fields, but columns='user,item' names 2"):
        read(tmp_path, "1,2,3\n", columns="user,item", separator=",")
    for bad in ("user", "user,user"):
        with pytest.raises(DataError, match="must name each column of a file"):
            read(tmp_path, TABLE, columns=bad)
    with pytest.raises(DataError, match=r"d\.csv:2: item id 'x' is not an integer"):
        read(tmp_path, "1,10\n1,x\n1,11\n", columns="user,item")
    with pytest.raises(DataError, match="columns='a,b' is for files; the source is a list"):
        load([[1, 2, 3]], columns="a,b")


def test_quotes_inside_of_fields(tmp_path: Path) -> None:
    text = 'user,item,ts,title\nu,a,2,5" pipe\nu,b,1,x\nu,"c,""d""",0,"6"" pipe"\n'
    assert read(tmp_path, text) == {"u": ['c,"d"', "b", "a"]}
    # Two of them on two lines, which a reader that counts quotes takes for one field.
    assert read(tmp_path, 'user,item\nu,5" pipe\nv,6" pipe\n') == {"u": ['5" pipe'],
                                                                 "v": ['6" pipe']}  # fmt: skip
    assert read(tmp_path, '"user"\t"item"\n"u"\t"a\tb"\n') == {"u": ["a\tb"]}
    assert read(tmp_path, 'user\titem\nu\t5"\nu\t"x\n') == {"u": ['5"', '"x']}
    long = "x" * 200_000
    assert read(tmp_path, f'user,item,t\nu,a,5" pipe\nu,b,"{long}"\n') == {"u": ["a", "b"]}
    with pytest.raises(DataError, match=r"d\.csv:3: unexpected end of data"):
        read(tmp_path, 'user,item,t\nu,a,5" pipe\nu,b,"open\nu,c,x\n')
    with pytest.raises(DataError, match=r"d\.csv:3: 4 fields, the header has 3"):
        read(tmp_path, 'user,item,t\nu,a,5" pipe\nu,b,x,y\n')
    with pytest.raises(DataError, match=r"d\.csv:4: item id 'x' is not an integer"):
        read(tmp_path, 'user,item,t\nu,1,5" pipe\nu,2,y\nu,x,y\n')


# --- JSON and lists -------------------------------------------------------------------------------


def test_json(tmp_path: Path) -> None:
    rows = [{"user": 1, "item": 2, "ts": 2}, {"ts": 1, "user": 1, "item": 3}]
    for indent in (None, 2):
        assert read(tmp_path, json.dumps(rows, indent=indent), "d.txt") == {1: [3, 2]}
        named = json.dumps({"u": ["a", "b"], "v": ["c"]}, indent=indent)
        assert read(tmp_path, named, "d.json") == {"u": ["a", "b"], "v": ["c"]}
        assert read(tmp_path, json.dumps([[1, 2], [3]], indent=indent)) == {0: [1, 2], 1: [3]}
    with pytest.raises(DataError, match=r"d\.json:1: not JSON"):
        read(tmp_path, '[{"user": 1},', "d.json")
    with pytest.raises(DataError, match=r"neither a JSON array of objects"):
        read(tmp_path, "[1, 2]", "d.json")
    with pytest.raises(DataError, match=r"element 1: 'item' is 2\.5; ids must be int or str"):
        read(tmp_path, '[{"user": 1, "item": 2}, {"user": 1, "item": 2.5}]', "d.json")


def test_lists_in_a_cell(tmp_path: Path) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    columns = {"user": ["u", "v", "w"], "item": [["a", "b", None], ["c"], []]}
    expected = {"u": ["a", "b"], "v": ["c"]}
    assert histories(load(pandas.DataFrame(columns), min_length=1)) == expected
    assert histories(load(polars.DataFrame(columns), min_length=1)) == expected
    path = tmp_path / "d.parquet"
    polars.DataFrame(columns).write_parquet(path)
    assert histories(load(path, min_length=1)) == expected
    lines = [json.dumps({"user": u, "basket": i, "ts": 9 - n})
             for n, (u, i) in enumerate([("u", ["b"]), ("v", ["c"]), ("u", ["a"])])]  # fmt: skip
    assert read(tmp_path, "\n".join(lines), "d.jsonl", item="basket") == {"u": ["a", "b"],
                                                                         "v": ["c"]}  # fmt: skip
    timed = '{"user": 1, "item": [5, 6, 7], "ts": [3, 1, 2]}'
    assert read(tmp_path, timed, "d.jsonl") == {1: [6, 7, 5]}
    with pytest.raises(DataError, match="'ts' must list as many times as 'item' lists items, 2"):
        read(tmp_path, '{"user": 1, "item": [5, 6], "ts": [3]}', "d.jsonl")
    for cell in ('"[5, 6]"', "[5 6]", "\"['5', '6']\""):
        assert read(tmp_path, f"user,item\n1,{cell}\n2,[7]\n") == {1: [5, 6], 2: [7]}
    inter = "user_id:token\titem_list:token_seq\nu\ta b\nv\tc\n"
    assert read(tmp_path, inter, "d.inter", item="item_list") == expected


# --- several files, events, the command line ------------------------------------------------------


def test_several_files(tmp_path: Path) -> None:
    parts = {"p-1.csv": TABLE, "p-2.csv": "item_id,ts,user_id\nz,0,u\n,1,v\n",
             "p-10.csv": "user_id;item_id;ts\nu;y;9\n", "p-3.csv": "user_id,item_id,ts\n",
             "p-4.csv": ""}  # fmt: skip
    for name, content in parts.items():
        (tmp_path / name).write_text(content)
    data = load(tmp_path / "p-*.csv", min_length=1)
    assert histories(data) == {"u": ["z", "c", "b", "a", "y"], "v": ["a"]}
    assert data.name == "p"
    assert data.report is not None
    assert (data.report.num_read, data.report.num_missing_items) == (7, 1)
    listed = load([tmp_path / "p-1.csv", str(tmp_path / "p-10.csv")], min_length=1)
    assert histories(listed) == {"u": ["c", "b", "a", "y"], "v": ["a"]}
    # Ids are text if those of one file are.
    (tmp_path / "p-5.csv").write_text("user_id,item_id,ts\n1,2,3\n")
    assert histories(load([tmp_path / "p-5.csv", tmp_path / "p-1.csv"], min_length=1))["1"] == ["2"]
    # Without times, files follow each other by the numbers in their names.
    for number in (2, 10, 1):
        (tmp_path / f"h{number}.txt").write_text(f"u a{number}\nv b\nu c\n")
    assert histories(load(tmp_path / "h*.txt", min_length=1))["u"] == [
        "a1", "c", "a2", "c", "a10", "c"
    ]  # fmt: skip
    (tmp_path / "bad-1.csv").write_text("user_id,item_id\n1,2\n1,3\n")
    (tmp_path / "bad-2.csv").write_text("user_id,item_id\n1,4\n1,x\n")
    with pytest.raises(DataError, match=r"bad-2\.csv:3: item id 'x' is not an integer"):
        load(tmp_path / "bad-*.csv", min_length=1)
    with pytest.raises(DataError, match=r"its columns .* are not those of"):
        load([tmp_path / "p-1.csv", tmp_path / "bad-1.csv"], min_length=1)
    with pytest.raises(DataError, match=r"absent\*: no file matches"):
        load(tmp_path / "absent*")


def test_several_files_are_one_cut_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = "user,item,did,ts\n7,3,buy,2\n7,4,look,9\n8,5,buy,1\n,6,buy,5\n7,5,buy,1\n8,3,buy,0\n"
    for name, kept in (("numbers", ""), ("text", "x")):
        rows = whole.replace(",3,", f",{kept}3,").splitlines(keepends=True)
        (tmp_path / f"{name}.csv").write_text("".join(rows))
        for part, begin in enumerate((1, 3, 5)):
            cut = "".join([rows[0], *rows[begin : begin + 2]])
            (tmp_path / f"{name}-{part}.csv").write_text(cut)
        choices: list[dict[str, Any]] = [{}, {"event": "did", "keep": "buy"}, {"ids": "text"}]
        for options in choices:
            one = load(tmp_path / f"{name}.csv", min_length=1, **options)
            several = load(tmp_path / f"{name}-*.csv", min_length=1, **options)
            assert histories(several) == histories(one)
            assert several.items.ids == one.items.ids
    # Columns of numbers are joined as such.
    for part in range(3):
        path = tmp_path / f"numbers-{part}.csv"
        path.write_text(path.read_text().replace("\n,", "\n9,"))

    def made(_: JoinedText) -> list[str]:
        raise AssertionError("Python strings of numbers")

    monkeypatch.setattr(JoinedText, "strings", made)
    assert histories(load(tmp_path / "numbers-*.csv", min_length=1))[7] == [5, 3, 4]


def test_event_logs(tmp_path: Path) -> None:
    text = "user,item,event,ts\nu,a,view,3\nu,b, buy ,2\nu,c,buy,1\nu,d,cart,0\n"
    options: dict[str, Any] = {"event": "event", "keep": "buy, cart"}
    assert read(tmp_path, text, **options) == {"u": ["d", "c", "b"]}
    report = load(tmp_path / "d.csv", min_length=1, **options).report
    assert report is not None
    assert (report.num_read, report.num_other_events) == (4, 1)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"user": [1, 1, 1], "item": [4, 5, 6], "kind": [1.0, 2.0, 1.0]})
    assert histories(load(frame, event="kind", keep=[1], min_length=1)) == {1: [4, 6]}
    with pytest.raises(DataError, match=r"'event' is nowhere 'sale', .*; it is 'view', 'buy'"):
        read(tmp_path, text, event="event", keep=["sale", "buy"])
    with pytest.raises(DataError, match="event='event': say which of its values count with keep"):
        read(tmp_path, text, event="event")
    with pytest.raises(DataError, match="keep='buy': names values of the event column"):
        read(tmp_path, text, keep="buy")
    with pytest.raises(DataError, match="there is no column 'what'; columns: 'user'"):
        read(tmp_path, text, event="what", keep="buy")


def test_on_the_command_line(tmp_path: Path) -> None:
    for day in (1, 2):
        rows = "".join(f"u;i{n};{('buy', 'see')[n % 2]};{day * 9 + n}\n" for n in range(6))
        (tmp_path / f"day-{day}.txt").write_text(rows + ";x;buy;1\n")
    options = ["--separator", ";", "--columns", "user,item,event,time", "--event-column", "event",
               "--keep", "buy"]  # fmt: skip
    files = [str(tmp_path / f"day-{day}.txt") for day in (1, 2)]
    for where in (files, [str(tmp_path / "day-*.txt")]):
        done = CliRunner().invoke(app, ["data", "inspect", *where, *options, "--json"])
        assert done.exit_code == 0, done.output
        facts = json.loads(done.stdout)
        assert facts["interactions"] == 6
        report = facts["report"]
        assert (report["num_read"], report["num_other_events"]) == (14, 6)
        assert report["num_missing_users"] == 2
    shown = CliRunner().invoke(app, ["data", "inspect", *files, *options]).stdout
    assert "2 interactions without a user id" in shown
    assert "6 rows of other events" in shown
    stored = DataConfig.create(data=files, separator=";", columns="user,item,event,time",
                               event_column="event", keep="buy").to_dict()  # fmt: skip
    assert load_data(json.loads(json.dumps(stored))).num_interactions == 6
