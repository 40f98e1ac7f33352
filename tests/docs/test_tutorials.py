"""The tutorials run from top to bottom on small data, and ``adarec-fast docs`` shows every page."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers_pages import (
    ROOT,
    blocks,
    check_command,
    check_mention,
    code_spans,
    known_options,
    lines,
)
from typer.testing import CliRunner

from adarec_fast.cli import app, console
from adarec_fast.cli.docs import as_markdown, cells, pages
from adarec_fast.cli.docs_html import MODULES, write_html

TUTORIALS = {page.name: page.path for page in pages() if page.is_tutorial}
_SMALL = {"USERS": "40", "EPOCHS": "1", "SEEDS": "range(2)"}
every_tutorial = pytest.mark.parametrize("path", TUTORIALS.values(), ids=TUTORIALS)


def small(path: Path, **values: str) -> str:
    """A tutorial with other values for its constants."""
    text = path.read_text(encoding="utf-8")
    for name, value in {**_SMALL, **values}.items():
        text = re.sub(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
    return text


def run(path: Path, capsys: pytest.CaptureFixture[str], **values: str) -> str:
    """Run it here, in the current folder; what it printed."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(small(path, **values), str(path), "exec"), names)
    return capsys.readouterr().out


def test_two_models_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    told = run(TUTORIALS["compare-models"], capsys)
    assert len(re.findall(r"^(?:backbone|adarec) +seed [01] ", told, re.MULTILINE)) == 4
    assert re.search(r"adarec less backbone, NDCG@20: .* over seeds .*: (not )?established", told)


def test_a_shop_serves_new_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fastapi_offline", reason="the service needs adarec_fast[serve]")
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = run(TUTORIALS["shop-service"], capsys, PORT=port)
    assert "1 new items and 1 new users, counted in without training" in told
    behind = told.partition("counted in")[2]
    assert "the-novelty" in behind.splitlines()[1]
    assert behind.splitlines()[2].startswith("somebody-new: ")


def test_an_op_is_written(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="its kernels need triton")
    done = subprocess.run(
        [sys.executable, str(TUTORIALS["write-an-op"])], cwd=tmp_path, capture_output=True,
        text=True, timeout=300, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^(?:packed|triton) +(?:y|d_values) +off by", done.stdout, re.M)) == 4
    assert done.stdout.endswith("torch's own checks pass\n")


@every_tutorial
def test_what_a_tutorial_names_exists(path: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(as_markdown(path.read_text(encoding="utf-8")), encoding="utf-8")
    for block in blocks(page):
        if block.language == "sh":
            for line in lines(block.text):
                check_command(line)
    for span in code_spans(page):
        if span.startswith("adarec-fast "):
            check_mention(span)
            if span.startswith("adarec-fast docs "):
                assert span.split()[2] in {one.name for one in pages()}, span
        elif span.startswith("--"):
            assert span.split()[0] in known_options(), span
        elif re.match(r"(kernels|tests|adarec_fast)/\S+\.\w+$", span):
            assert (ROOT / span).exists(), span


@every_tutorial
def test_a_tutorial_is_words_and_code_of_100_columns(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    kinds = [words for words, _ in cells(text)]
    assert kinds[0]
    assert not all(kinds)
    assert len(text.splitlines()) <= 320
    assert max(map(len, text.splitlines())) <= 100


def _without_a_warning(folder: Path, names: Sequence[str]) -> None:
    pytest.importorskip("pdoc", reason="the pages need adarec_fast[docs]")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = write_html(folder, names)
    shown = first.read_text(encoding="utf-8")
    for word in ("ADARec", "Recommender", "from_pretrained"):
        assert word in shown
    for name in names:
        assert (folder / f"{name.replace('.', '/')}.html").is_file()


def test_the_api_becomes_html_without_a_warning(tmp_path: Path) -> None:
    _without_a_warning(tmp_path, ["adarec_fast", "adarec_fast.models.base"])


@pytest.mark.slow
def test_all_of_the_api_becomes_html_without_a_warning(tmp_path: Path) -> None:
    _without_a_warning(tmp_path, MODULES)


def test_html_without_pdoc_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pdoc", None)
    refused = docs("--html", "api")
    assert refused.exit_code == 2
    assert 'pip install "adarec_fast[docs]"' in refused.stderr
    assert docs("training", "--html", "api").exit_code == 2


def docs(*words: str) -> Any:
    return CliRunner().invoke(app, ["docs", *words])


def test_docs_lists_the_pages_and_prints_one(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = json.loads(docs("--json").stdout)
    files = {path.stem for path in (ROOT / "adarec_fast" / "docs").glob("*.md")}
    assert {entry["name"] for entry in listed} == files | set(TUTORIALS)
    assert listed[0]["name"] == "getting-started"
    assert all(entry["about"] for entry in listed)
    shown = docs().stdout
    assert all(entry["name"] in shown for entry in listed)
    for entry in (listed[0], listed[-1]):
        assert docs(entry["name"]).stdout == Path(entry["path"]).read_text(encoding="utf-8")
    monkeypatch.setattr(console.out, "_force_terminal", True)
    monkeypatch.setattr(console.out, "_width", 80)
    for name in ("going-on", "compare-models"):
        drawn = re.sub(r"\x1b\[[0-9;]*m", "", docs(name).stdout)
        assert "# " not in drawn.splitlines()[0]
        assert max(map(len, drawn.splitlines())) <= 80
    wrong = docs("trainin")
    assert wrong.exit_code == 2
    assert "did you mean training?" in wrong.stderr
