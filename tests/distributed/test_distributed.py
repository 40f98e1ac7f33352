"""Several workers compute what one process computes, and end when one of them is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adarec_fast import ConfigError, TrainConfig, synthetic
from adarec_fast.distributed.workers import saving_seconds
from adarec_fast.ranking.evaluation import EvaluationResult
from adarec_fast.training import load_run, train
from adarec_fast.training.metrics_log import flatten, read_metrics

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "support"
JOBS = ("gradients", "catalogue", "runs", "signals", "refused", "apart")
SIZES = (2, 4)
VARIANTS = ("prefix", "all", "full", "backbone", "three experts")
TIMES = ("seconds", "valid_seconds", "examples_per_second")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a job of ``helpers_distributed.py``, which does all of them.

    In one process: each would import torch and its compiler, which takes longer than most jobs.
    """
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    folder = tmp_path_factory.mktemp("jobs")
    path = [str(ROOT), str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "helpers_distributed.py"), str(folder), *JOBS],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=900.0)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # the workers too
        raise
    said = output[-4000:] + errors[-8000:]
    assert process.returncode == 0, said

    def of(job: str) -> Path:
        failed = folder / job / "failed"
        if failed.exists():
            pytest.fail(failed.read_text(encoding="utf-8") + said)
        return folder / job

    return of


def load(folder: Path, job: str, size: int, rank: int) -> Any:
    return torch.load(folder / f"{job}-{size}-{rank}.pt", weights_only=False)


# ---------------------------------------------------------------- one step


@pytest.fixture(scope="module")
def gradients(done: Callable[[str], Path]) -> dict[tuple[int, int], Any]:
    folder = done("gradients")
    return {
        (size, rank): load(folder, "gradients", size, rank)
        for size in (1, *SIZES)
        for rank in range(size)
    }


@pytest.mark.parametrize(
    ("variant", "sharded", "size"),
    [(variant, sharded, 2) for variant in VARIANTS for sharded in (False, True)]
    + [("prefix", True, 4), ("all", True, 4)],
)
def test_losses_and_gradients_are_one_process_own(
    gradients: dict[tuple[int, int], Any], variant: str, sharded: bool, size: int
) -> None:
    whole = {
        key[3]: found
        for key, found in gradients[1, 0].items()
        if key[0] == variant and key[2] == "batch"
    }
    assert len(whole) == 2
    for rank in range(size):
        for index, expected in whole.items():
            found = gradients[size, rank][variant, sharded, "batch", index]
            for name in ("total", "rec", "deno", "cont", "expl", "gate"):
                torch.testing.assert_close(
                    found[name], expected[name], rtol=1e-11, atol=1e-13, equal_nan=True,
                    msg=lambda text, name=name: f"{name}: {text}",
                )  # fmt: skip
            assert set(found["gradients"]) == set(expected["gradients"])
            for name, gradient in expected["gradients"].items():
                torch.testing.assert_close(
                    found["gradients"][name], gradient, rtol=1e-9, atol=1e-12,
                    msg=lambda text, name=name: f"{name}: {text}",
                )  # fmt: skip


def test_negatives_of_a_worker_alone_change_only_that_loss(
    gradients: dict[tuple[int, int], Any],
) -> None:
    apart, together = (
        gradients[2, 0]["prefix", False, negatives, 0] for negatives in ("rank", "batch")
    )
    for name in ("rec", "deno", "expl"):
        torch.testing.assert_close(apart[name], together[name], rtol=1e-12, atol=0.0)
    # Fewer negatives make the task easier.
    assert apart["cont"] < together["cont"] - 1e-3
    for size in SIZES:
        everyone = [gradients[size, rank]["all", True, "rank", 0]["cont"] for rank in range(size)]
        assert all(value == everyone[0] for value in everyone)


# ---------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def catalogue(done: Callable[[str], Path]) -> dict[tuple[int, int], Any]:
    folder = done("catalogue")
    return {
        (size, rank): load(folder, "catalogue", size, rank)
        for size in (1, *SIZES)
        for rank in range(size)
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sharded", [False, True])
def test_metrics_are_one_process_own(
    catalogue: dict[tuple[int, int], Any], sharded: bool, size: int
) -> None:
    for rank in range(size):
        for mask in ("neg-inf", "official", "off"):
            found: EvaluationResult = catalogue[size, rank][sharded][mask]
            expected: EvaluationResult = catalogue[1, 0][False][mask]
            assert torch.equal(found.ranks, expected.ranks)
            assert found.overall == expected.overall
            assert found.sparse == expected.sparse
            assert found.depth_share == expected.depth_share
            assert found.gate is not None
            assert expected.gate is not None
            for gate, one in zip(found.gate, expected.gate, strict=True):
                assert gate == (None if one is None else pytest.approx(one, rel=1e-6))
            assert found.num_unreachable == expected.num_unreachable


@pytest.mark.parametrize("size", SIZES)
def test_top_k_of_a_split_table_is_merged(
    catalogue: dict[tuple[int, int], Any], size: int
) -> None:
    expected = catalogue[1, 0][False]
    for rank in range(size):
        found = catalogue[size, rank][True]
        assert torch.equal(found["items"], expected["items"])
        torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-6, atol=1e-7)
        # All items but the three seen ones, which score -inf and come last.
        assert torch.equal(found["everything"][:, :-3], expected["everything"][:, :-3])


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def runs(done: Callable[[str], Path]) -> Path:
    return done("runs")


