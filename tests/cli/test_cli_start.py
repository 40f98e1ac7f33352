"""Commands on a saved run begin at once: nothing is imported that they do not use."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from adarec_fast import TrainConfig, synthetic
from adarec_fast.training import train

# Seconds each: torch's compiler and what it pulls in, and the extras of other commands.
UNUSED = (
    "torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "torch.distributed.tensor",
    "torch.fx.experimental.symbolic_shapes", "sympy", "triton", "onnx", "fastapi", "uvicorn",
    "matplotlib", "pandas", "polars", "sklearn", "tensorboard", "pdoc", "rich.markdown",
)  # fmt: skip
COMMANDS = (
    ["recommend", "RUN", "--user", "u00000"],
    ["evaluate", "RUN", "--json"],
    ["recommend", "RUN", "--history", "t0-s0-i001", "--format", "json"],
    ["train", "--data", "DATA", "--run-dir", "NEW", "--epochs", "1", "--log", "none"],
)
# Every command imports torch, which takes most of its time: once, and then a child a command.
PROGRAM = """
import json, os, sys
import torch

torch.set_num_threads(1)  # no thread pool, so that a fork is whole
commands, unused = json.loads(sys.argv[1]), json.loads(sys.argv[2])
print("imported", *(name for name in unused if name in sys.modules), flush=True)
for words in commands:
    child = os.fork()
    if child == 0:
        from adarec_fast.cli import app
        app(words, standalone_mode=False)
        print("imported", *(name for name in unused if name in sys.modules), flush=True)
        os._exit(0)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    data = synthetic(num_users=20, num_items=30, num_themes=3, subthemes_per_theme=2, seed=2)
    model = {"hidden_size": 16, "num_layers": 1, "max_depth": 2, "max_length": 10}
    train(model, TrainConfig(epochs=1, batch_size=64, device="cpu"), data, folder)
    return folder


@pytest.fixture(scope="module")
def told(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each command printed, up to its end; first of all what torch alone imports."""
    folder = tmp_path_factory.mktemp("data")
    histories = (f"{user} {user} 30 {user + 9} 31\n" for user in range(1, 20))
    (folder / "data.txt").write_text("".join(histories), encoding="utf-8")
    places = {"RUN": run, "NEW": folder / "run", "DATA": folder / "data.txt"}
    commands = [[str(places.get(word, word)) for word in words] for words in COMMANDS]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands), json.dumps(UNUSED)],
        env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^ended (.*)$", done.stdout, re.MULTILINE) == ["0"] * 4, done.stderr
    return done.stdout.split("ended 0\n")


@pytest.mark.parametrize(
    "place", range(len(COMMANDS)), ids=[" ".join(words[::2]) for words in COMMANDS]
)
def test_a_command_imports_only_what_it_uses(told: list[str], place: int) -> None:
    assert len(told) == len(COMMANDS) + 1
    shown = told[place].splitlines()
    if place == 0:
        assert shown.pop(0) == "imported"
    assert shown[:-1]
    assert shown[-1] == "imported"
