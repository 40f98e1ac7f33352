"""Commands on a saved run begin at once: nothing is imported that they do not use."""

from __future__ import annotations

import os
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
COMMAND = """
import sys
from adarec_fast.cli import app
app(sys.argv[1:-1], standalone_mode=False)
print("imported", *(name for name in sys.argv[-1].split() if name in sys.modules), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    data = synthetic(num_users=20, num_items=30, num_themes=3, subthemes_per_theme=2, seed=2)
    model = {"hidden_size": 16, "num_layers": 1, "max_depth": 2, "max_length": 10}
    train(model, TrainConfig(epochs=1, batch_size=64, device="cpu"), data, folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ["recommend", "RUN", "--user", "u00000"], ["evaluate", "RUN", "--json"],
        ["recommend", "RUN", "--history", "t0-s0-i001", "--format", "json"],
        ["train", "--data", "DATA", "--run-dir", "NEW", "--epochs", "1", "--log", "none"],
    ],
    ids=lambda words: " ".join(words[::2]),
)  # fmt: skip
def test_a_command_imports_only_what_it_uses(
    options: list[str], run: Path, tmp_path: Path
) -> None:
    histories = (f"{user} {user} 30 {user + 9} 31\n" for user in range(1, 20))
    (tmp_path / "data.txt").write_text("".join(histories), encoding="utf-8")
    places = {"RUN": run, "NEW": tmp_path / "run", "DATA": tmp_path / "data.txt"}
    words = [str(places.get(word, word)) for word in options]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words, " ".join(UNUSED)],
        env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr.splitlines()[-1] == "imported", done.stderr
