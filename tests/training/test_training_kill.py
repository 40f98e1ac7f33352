"""Runs that are killed, resumed, and end as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).resolve().parents[2]

# Trains in children of its own, so that torch is imported once for many deaths.
KILLER = """
import os, random, signal, sys, time, traceback
from pathlib import Path

import safetensors.torch
import torch

try:
    import torch.utils.tensorboard  # here, and not in every child
except ImportError:
    pass

torch.set_num_threads(1)  # no thread pool, so that a fork is whole

from adarec_fast import TrainConfig, synthetic
from adarec_fast.models import pretrained
from adarec_fast.training import Reporter, checkpoint, train
from adarec_fast.training.checkpoint import find_checkpoint, read_json
from adarec_fast.training.trainer import Trainer

folder, supervision, every, deaths, seed = sys.argv[1:]
folder, every, deaths = Path(folder), int(every), int(deaths)
data = synthetic(num_users=40, num_items=60, num_themes=3, subthemes_per_theme=2, seed=2)
model = dict(
    hidden_size=16, num_layers=1, max_depth=2, max_length=10, backend="packed",
    supervision=supervision,
)
config = TrainConfig.create(
    epochs=3, batch_size=48 if supervision == "prefix" else 9, device="cpu",
    checkpoint_every=every, log_every=1,
)
log = folder / "log"

