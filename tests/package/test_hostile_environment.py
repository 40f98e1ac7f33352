"""Commands in a hostile environment, a variable at a time: each works, or a line says what helps.

Compilers and caches have their cases in test_extension.py, terminals in test_console.py, and what
torchrun sets in test_workers_environment.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adarec_fast import TrainConfig, synthetic
from adarec_fast.cli import app
from adarec_fast.training import train

PLACE = Path(__file__).parents[2]
DATA = synthetic(num_users=20, num_items=30, num_themes=2, subthemes_per_theme=2, seed=1)
TINY: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "max_depth": 2, "max_length": 10}
USER = str(DATA.users.ids[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "run"
    train(TINY, TrainConfig(epochs=1, batch_size=64, device="cpu"), DATA, folder)
    return folder


def call(
    *words: object, before: str = "", shell: str = "", without: tuple[str, ...] = (), **values: str
) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, after some Python, with redirections of a shell."""
    code = f"{before}\nfrom adarec_fast.cli import app; app()"
    command = [sys.executable, "-c", code, *map(str, words)]
    environment = {n: v for n, v in os.environ.items() if n not in without}
    return subprocess.run(
        ["sh", "-c", f'"$@" {shell}', "sh", *command], capture_output=True, text=True, check=False,
        env={**environment, "PYTHONPATH": str(PLACE), **values},
    )  # fmt: skip


UNKNOWN_USER = """
import os, pwd
def unknown(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")
pwd.getpwuid = unknown
"""


def test_no_home_and_a_user_nobody_knows(run: Path) -> None:
    names = ("HOME", "XDG_CACHE_HOME", "ADAREC_FAST_CACHE", "ADAREC_FAST_NO_EXT", "USER", "LOGNAME")
    done = call("recommend", run, "--user", USER, "--k", 2, before=UNKNOWN_USER, without=names)
    assert done.returncode == 0, done.stderr
    assert f"user {USER}" in done.stdout
    assert done.stderr.startswith("warning: adarec_fast: the cpp extension is not used")
    assert "set ADAREC_FAST_CACHE" in done.stderr
    assert done.stderr.count("\n") == 1


def test_pictures_need_no_backend(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = ("plot", run, "--only", "losses", "--format", "svg", "--out", tmp_path)
    done = call(*words, MPLBACKEND="module://no_such_package.backend_inline")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "losses.svg").exists()


def test_the_backend_of_the_program_stays() -> None:
    pytest.importorskip("matplotlib")
    code = (
        "import os; from adarec_fast.plotting.style import require; m = require('matplotlib'); "
        "print(os.environ['MPLBACKEND'], m.rcParams['backend'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(PLACE), "MPLBACKEND": "svg"},
    )  # fmt: skip
    assert done.stdout == "svg svg\n", done.stderr


@pytest.mark.parametrize("shell", [">&-", "2>&- <&-"])
def test_closed_streams(run: Path, shell: str) -> None:
    done = call("recommend", run, "--user", USER, "--format", "csv", shell=shell)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (USER in done.stdout) == (shell != ">&-")


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("COLUMNS", "many", 0), ("COLUMNS", "0", 0), ("COLUMNS", "1", 0), ("TERM", "", 0),
        ("TERM", "nothing", 0), ("NO_COLOR", "1", 0), ("FORCE_COLOR", "1", 0), ("LANG", "xx", 0),
        ("LC_ALL", "nothing", 0), ("TMPDIR", "/nothing/there", 0), ("PATH", "", 0),
        ("HOME", "/nothing/there", 0), ("RANK", "x", 0),
        ("WORLD_SIZE", "x", 0), ("CUDA_VISIBLE_DEVICES", "nothing", 0), ("CXX", "nothing -x", 0),
        ("TORCH_CUDA_ARCH_LIST", "nothing", 0), ("MPLBACKEND", "nothing", 0),
        ("ADAREC_FAST_BACKEND", "nothing", 2), ("ADAREC_FAST_DEBUG", "nothing", 2),
    ],
)  # fmt: skip
def test_recommend(run: Path, name: str, value: str, code: int) -> None:
    done = CliRunner(env={name: value}).invoke(app, ["recommend", str(run), "--user", USER])
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    if code:
        assert value in done.output or name in done.output


@pytest.mark.parametrize(
    ("words", "name", "value", "told"),
    [
        (["train"], "WORLD_SIZE", "2", "start them with torchrun, or unset WORLD_SIZE"),
        (["train"], "WORLD_SIZE", "two", "WORLD_SIZE='two' must be a whole number"),
        (["sweep", "--grid", "seed=0", "--sweep-dir", "s"], "WORLD_SIZE", "two", "WORLD_SIZE=two"),
        (["data", "get", "beauty"], "ADAREC_FAST_DATA_URL", "ftp:", "must begin with http://"),
    ],
    ids=["part", "train", "sweep", "data"],
)  # fmt: skip
def test_what_cannot_work_is_one_line(
    words: list[str], name: str, value: str, told: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    done = CliRunner(env={name: value, "COLUMNS": "300"}).invoke(app, words)
    assert done.exit_code == 2, done.output
    assert told in done.output.splitlines()[-1]
    assert not list(tmp_path.rglob("*.json"))
