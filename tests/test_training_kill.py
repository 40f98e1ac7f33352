"""Runs that are killed, resumed, and end as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).resolve().parents[1]

# Trains in children of its own, so that torch is imported once for many deaths.
KILLER = """
import os, random, signal, sys, time, traceback
from pathlib import Path

import torch

torch.set_num_threads(1)  # no thread pool, so that a fork is whole

from adarec_fast import TrainConfig, synthetic
from adarec_fast.training import Reporter, train

folder, supervision, every, deaths, seed = sys.argv[1:]
data = synthetic(num_users=40, num_items=60, num_themes=3, subthemes_per_theme=2, seed=2)
model = dict(
    hidden_size=16, num_layers=1, max_depth=2, max_length=10, backend="packed",
    supervision=supervision,
)
config = TrainConfig.create(
    epochs=3, batch_size=48 if supervision == "prefix" else 9, device="cpu",
    checkpoint_every=int(every), log_every=2,
)

class Marks(Reporter):
    def step(self, progress):
        print(f"pid {os.getpid()} step {progress.step}", flush=True)

def run(name):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(model, config, data, Path(folder) / name, resume=True, reporter=Marks())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child

def code_of(status):
    return os.waitstatus_to_exitcode(status)

begun = time.monotonic()
assert code_of(os.waitpid(run("whole"), 0)[1]) == 0
length = time.monotonic() - begun

random.seed(int(seed))
killed = 0
for _ in range(int(deaths)):
    child = run("killed")
    time.sleep(random.uniform(0.02, 0.7) * length)
    os.kill(child, signal.SIGKILL)
    code = code_of(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    if code == 0:
        break
    killed += 1
    print(f"killed {killed}", flush=True)
assert code_of(os.waitpid(run("killed"), 0)[1]) == 0
print(f"deaths {killed}", flush=True)
"""

TERMINATED = """
import os, signal, sys
from pathlib import Path

import torch

torch.set_num_threads(1)

from adarec_fast import TrainConfig, synthetic
from adarec_fast.training import Reporter, train

data = synthetic(num_users=40, num_items=60, num_themes=3, subthemes_per_theme=2, seed=2)
model = dict(hidden_size=16, num_layers=1, max_depth=2, max_length=10, backend="packed")
config = TrainConfig.create(epochs=1000, batch_size=64, device="cpu", log_every=1, patience=1000)

class Sender(Reporter):
    def step(self, progress):
        if progress.step == 6:
            os.kill(os.getpid(), getattr(signal, name))

# A shell starts its background jobs with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in sys.argv[2:]:
    result = train(model, config, data, Path(sys.argv[1]) / name, reporter=Sender())
    print(result.status, result.steps)
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    path = [str(PACKAGE), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def lines_without_times(run_dir: Path) -> list[dict[str, Any]]:
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    times = ("seconds", "valid_seconds", "examples_per_second")
    return [
        {name: value for name, value in json.loads(line).items() if name not in times}
        for line in text.splitlines()
    ]


def kill_and_compare(folder: Path, supervision: str, every: int, deaths: int, seed: int) -> int:
    done = python(KILLER, str(folder), supervision, str(every), str(deaths), str(seed))
    for name in ("last", "best"):
        for file in ("model.safetensors", "config.json", "items.json"):
            whole, killed = (folder / run / name / file for run in ("whole", "killed"))
            assert whole.read_bytes() == killed.read_bytes(), f"{name}/{file}"
    state = "last/training_state.safetensors"
    assert (folder / "whole" / state).read_bytes() == (folder / "killed" / state).read_bytes()
    assert lines_without_times(folder / "whole") == lines_without_times(folder / "killed")
    names = [{path.name for path in (folder / run).iterdir()} for run in ("whole", "killed")]
    assert names[0] == names[1]
    return int(done.stdout.rsplit("deaths ", 1)[1])


def test_killed_and_resumed(tmp_path: Path) -> None:
    assert kill_and_compare(tmp_path, "prefix", every=2, deaths=4, seed=0) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("supervision", "every"), [("prefix", 1), ("all", 3), ("prefix", 0)])
def test_killed_often_and_resumed(tmp_path: Path, supervision: str, every: int, seed: int) -> None:
    assert kill_and_compare(tmp_path, supervision, every, deaths=25, seed=seed) >= 1


def test_signals_save_and_end(tmp_path: Path) -> None:
    # The signal arrives while step 6 is reported, so that the step after it is the last one.
    names = ["SIGTERM", "SIGINT"]
    assert python(TERMINATED, str(tmp_path), *names).stdout.split() == ["interrupted", "7"] * 2
    for name in names:
        path = tmp_path / name / "last" / "training_state.json"
        assert json.loads(path.read_text(encoding="utf-8"))["step"] == 7
