"""``adarec-fast data``, ``info`` and the way errors are shown."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from adarec_fast.cli import app
from adarec_fast.cli.console import command
from adarec_fast.data import DataError, load
from adarec_fast.data.download import FILES, RemoteFile

runner = CliRunner()
CONTENT = b"".join(b"%d 1 2 3 4 5\n" % user for user in range(1, 2000))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on loopback that has the file `beauty` and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/files/Beauty.txt"
            body = CONTENT if found else b"not here"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep the tests' output clean."""

    remote = RemoteFile("Beauty.txt", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(FILES, "beauty", remote)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/files"
        http.shutdown()
        thread.join()


def test_get_downloads_and_prints_the_path(server: str, tmp_path: Path) -> None:
    shown = runner.invoke(
        app, ["data", "get", "beauty", "--out", str(tmp_path), "--base-url", server]
    )
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.strip() == str(tmp_path / "Beauty.txt")
    assert (tmp_path / "Beauty.txt").read_bytes() == CONTENT


def test_get_of_a_missing_file_is_one_line(server: str, tmp_path: Path) -> None:
    shown = runner.invoke(
        app,
        ["data", "get", "toys", "--out", str(tmp_path)],
        env={"ADAREC_FAST_DATA_URL": server},
    )
    assert shown.exit_code == 2
    assert shown.stdout == ""
    assert "Toys_and_Games.txt: the server answered 404" in shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_get_of_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    shown = runner.invoke(app, ["data", "get", "books", "--out", str(tmp_path)])
    assert shown.exit_code == 2
    assert "beauty" in shown.output


@pytest.mark.parametrize("name", ["out.txt", "out.csv"])
def test_synth_writes_what_load_reads(tmp_path: Path, name: str) -> None:
    path = tmp_path / "made" / name
    arguments = ["data", "synth", str(path), "--users", "50", "--items", "40", "--seed", "3"]
    shown = runner.invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    data = load(path)
    assert (data.num_users, data.report.format) == (
        50,
        "csv" if name.endswith("csv") else "sequences",
    )
    first = path.read_bytes()
    runner.invoke(app, arguments)
    assert path.read_bytes() == first


def test_inspect_prints_json_or_a_table(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    rows = [f"u{u},[b]{i},{i}" for u in range(6) for i in range(3 + u % 2)] + ["u9,[b]0,1"]
    path.write_text("who,what,when\n" + "\n".join(rows) + "\n")
    columns = ["--user-column", "who", "--item-column", "what", "--time-column", "when"]
    shown = runner.invoke(app, ["data", "inspect", str(path), "--json", *columns])
    assert shown.exit_code == 0, shown.output
    facts = json.loads(shown.stdout)
    assert (facts["users"], facts["report"]["num_dropped_short"]) == (6, 1)
    table = runner.invoke(app, ["data", "inspect", str(path), *columns])
    assert "1 users with too short a history" in table.stdout
    assert "[b]0 (6)" in table.stdout
    assert "repeats kept       none" in table.stdout


def test_inspect_and_train_say_what_was_read_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"2020-01-{1 + i:02d},c{u},{i}" for u in range(9) for i in range(3 + u % 3)]
    Path("d.csv").write_text("t_dat,customer_id,article_id\n" + "\n".join(
        [*rows, "2020-01-01,once,1", rows[0]]))  # fmt: skip
    shown = runner.invoke(app, ["data", "inspect", "d.csv"], env={"COLUMNS": "100"})
    words = " ".join(shown.stdout.split())
    assert "users from 'customer_id' (by its name) items from 'article_id' (by its name)" in words
    assert "sorted by 't_dat' (by its name, such as 2020-01-01); 1 tie and keep the order" in words
    assert "ids users text, items whole numbers" in words
    report = json.loads(runner.invoke(app, ["data", "inspect", "d.csv", "--json"]).stdout)["report"]
    assert report["columns"]["time"] == "t_dat"
    shown = runner.invoke(app, ["data", "inspect", "d.csv", "--time-column", "file-order"])
    words = " ".join(shown.stdout.split())
    assert "the order of the rows (file-order was asked for)" in words
    shown = runner.invoke(app, ["train", "--data", "d.csv", "--epochs", "1", "--hidden-size", "8"])
    assert shown.exit_code == 0, shown.output
    assert "read: users from 'customer_id' (by its name), items from" in shown.stdout
    assert "left out: 1 users with too short a history" in shown.stdout
    Path("p.txt").write_text("1 2\n1 3\n1 4\n")
    shown = runner.invoke(app, ["data", "inspect", "p.txt"], env={"COLUMNS": "100"})
    assert "the order of the lines, since pairs have no times" in shown.stdout


def test_inspect_counts_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a long path takes the table's width
    path = Path("d.txt")
    path.write_text("1 5 5 6 5 5\n2 6 7 8\n3 8 9 8\n")
    shown = runner.invoke(app, ["data", "inspect", str(path), "--json"])
    assert json.loads(shown.stdout)["repeats"] == {"all": 4, "consecutive": 2}
    table = runner.invoke(app, ["data", "inspect", str(path)], env={"COLUMNS": "100"})
    words = " ".join(table.stdout.split())
    assert "4 of an item in its history, 2 of them in a row (--deduplicate)" in words


def test_inspect_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.txt"
    path.write_text("1 2 3 4\n2\n")
    shown = runner.invoke(app, ["data", "inspect", str(path)])
    assert shown.exit_code == 2
    assert "broken.txt:2" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert shown.stdout == ""


def test_info_is_json_on_demand() -> None:
    shown = runner.invoke(app, ["info", "--json"])
    assert shown.exit_code == 0, shown.output
    facts = json.loads(shown.stdout)
    assert set(facts) == {"versions", "machine", "compilers", "devices", "trouble", "ops"}
    for row in facts["ops"]:
        assert row["backend"] in row["available"]
        assert row["reason"]
    readable = runner.invoke(app, ["info"], env={"COLUMNS": "120"})
    assert readable.exit_code == 0
    assert "hda_trajectory" in readable.stdout


def failing(error: BaseException) -> Typer:
    app = Typer(pretty_exceptions_enable=False)

    @app.command()
    @command
    def fail() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("x.txt:3: '[red]a' is no integer"), 2),
        (OSError(28, "No space left on device", "run"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_expected_errors_are_one_line_and_a_code(error: BaseException, code: int) -> None:
    shown = runner.invoke(failing(error), [])
    assert shown.exit_code == code
    assert shown.stderr.strip().count("\n") == 0
    if code != 130:
        assert shown.stderr.startswith("error: ")
        assert str(error) in shown.stderr


@pytest.mark.parametrize("environment", [{}, {"ADAREC_FAST_DEBUG": "1"}])
def test_debug_shows_the_traceback(environment: dict[str, str]) -> None:
    arguments = [] if environment else ["--debug"]
    shown = runner.invoke(failing(DataError("wrong")), arguments, env=environment)
    assert isinstance(shown.exception, DataError)


def test_unexpected_errors_keep_their_traceback() -> None:
    shown = runner.invoke(failing(ZeroDivisionError("bug")), [])
    assert isinstance(shown.exception, ZeroDivisionError)