def outcome(run: Path) -> dict[str, float]:
    lines = read_metrics(run)
    return {
        f"{number}/{name}": value
        for number, line in enumerate(lines)
        for name, value in flatten({k: v for k, v in line.items() if k not in TIMES}).items()
    }


@pytest.mark.parametrize(
    ("name", "one"),
    [
        ("prefix-2", "prefix-1"), ("prefix-3", "prefix-1"), ("all-2", "all-1"),
        ("all-3", "all-1"), ("split-2", "prefix-1"), ("by-2", "prefix-1"), ("by-1", "prefix-1"),
        ("by-3-split", "prefix-1"), ("split-by-1", "prefix-1"),
    ],
)  # fmt: skip
def test_a_run_is_one_process_own(runs: Path, name: str, one: str) -> None:
    assert outcome(runs / name) == pytest.approx(outcome(runs / one), rel=1e-5, abs=1e-7)
    for which in ("best", "last"):
        found, expected = (load_run(runs / run, which=which).model for run in (name, one))  # type: ignore[arg-type]
        weights = expected.state_dict()
        assert set(weights) == set(found.state_dict())
        for tensor, value in found.state_dict().items():
            torch.testing.assert_close(value, weights[tensor], rtol=0.0, atol=1e-5)


def test_a_resumed_run_of_as_many_workers_is_exact(runs: Path) -> None:
    for which in ("best", "last"):
        whole, resumed = (
            (runs / run / which / "model.safetensors").read_bytes() for run in ("prefix-2", "by-2")
        )
        assert whole == resumed
    assert outcome(runs / "prefix-2") == outcome(runs / "by-2")


