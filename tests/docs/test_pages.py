"""README.md and every other page: what they show runs, and what they name is there."""

from __future__ import annotations

import ast
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_pages import (
    PAGES,
    ROOT,
    Block,
    anchors,
    blocks,
    check_command,
    check_mention,
    code_spans,
    exists,
    know_pytest,
    known_options,
    lines,
    links,
    run_module,
)
from typer.testing import CliRunner

import adarec_fast
from adarec_fast.cli import app

if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)

_LONG = {"export.md"}  # torch.export takes a quarter of a minute for each of its formats
_EXTRAS = {
    "export.md": ("faiss", "onnx", "onnxscript", "onnxruntime"), "your-data.md": ("polars",),
    "items.md": ("polars", "pyarrow"),
    "serving.md": ("fastapi_offline", "polars"), "getting-started.md": ("fastapi_offline",),
    "deploy.md": ("fastapi_offline",),
    "evaluation.md": ("matplotlib", "sklearn"), "reproduce.md": ("matplotlib",),
}  # fmt: skip
_PROGRAMS = ("adarec-fast", "python", "pytest", "pip", "torchrun")
_README_LINES = 150


def _id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", PAGES, ids=_id)


@pytest.fixture(autouse=True)
def _pytest_options(pytestconfig: pytest.Config) -> None:
    know_pytest(pytestconfig)


class Reader:
    """Does what a page says, in an empty folder: one shell, one Python."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.services: list[subprocess.Popen[str]] = []
        self.port = 0

    def follow(self, block: Block) -> None:
        if "from" in block.words:
            source = (ROOT / block.words["from"]).read_text(encoding="utf-8")
            assert block.text in source, f"this is not in {block.words['from']}:\n{block.text}"
        elif "needs" in block.words:
            check(block)
        elif block.language == "sh":
            for line in lines(block.text):
                self.run(line)
        elif "file" in block.words:
            (self.folder / block.words["file"]).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, f"line {block.line}", "exec"), self.names)
        else:
            assert block.language == "text", f"line {block.line}: what is to be done with this?"

    def run(self, line: str) -> None:
        """A command; ours in this process, which saves the time to load torch."""
        check_command(line)
        program = line.partition(" ")[0]
        if line.startswith("pip") and (self.folder / "pyproject.toml").exists():
            self._install()
        if program in ("pip", "pytest"):
            return
        if line.endswith(" &"):
            self._serve(line)
        elif program == "adarec-fast":
            done = CliRunner().invoke(app, shlex.split(line)[1:], env={"COLUMNS": "120"})
            assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
        elif program == "python":
            assert run_module(shlex.split(line)[2], shlex.split(line)[3:]) in (0, None), line
        elif program == "kill":
            words = shlex.split(line)
            named = words[1].lstrip("-") if len(words) == 3 else "TERM"
            service = self.services[int(words[-1].lstrip("%")) - 1]
            service.send_signal(signal.Signals[f"SIG{named}"])
            if named == "TERM":
                self.close()
        else:
            line = line.replace("localhost:8000", f"localhost:{self.port}")
            done = subprocess.run(
                [*shlex.split(line), "--silent", "--show-error", "--fail"], cwd=self.folder,
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"

    def _install(self) -> None:
        """The package that the page has written, where only this page finds it."""
        site = self.folder / "site"
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
             "--no-build-isolation", "--target", str(site), "."],
            cwd=self.folder, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        self.patch.syspath_prepend(str(site))

    def _serve(self, line: str) -> None:
        """A service in the background, on a free port in the place of 8000."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = shlex.split(line[:-2])[1:]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.services.append(subprocess.Popen(
            [sys.executable, "-m", "adarec_fast.cli", *words, "--port", str(self.port)],
            cwd=self.folder, env=environment, stderr=subprocess.PIPE, text=True,
        ))  # fmt: skip
        until = time.monotonic() + 60
        while time.monotonic() < until and self.services[-1].poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5).close()
                return
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        raise AssertionError(f"{line}: the service did not start")

    def close(self) -> None:
        """Wait for what was told to end; each service must have ended well."""
        ended, self.services = self.services, []
        for service in ended:
            _, said = service.communicate(timeout=30)
            assert service.returncode == 0, said

    def leave(self) -> None:
        """End what a page that failed has left in the background."""
        for service in self.services:
            service.kill()
            service.communicate()


