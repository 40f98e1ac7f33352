"""Ids and paths are shown letter by letter, in tables, hints and errors, on any terminal."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from adarec_fast import ConfigError, TrainConfig
from adarec_fast.cli import app, console
from adarec_fast.cli.answers import samples
from adarec_fast.data import InteractionData, load
from adarec_fast.training import load_run, train

PLACE = Path(__file__).parents[2]
# Pictures, markup, backslashes, and more letters than a column of a table takes.
ODD = ("shop:new:{}", "[red]{}", "a[/]{}", "{}\\", "\\[b]{}", "[{}]", ":smile:{}", "x" * 90 + "{}")


@pytest.fixture(scope="module")
def data() -> InteractionData:
    draw = random.Random(3)
    items = [form.format(n) for form in ODD for n in range(3)]
    return load({form.format(f"u{n}"): draw.choices(items, k=6) for form in ODD for n in range(4)})


@pytest.fixture(scope="module")
def run(data: InteractionData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / "a:id:b[bold]"
    train({"model": "popularity"}, TrainConfig(epochs=1, device="cpu"), data, folder)
    return folder


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """COLUMNS is read when a console is made, which another test may have done."""
    monkeypatch.setattr(console.out, "_width", 300)
    monkeypatch.setattr(console.err, "_width", 300)


def adarec(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert "Traceback" not in done.output
    return "".join(done.output.split())


def test_values_in_words_stay_as_they_are() -> None:
    draw = random.Random(0)
    pieces = ["[", "]", "\\", "/", "a", "bold", ":new:", "=", "@", "1", " ", "{}", "…", "\n"]
    for _ in range(500):
        one, two = ("".join(draw.choices(pieces, k=draw.randint(0, 6))) for _ in range(2))
        text = console.words("[bold]{}[/], then {} [red]end[/]", one, two)
        assert text.plain == f"{one}, then {two} end"
    styled = console.words("[bold]{}[/] not", "[/]")
    assert [(s.start, s.end, str(s.style)) for s in styled.spans if s.start < s.end] == [
        (0, 3, "bold")
    ]


def test_ids_in_answers_hints_and_errors(data: InteractionData, run: Path) -> None:
    for user in (form.format("u1") for form in ODD):
        shown = adarec("recommend", run, "--user", user, "--k", 24)
        assert f"user{user}," in shown
        history = data.items.decode(data.sequence(data.users.ids.index(user)))
        for item in data.items.ids:
            assert str(item) in shown or item in history
        answer = adarec("recommend", run, "--user", f"{user}?")
        assert f"{user}?" in answer.replace("\\\\", "\\")
    assert str(run) in adarec("recommend", run / "absent", "--user", "x")
    assert "[bold]x" in adarec("recommend", run, "--history", "[bold]x")
    assert "a:new:b" in adarec("recommend", run, "--a:new:b")  # typer's own words
    assert "a:new:b" in adarec("recommend", "a:new:b", "--user", "x")


def test_ids_in_tables(data: InteractionData, run: Path) -> None:
    trained = load_run(run)
    shown = Console(file=io.StringIO(), width=400, emoji=False)
    shown.print(samples(trained.model, trained.split, count=32))
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert all(str(user) in text for user in data.users.ids)


def environment(**values: str) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("LC_", "LANG", "PYTHON"))}
    return {**kept, "PYTHONPATH": str(PLACE), "COLUMNS": "90", **values}


def test_a_terminal_that_lacks_letters(tmp_path: Path) -> None:
    users = {f"ü{n}中": ["ñ1", "中2", "ñ3", "中4"] for n in range(6)}
    train({"model": "popularity"}, TrainConfig(epochs=1, device="cpu"), load(users), tmp_path / "r")

    def call(encoding: str, code: str, *words: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-c", f"from adarec_fast.cli import app\n{code}", *map(str, words)],
            env=environment(PYTHONIOENCODING=encoding), capture_output=True, check=False,
        )  # fmt: skip

    words = ("recommend", tmp_path / "r", "--user", "ü1中", "--k", 4, "--include-seen")
    done = call("latin-1", "app()", *words)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode("latin-1")
    assert "user ü1\\u4e2d, " in shown
    assert "ñ3" in shown
    # Help first, an error after it, in one process: each would import torch for itself.
    both = """
try:
    app(["recommend", "--help"])
except SystemExit as end:
    assert not end.code, end
app()
"""
    done = call("ascii", both, "recommend", tmp_path / "r", "--user", "ü9中")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: --user: ")
    assert b"Traceback" not in done.stderr
    assert b"Usage:" in done.stdout
    assert b"\\u2" not in done.stdout


def test_what_programs_read_is_exact_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    console.print_exactly("ü\n", "--format csv")
    with pytest.raises(ConfigError, match=r"--format csv: .*latin-1, which lacks .*'\\u4e2d'; set"):
        console.print_exactly("中\n", "--format csv")
    stream.flush()
    assert stream.buffer.getvalue() == b"\xfc\n"  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stdout", None)
    console.print_exactly("中\n", "--format csv")


def test_letters_that_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", None)
    console.print_in_any_encoding()
    stream.write("0.1±0.2 – … 中 \udcff")
    stream.flush()
    assert stream.buffer.getvalue() == b"0.1+-0.2 - ... \\u4e2d \xff"  # type: ignore[attr-defined]