class Marks(Reporter):
    def start(self, plan):
        self.note("from", plan.step)

    def step(self, progress):
        self.note("step", progress.step)

    def note(self, what, step):
        os.write(self.file, f"{what} {step}\\n".encode())  # unbuffered: it outlives the process

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def die_in_call(number, random):
    "Makes the process die at its number-th call that changes the disk, some of them half done."
    left = number

    def dying(function, torn=None):
        def wrapper(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                if torn is not None and random.random() < 0.7:
                    torn(*args)
                die()
            return function(*args, **kwargs)
        return wrapper

    def cut(path, content):
        with open(path, "wb") as file:
            file.write(content[: random.randrange(len(content) + 1)])

    def torn_tensors(tensors, path):
        cut(path, safetensors.torch.save(tensors))

    def torn_bytes(path, content, *_):
        cut(path, content if isinstance(content, bytes) else content.encode())

    for name in ("rename", "replace", "fsync", "mkdir", "rmdir", "unlink"):
        setattr(os, name, dying(getattr(os, name)))
    for name in ("write_text", "write_bytes"):
        setattr(Path, name, dying(getattr(Path, name), torn_bytes))
    for module in (checkpoint, pretrained):
        module.save_file = dying(module.save_file, torn_tensors)
    return lambda: number - left

def run(name, call=0, seed=0):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            marks = Marks()
            marks.file = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            save = Trainer.save

            def saving(self, name, epoch=None):
                marks.note("saving", self.step)
                save(self, name, epoch)
                marks.note("saved" if name == "last" else "best", self.step)

            Trainer.save = saving
            calls = die_in_call(call, random.Random(seed))
            train(model, config, data, folder / name, resume=True, reporter=marks)
            marks.note("calls", calls())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child

def code_of(status):
    return os.waitstatus_to_exitcode(status)

def logged():
    lines = [line.split() for line in log.read_text().splitlines()]
    return [(what, int(step)) for what, step in lines]

def check(name, before):
    "Nothing is lost but the steps since the last checkpoint that was saved; the step it is at."
    found = find_checkpoint(folder / name, "last")
    step = 0 if found is None else read_json(found / "training_state.json")["step"]
    saved = [s for what, s in logged() if what == "saved"]
    assert step >= max([before, *saved]), (step, before, saved)
    started = [s for what, s in logged() if what == "from"]
    # A death between two renames leaves a newer checkpoint, which the next life brings back.
    assert not started or started[0] >= before, (started, before)
    return step

begun = time.monotonic()
assert code_of(os.waitpid(run("whole"), 0)[1]) == 0
length = time.monotonic() - begun
calls = logged()[-1][1]

random.seed(int(seed))
killed, inside, runs, step = 0, 0, 0, 0
while killed < deaths:
    name = f"killed{runs}"
    by_call = killed % 2 == 0
    child = run(name, random.randint(1, calls) if by_call else 0, random.random())
    if not by_call:
        time.sleep(random.uniform(0, 0.7) * length)
        os.kill(child, signal.SIGKILL)
    code = code_of(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    step = check(name, step)
    if code == 0:
        runs, step = runs + 1, 0
        continue
    killed += 1
    inside += bool(logged()) and logged()[-1][0] == "saving"
if code:
    assert code_of(os.waitpid(run(name), 0)[1]) == 0
    runs += 1
print(f"{killed} deaths, {inside} inside a save, {runs} runs of {length:.1f} s, {calls} calls")
print(f"runs {runs}", flush=True)
"""

BEGINNING = """
import os, signal, sys, time
from pathlib import Path

import torch

torch.set_num_threads(1)

from adarec_fast import TrainConfig, synthetic
from adarec_fast.training import Reporter, RunFolderError, metrics_log, train

metrics_log._summary_writer = lambda *_: None
data = synthetic(num_users=40, num_items=60, num_themes=3, subthemes_per_theme=2, seed=2)
model = dict(hidden_size=16, num_layers=1, max_depth=2, max_length=10, backend="packed")

def config(epochs):
    return TrainConfig.create(
        epochs=epochs, batch_size=64, device="cpu", log_every=1, patience=1000
    )
"""

TERMINATED = (
    BEGINNING
    + """
class Sender(Reporter):
    def step(self, progress):
        if progress.step == 6:
            os.kill(os.getpid(), getattr(signal, name))

# A shell starts its background jobs with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
train(model, config(3), data, Path(sys.argv[1]) / "whole")
for name in sys.argv[2:]:
    run_dir = Path(sys.argv[1]) / name
    result = train(model, config(3), data, run_dir, reporter=Sender())
    print(result.status, result.steps, result.signal)
    print(train(model, config(3), data, run_dir, resume=True).status)
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
)

SHARED = (
    BEGINNING
    + """
folder = Path(sys.argv[1])
first = os.fork()
if first == 0:
    train(model, config(100_000), data, folder)
    os._exit(1)
while not (folder / "last").exists():
    time.sleep(0.01)
for resume in (False, True):
    try:
        train(model, config(100_000), data, folder, resume=resume)
    except RunFolderError as error:
        assert f"is in use by process {first};" in str(error), error
        print("refused")
os.kill(first, 0)  # the first one goes on
os.kill(first, signal.SIGKILL)
os.waitpid(first, 0)
assert (folder / ".lock").read_text().strip() == str(first)  # stale
print(train(model, config(100_000), data, folder, resume=True, stop_after_steps=3).status)
"""
)


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


def kill_and_compare(folder: Path, supervision: str, every: int, deaths: int, seed: int) -> None:
    """Kill a training ``deaths`` times, as often as it takes anew; all runs end as one not killed.

    Half of the deaths come at a random time, half at a random call that changes the disk.
    """
    done = python(KILLER, str(folder), supervision, str(every), str(deaths), str(seed))
    print(done.stdout.splitlines()[0])
    for run in range(int(done.stdout.rsplit("runs ", 1)[1])):
        whole, killed = folder / "whole", folder / f"killed{run}"
        for name in ("last", "best"):
            for file in ("model.safetensors", "config.json", "items.json"):
                one, other = whole / name / file, killed / name / file
                assert one.read_bytes() == other.read_bytes(), other
        state = "last/training_state.safetensors"
        assert (whole / state).read_bytes() == (killed / state).read_bytes(), killed
        assert lines_without_times(whole) == lines_without_times(killed)
        assert {path.name for path in whole.iterdir()} == {path.name for path in killed.iterdir()}


def test_killed_and_resumed(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, "prefix", every=2, deaths=3, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("supervision", "every"), [("prefix", 1), ("all", 3), ("prefix", 0),
                                                    ("all", 1)])  # fmt: skip
def test_killed_200_times_and_resumed(
    tmp_path: Path, supervision: str, every: int, seed: int
) -> None:
    kill_and_compare(tmp_path, supervision, every, deaths=25, seed=seed)


def test_signals_save_and_end(tmp_path: Path) -> None:
    # The signal arrives while step 6 is reported, so that the step after it is the last one.
    names = ["SIGTERM", "SIGINT"]
    words = python(TERMINATED, str(tmp_path), *names).stdout.split()
    assert words == ["interrupted", "7", "15", "finished", "interrupted", "7", "2", "finished"]
    for name in names:
        for file in ("last/model.safetensors", "last/training_state.safetensors",
                     "best/model.safetensors"):  # fmt: skip
            whole, resumed = ((tmp_path / run / file).read_bytes() for run in ("whole", name))
            assert whole == resumed


def test_a_folder_has_one_process_at_a_time(tmp_path: Path) -> None:
    """A second one is refused; the lock of one that was killed is free."""
    assert python(SHARED, str(tmp_path / "run")).stdout.split() == ["refused", "refused", "stopped"]