def check(block: Block) -> None:
    """What a block that cannot run here would do."""
    if block.language == "python":
        ast.parse(block.text)
        return
    for line in lines(block.text):
        check_command(line)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """A reader whose synthetic data are small."""

    def small(**options: Any) -> Any:
        return whole(**{"num_users": 80, "num_items": 100, **options})

    whole: Callable[..., Any] = adarec_fast.synthetic
    monkeypatch.setattr("adarec_fast.data.configured.synthetic", small)
    monkeypatch.setattr(adarec_fast, "synthetic", small)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    one = Reader(tmp_path, monkeypatch)
    yield one
    one.leave()
    for name, module in list(sys.modules.items()):
        if name not in before and str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


def _follow(page: Path, reader: Reader) -> None:
    for extra in _EXTRAS.get(page.name, ()):
        pytest.importorskip(extra, reason=f"the page needs {extra}")
    for block in blocks(page):
        try:
            reader.follow(block)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{_id(page)}:{block.line}: {error}") from error
    assert not reader.services, f"{_id(page)} leaves a service running; end it with kill %1"


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in _LONG], ids=_id)
def test_a_page_from_top_to_bottom(page: Path, reader: Reader) -> None:
    _follow(page, reader)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if p.name in _LONG], ids=_id)
def test_a_long_page_from_top_to_bottom(page: Path, reader: Reader) -> None:
    _follow(page, reader)


@pytest.mark.parametrize("page", [p for p in PAGES if p.name in _LONG], ids=_id)
def test_a_long_pages_commands_parse(page: Path) -> None:
    for block in blocks(page):
        if block.language in ("sh", "python"):
            check(block)


@every_page
def test_commands_options_files_and_names_in_the_prose_exist(page: Path) -> None:
    for span in code_spans(page):
        words = span.split()
        if words[0] in _PROGRAMS and len(words) > 1:
            # Neither a placeholder nor a fence of tests/README.md.
            if words[1] != "COMMAND" and "=" not in words[1]:
                check_mention(span)
        elif span.startswith("--"):
            for option in re.findall(r"--[\w-]+", span):
                assert option in known_options(), f"{option} is no option of any command"
        elif re.match(r"(adarec_fast|bench|csrc|kernels|tests)/", span):
            # A name in < > stands for many; some of them may be still to come.
            place = re.sub(r"\([^)]*\)$", "", span)
            assert "<" in place or list(ROOT.glob(place.rstrip("/"))), f"no file {span}"
        elif re.match(r"(adarec_fast|bench)\.[\w.]+", span):
            assert exists(re.split(r"[^\w.]", span)[0]), f"no name {span}"


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{_id(page)}: no file {path}"
        assert not anchor or anchor in anchors(target), f"{_id(page)}: no heading {path}#{anchor}"


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    readme = ROOT / "README.md"
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= _README_LINES
    led = {(ROOT / path).resolve() for path, _ in links(readme)}
    assert {page for page in PAGES if page != readme} <= led


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("adarec-fast trian", "no such command"),
        ("adarec-fast train --epohcs 2", "--epohcs"),
        ("adarec-fast plot runs/a --dpi many", "many"),
        ("adarec-fast train --supervision both", "both"),
        ("python -m bench.scaling --axes users", "refuses its arguments"),
        ("pytest bench/ --benchmark-onyl", "--benchmark-onyl"),
        ("pytest tests/test_nothing.py", "test_nothing"),
        ('pip install -e ".[serving]"', "serving"),
        ("torchrun --standalone -m adarec_fast.cli train --shard", "--shard"),
        ("adarec train", "no program"),
    ],
)
def test_a_wrong_command_is_found(line: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        check_command(line)


def test_wrong_fences_and_names_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\nls\n```\n")
    with pytest.raises(ValueError, match=r"page\.md:1"):
        blocks(page)
    page.write_text("# A (b), c\n\n```sh needs=luck\nls\n```\n")
    with pytest.raises(ValueError, match="needs=luck"):
        blocks(page)
    assert anchors(page) == {"a-b-c"}
    assert exists("adarec_fast.adapters.replay.ADARecRePlay")
    assert not exists("adarec_fast.adapters.replay.Nothing")
    assert "--epohcs" not in known_options()
    assert {"--epochs", "--no-moe", "--save-results", "--rehearse"} <= known_options()