def test_one_worker_writes(runs: Path) -> None:
    found = {path.name for path in (runs / "prefix-2").iterdir()}
    assert found == {path.name for path in (runs / "prefix-1").iterdir()}
    lines = (runs / "prefix-3" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


# ---------------------------------------------------------------- faults


@pytest.fixture(scope="module")
def signals(done: Callable[[str], Path]) -> Path:
    return done("signals")


def said(folder: Path, rank: int) -> tuple[str, float]:
    found = json.loads((folder / f"said-{rank}").read_text(encoding="utf-8"))
    return found["said"], found["seconds"]


def test_a_signal_to_one_worker_ends_all_of_them_alike(signals: Path) -> None:
    everyone = {said(signals / "term", rank)[0] for rank in range(3)}
    assert len(everyone) == 1
    status, step = everyone.pop().split()
    assert status == "interrupted"
    state = signals / "term" / "run" / "last" / "training_state.json"
    assert json.loads(state.read_text(encoding="utf-8"))["step"] == int(step)


@pytest.mark.parametrize(
    ("case", "lost"), [("kill-last", 2), ("kill-first", 0), ("stop", 1)], ids=str
)
def test_the_others_end_when_a_worker_is_lost(signals: Path, case: str, lost: int) -> None:
    for rank in {0, 1, 2} - {lost}:
        words, seconds = said(signals / case, rank)
        assert words.startswith(f"WorkersError: worker {rank} of 3 lost another one (")
        assert "are kept in" in words
        assert "resume" in words
        assert seconds < 120
    assert not (signals / case / f"said-{lost}").exists()


def test_the_others_end_when_the_first_hangs_in_a_save(signals: Path) -> None:
    import helpers_distributed as helpers

    folder = signals / "stop-saving"
    for rank in (1, 2):
        words, seconds = said(folder, rank)
        assert words.startswith(
            f"WorkersError: worker {rank} of 3 lost another one (worker 0 has not ended its "
            "writing in 3 s, --save-timeout allows more)"
        )
        assert "are kept in" in words
        assert seconds < 120
    # It stopped with a checkpoint half made; what was there before is whole, a run goes on from it.
    run = folder / "run"
    assert len(list(run.glob("*.new"))) == 1
    step = int(words.partition("the weights of step ")[2].split()[0])
    config = TrainConfig.create(**{**helpers.TRAIN, "epochs": 10**6, "patience": 10**6})
    result = train(helpers.MODEL, config, helpers.DATA, run, resume=True, stop_after_steps=1)
    assert result.steps == step + 1
    assert not list(run.glob("*.new"))


@pytest.mark.parametrize("way", ["meet", "step", "whole"])
def test_hosts_say_it_before_a_watchdog_ends_them(
    done: Callable[[str], Path], way: str
) -> None:
    """On GPUs, whose collectives return at once."""
    words, seconds, watchdog = json.loads((done("apart") / way).read_text(encoding="utf-8"))
    assert words.startswith("WorkersError: worker 0 of 2 lost another one (Timed out waiting")
    assert "all is kept" in words
    assert 1 < seconds < 20 < watchdog == 32.0


def test_a_save_is_waited_for_by_its_size() -> None:
    assert saving_seconds(0, 45.0) == 45.0
    # Weights and Adam's state of 10^7 items of 64 float32, at 20 MB/s.
    assert saving_seconds(3 * 10**7 * 256, 45.0) == 429.0
    assert saving_seconds(3 * 10**7 * 256, 45.0, save_timeout=7.0) == 7.0


@pytest.fixture(scope="module")
def refused(done: Callable[[str], Path]) -> Path:
    return done("refused")


@pytest.mark.parametrize(
    ("case", "rank", "words"),
    [
        ("options", 0, "ConfigError: train.learning_rate is 0.2 at worker 0 and 0.1 at worker 1"),
        ("options", 1, "ConfigError: train.learning_rate is 0.2 at worker 0 and 0.1 at worker 1"),
        ("data", 1, "ConfigError: data is "),
        ("device", 0, "ConfigError: device='cuda:0' would be every worker's"),
        ("taken", 0, "RunFolderError: run_dir="),
        ("taken", 1, "WorkersError: worker 1 ends because the first one failed: run_dir="),
    ],
)
def test_workers_that_do_not_fit_are_refused(
    refused: Path, case: str, rank: int, words: str
) -> None:
    assert (refused / f"{case}-{rank}").read_text(encoding="utf-8").startswith(words)


def test_every_worker_of_a_split_table_has_items() -> None:
    from adarec_fast.distributed.items import ShardedItems

    four: Any = SimpleNamespace(size=4, rank=0)
    with pytest.raises(ConfigError, match="9 items over 4 workers leave the last one without"):
        ShardedItems(torch.zeros(10, 4), four)
    assert ShardedItems(torch.zeros(11, 4), four).weight.shape == (4, 4)


def test_one_process_cannot_split_the_table(tmp_path: Path) -> None:
    data = synthetic(num_users=20, num_items=30, num_themes=2, subthemes_per_theme=1)
    with pytest.raises(ConfigError, match="this process is alone"):
        train({"hidden_size": 8}, TrainConfig(shard_items=True), data, tmp_path / "run")


# ---------------------------------------------------------------- the command


def torchrun(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "COLUMNS": "120",
    }  # fmt: skip
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "adarec_fast.cli", "train", "--hidden-size", "8", "--num-layers", "1",
            "--max-depth", "2", "--device", "cpu", *arguments,
        ],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_torchrun_trains_once_and_ends_with_a_lost_worker(tmp_path: Path) -> None:
    from adarec_fast.data import write_csv

    data = tmp_path / "tiny.csv"
    write_csv(synthetic(num_users=60, num_items=40), data)
    running = torchrun(
        tmp_path, "--data", str(data), "--epochs", "100000", "--patience", "100000",
        "--log-every", "1",
    )  # fmt: skip
    assert running.stdout is not None
    begun = []
    while (line := running.stdout.readline()) and "epoch 2/" not in line:
        begun.append(line)
    # Two workers, and one of them speaks.
    assert sum("epoch 1/" in line for line in begun) == 1, begun
    killed = _worker(running.pid, rank=1)
    os.kill(killed, 9)
    shown, _ = running.communicate(timeout=60)
    assert running.returncode != 0
    assert "error: worker 0 of 2 lost another one" in shown
    assert "are kept in runs/tiny-1/last" in shown
    assert load_run(tmp_path / "runs" / "tiny-1", which="last").history[0]["epoch"] == 1


def test_one_sigterm_after_a_lost_worker_cuts_nothing_off() -> None:
    """As torchrun sends it to the workers that are left."""
    code = """
import os, signal
from types import SimpleNamespace
from adarec_fast.distributed.workers import Workers, WorkersError
try:
    with Workers.watched(SimpleNamespace(rank=0, size=2), lambda: "all is kept"):
        raise RuntimeError("[/gloo/x.cc:1] Connection closed by peer. Advice")
except WorkersError as error:
    os.kill(os.getpid(), signal.SIGTERM)
    print(error, flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert "lost another one (Connection closed by peer)" in done.stdout
    assert done.returncode == -signal.SIGTERM


def _worker(agent: int, rank: int) -> int:
    """The process of a worker, by its parent and its environment."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if parent == str(agent) and f"RANK={rank}".encode() in environment:
                return int(folder.name)
    raise AssertionError(f"process {agent} has no worker {rank}")
