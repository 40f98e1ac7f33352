"""A terminal of 80 columns holds what is printed; ``--quiet``, ``--json`` and former names."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.text import Text
from typer.testing import CliRunner, Result

from adarec_fast.cli import app, console, serve
from adarec_fast.data import synthetic, write_csv

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_DATA = "--data events.csv --device cpu --log none"
_SMALL = f"{_DATA} --hidden-size 8 --num-layers 1 --backend packed --batch-size 64"
_FITTED = f"train {_DATA} --model popularity --run-dir runs"


def adarec(line: str) -> Result:
    done = CliRunner().invoke(app, shlex.split(line))
    assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
    return done


def shown(text: str) -> list[str]:
    """What stands in the lines of a terminal, one drawn over another among them."""
    return re.split(r"[\r\n]+", _CONTROL.sub("", text))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, which is where all commands run."""
    folder = tmp_path_factory.mktemp("width")
    write_csv(synthetic(num_users=50, num_items=40), folder / "events.csv")
    return folder


@pytest.fixture
def terminal(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for one in (console.out, console.err, console.said):
        monkeypatch.setattr(one, "_width", 80)
        monkeypatch.setattr(one, "_force_terminal", True)


# In order: the first two make the runs that the others read.
COMMANDS = [
    f"train {_SMALL} --max-depth 1 --epochs 1 --run-dir runs/shop",
    f"train {_SMALL} --model sasrec --epochs 1 --run-dir runs/backbone",
    "memory fit runs/backbone",
    "evaluate runs/shop --segments history --segments popularity --ks 1,5,10,20",
    "recommend runs/shop --user u00001 --user u00002 --k 3 --why",
    "recommend runs/shop --all-users --k 2 --format csv --out lists.csv",
    "similar runs/shop t0-s0-i000 --k 3",
    "compare runs/shop runs/backbone",
    f"sweep --sweep-dir sweep --model sasrec {_SMALL} --epochs 1 --grid dropout=0.1",
    "sweep --sweep-dir sweep --dry-run",
    "data inspect events.csv",
    "models",
    "info",
    "reproduce --list",
    "docs",
]


@pytest.mark.usefixtures("terminal")
def test_80_columns_hold_every_line() -> None:
    """In one test, since each command goes on with what another has made."""
    for line in COMMANDS:
        printed = shown(adarec(line).output)
        assert any(part.strip() for part in printed), line
        assert not [part for part in printed if len(part) > 80], line
        cut_off = [part for part in printed if re.search(r"\S…", part)]  # by rich
        assert not cut_off, line


@pytest.mark.usefixtures("terminal")
def test_a_service_says_where_it_is_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    model = SimpleNamespace(path=Path("runs/shop"), id="0123456789ab", items=range(40),
                            data=SimpleNamespace(num_users=50))  # fmt: skip
    service = SimpleNamespace(model=model, config=SimpleNamespace(root_path="/rec"))
    serve._announce(service, "http://127.0.0.1:8000")  # type: ignore[arg-type]
    said = shown(capsys.readouterr().err)
    assert "serving runs/shop on http://127.0.0.1:8000/rec," in said[0]
    assert max(map(len, said)) <= 80


@pytest.mark.usefixtures("terminal")
def test_prose_breaks_between_words_in_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "runs/" + "long" * 30
    text = console.words("the run is in [bold]{}[/], and " + "more words " * 10, path)
    console.tell(text)
    lines = shown(capsys.readouterr().out)
    assert [part for part in lines if len(part) > 80] == [path + ","]
    assert " ".join(lines).split() == text.plain.split()
    monkeypatch.setattr(console.said, "_force_terminal", False)
    console.tell(Text(text.plain))
    assert capsys.readouterr().out == text.plain + "\n"


def test_quiet_leaves_the_result_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    made = adarec(f"{_FITTED}/quiet --quiet")
    assert (made.stdout, made.stderr) == ("runs/quiet\n", "")
    told = adarec("recommend runs/quiet --all-users --k 2 --format csv --out quiet.csv --quiet")
    assert (told.stdout, told.stderr) == ("", "")
    assert len((place / "quiet.csv").read_text().splitlines()) == 101
    failed = CliRunner().invoke(app, ["evaluate", "nothing-here", "--quiet"])
    assert failed.exit_code == 2
    assert "error:" in failed.stderr
    adarec(f"{_FITTED}/loud")  # each command is asked for itself
    assert not console.said.quiet


def test_json_has_stdout_for_itself(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    trained = adarec(f"{_FITTED}/json --json")
    ended = json.loads(trained.stdout)
    assert (ended["status"], ended["run_dir"]) == ("finished", "runs/json")
    assert 0 <= ended["test"]["overall"]["NDCG@20"] <= 1
    assert "fitted" in trained.stderr
    swept = adarec(f"sweep --sweep-dir json {_DATA} --grid model=popularity --json")
    (row,) = json.loads(swept.stdout)
    assert row["model"] == "popularity"
    ask = "recommend runs/json --user u00001 --k 2"
    assert json.loads(adarec(f"{ask} --json").stdout) == json.loads(
        adarec(f"{ask} --format json").stdout
    )
    refused = CliRunner().invoke(app, shlex.split(f"{ask} --json --format csv"))
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_former_names_are_taken_and_answered(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    adarec(f"{_FITTED}/former --quiet")
    old = adarec("recommend runs/former --all-users --k 2 --output csv --file old.csv")
    assert "--output is called --format now" in old.stderr
    assert "--file is called --out now" in old.stderr
    adarec("recommend runs/former --all-users --k 2 --format csv --out new.csv")
    assert (place / "old.csv").read_bytes() == (place / "new.csv").read_bytes()
    both = ["recommend", "runs/former", "--user", "u00001", "--output", "csv", "--format", "json"]
    refused = CliRunner().invoke(app, both)
    assert refused.exit_code == 2
    assert "--output is the former name of --format: give --format alone" in refused.stderr
    for command in ("recommend", "similar", "export"):
        page = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert not {"--output", "--file"} & set(page.split())


@pytest.mark.parametrize(
    ("words", "near"),
    [(["recommend", "--outpu", "x"], ["--out"]), (["train", "--epoch", "3"], ["--epochs"])],
)
def test_a_mistyped_option_is_not_answered_by_a_former_name(
    words: list[str], near: list[str]
) -> None:
    refused = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert refused.exit_code == 2
    assert "No such option" in refused.output
    assert set(re.findall(r"--[a-z-]+", refused.output.split("No such option")[1])) >= set(near)
    assert not {"--output", "--file"} & set(re.findall(r"--[a-z-]+", refused.output))
