"""Sweeps: definitions, what is kept, what is refused, and what survives being killed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_cli import MODEL, PACKAGE, TRAIN, adarec

from adarec_fast.config import ConfigError
from adarec_fast.data import synthetic, write_csv
from adarec_fast.experiments import (
    Sweep,
    SweepError,
    parse_grid,
    run_sweep,
    summarise,
    write_summary,
)
from adarec_fast.experiments.definition import RESULT, run_name
from adarec_fast.experiments.result import read_ranks, write_ranks
from adarec_fast.ranking.ranks import UNREACHABLE, ranking_metrics
from adarec_fast.training import CheckpointError, load_run
from adarec_fast.training.run_folder import locked
from adarec_fast.training.values import Values

TIMES = (
    "seconds_per_epoch", "milliseconds_per_user", "train_seconds", "valid_seconds",
    "memory_seconds", "environment",
)  # fmt: skip


def base(data: Path, **train: Any) -> Values:
    return Values({"data": str(data)}, dict(MODEL), {**TRAIN, **train})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.csv"
    write_csv(synthetic(num_users=60, num_items=40), path)
    return path


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path]:
    """A finished sweep of two weights and two seeds."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    sweep = Sweep.create(base(data), {"lambda_deno": [0.03, 0.3], "seed": [0, 1]})
    outcomes = run_sweep(sweep, folder)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 4
    return sweep, folder


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Each run's result without what depends on the clock."""
    found = {}
    for path in sorted(folder.glob(f"*/{RESULT}")):
        result = json.loads(path.read_text())
        found[path.parent.name] = {k: v for k, v in result.items() if k not in TIMES}
    return found


def test_grid_is_a_product_and_lists_are_kept() -> None:
    sweep = Sweep.create(
        grid={"seed": [0, 1], "lambda_deno": ["1e-3", 1]},
        combinations=[{"depth": "fixed"}, {"moe": False}],
    )
    assert len(sweep.combinations) == 8
    assert sweep.combinations[0] == {"depth": "fixed", "seed": 0, "lambda_deno": 0.001}
    assert type(sweep.combinations[1]["lambda_deno"]) is float
    assert [run_name(c) for c in sweep.combinations[:2]] == [
        "depth=fixed,lambda_deno=0.001,seed=0",
        "depth=fixed,lambda_deno=1.0,seed=0",
    ]
    assert sweep.values({"model.seed": 3}).model == {"seed": 3}
    assert len(Sweep.create(grid={"seed": [0]}).combinations) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": {"lamda_deno": [1]}}, "did you mean 'lambda_deno'"),
        ({"grid": {"lambda_deno": [-1]}}, "lambda_deno=-1"),
        ({"grid": {"seed": []}}, r"seed=\[\] must be a list"),
        ({"grid": {"depth": "fixed"}}, "depth='fixed' must be a list"),
        ({"grid": {"seed": [0, 0]}}, "seed=0 is there twice"),
        ({"grid": {"seed": [0]}, "combinations": [{"seed": 1}]}, "seed: in the grid and"),
        ({"combinations": []}, "at least one combination"),
        ({"base": Values(model={"num_heads": 3}), "grid": {"seed": [0]}}, "not divisible"),
    ],
)
def test_bad_definitions(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sweep.create(**arguments)


def test_grid_as_typed() -> None:
    typed = ["lambda_deno=0.1, 0.3", "router=level", "amp=off,bf16"]
    assert parse_grid(typed) == {
        "lambda_deno": [0.1, 0.3], "router": ["level"], "amp": [False, "bf16"],
    }  # fmt: skip
    assert Sweep.create(grid=parse_grid(typed)).combinations[0]["amp"] == "off"
    for text in ("seed", "seed=", "=1", "seed=[1", "seed={a: 1}"):
        with pytest.raises(ConfigError, match="KEY=V1,V2"):
            parse_grid([text])
    with pytest.raises(ConfigError, match="named twice"):
        parse_grid(["seed=0", "seed=1"])


def test_names_of_runs_fit_a_file_system_and_differ() -> None:
    names = {
        run_name(combination)
        for combination in (
            {"data": "/a/Beauty.txt"}, {"data": "/b/Beauty.txt"}, {"user_column": "a/b"},
            {"user_column": "a-b"}, {"user_column": "x" * 400}, {"user_column": "x" * 401}, {},
            {"user_column": ".."},
        )
    }  # fmt: skip
    assert len(names) == 8
    assert all("/" not in name and len(name.encode()) < 200 for name in names)
    assert any(name.startswith("data=Beauty,") for name in names)
    assert run_name({"seed": 1, "b": 2, "a": 3}) == run_name({"a": 3, "b": 2, "seed": 1})


def test_results_and_their_means(done: tuple[Sweep, Path]) -> None:
    _, folder = done
    found = results(folder)
    assert set(found) == {f"lambda_deno={x},seed={s}" for x in (0.03, 0.3) for s in (0, 1)}
    first = found["lambda_deno=0.03,seed=0"]
    tested = adarec("evaluate", folder / "lambda_deno=0.03,seed=0", "--json", "--no-baselines")
    (again,) = json.loads(tested.stdout)["results"]
    assert first["test"] == again["overall"]
    assert first["test_sparse"] == again["sparse"]
    assert (first["status"], first["epochs"], first["best_epoch"]) == ("finished", 1, 1)

    groups = summarise(folder)
    assert [group.values for group in groups] == [{"lambda_deno": 0.03}, {"lambda_deno": 0.3}]
    numbers = [found[f"lambda_deno=0.03,seed={s}"]["test"]["NDCG@20"] for s in (0, 1)]
    expected = statistics.fmean(numbers), statistics.stdev(numbers)
    assert groups[0].mean_std("test", "NDCG@20") == expected
    assert expected[1] > 0
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["lambda_deno"] for row in rows] == ["0.03", "0.3"]
    assert float(rows[0]["test/NDCG@20 mean"]) == pytest.approx(expected[0])
    assert float(rows[0]["test/NDCG@20 std"]) == pytest.approx(expected[1])
    stored = json.loads((folder / "summary.json").read_text())["groups"]
    assert stored[1]["runs"] == 2
    assert stored[1]["missing"] == 0
    assert not list(folder.rglob("*.new"))


def test_a_result_is_a_row_that_can_be_committed(done: tuple[Sweep, Path]) -> None:
    """What DESIGN asks of a row, and the ranks of every user."""
    folder = done[1]
    run_dir = folder / "lambda_deno=0.03,seed=1"
    result = json.loads((run_dir / RESULT).read_text())
    assert result["seed"] == result["combination"]["seed"] == 1
    stored = {"model": "adarec", "num_items": 40, "seed": 1, "lambda_deno": 0.03, **MODEL}
    assert stored.items() <= result["config"]["model"].items()
    assert result["config"]["train"]["epochs"] == 1
    assert result["train_seconds"] >= result["seconds_per_epoch"] > 0
    assert result["valid_seconds"] > 0
    run = load_run(run_dir)
    assert result["parameters"] == sum(p.numel() for p in run.model.parameters())
    environment = result["environment"]
    assert {"adarec_fast", "commit", "python", "torch", "cpu", "time"} <= environment.keys()
    assert "command" not in environment
    ranks = read_ranks(run_dir, result["data"]["fingerprint"], "neg-inf")
    assert ranks is not None
    for part in ("valid", "test"):
        assert (ranks[part].dtype, len(ranks[part])) == (torch.int32, 60)
        assert ranking_metrics(ranks[part], (5, 10, 20)) == result[part]
        sparse = ranking_metrics(ranks[part][run.split.sparse_users()], (5, 10, 20))
        assert sparse == result[f"{part}_sparse"]
    # Of other data, another mask, or weights that have changed since, they are none.
    assert read_ranks(run_dir, "0" * 64, "neg-inf") is None
    assert read_ranks(run_dir, result["data"]["fingerprint"], "off") is None
    assert read_ranks(folder, result["data"]["fingerprint"], "neg-inf") is None


def test_masked_targets_keep_the_greatest_rank(
    done: tuple[Sweep, Path], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(done[1] / "lambda_deno=0.03,seed=1", run_dir)
    run = load_run(run_dir)
    write_ranks(run, {"test": torch.tensor([3, UNREACHABLE])})
    found = read_ranks(run_dir, run.source["fingerprint"], "neg-inf")
    assert found is not None
    assert found["test"].tolist() == [3, 2**31 - 1]
    (run_dir / "ranks.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"ranks\.safetensors"):
        read_ranks(run_dir, run.source["fingerprint"], "neg-inf")


def test_finished_runs_are_kept(done: tuple[Sweep, Path]) -> None:
    sweep, folder = done
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.json*")}
    assert len(before) > 10
    states: list[str] = []
    outcomes = run_sweep(sweep, folder, on_start=lambda n, name, state: states.append(state))
    assert [outcome.status for outcome in outcomes] == ["kept"] * 4
    assert states == ["finished"] * 4
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*/*.json*")}


def test_other_definitions_are_refused(done: tuple[Sweep, Path], data: Path) -> None:
    sweep, folder = done
    grid = {"lambda_deno": [0.03, 0.3], "seed": [0, 1]}
    with pytest.raises(SweepError, match=r"train\.epochs is 1 there and 2 now"):
        run_sweep(Sweep.create(base(data, epochs=2), grid), folder)
    with pytest.raises(SweepError, match=r"train\.epochs is 1"):
        run_sweep(Sweep.create(base(data, epochs=2), grid), folder, extend=True)
    more = Sweep.create(base(data), {**grid, "seed": [0, 1, 2]})
    with pytest.raises(SweepError, match=r"new: lambda_deno=0\.03,seed=2, .*--extend"):
        run_sweep(more, folder)
    with pytest.raises(SweepError, match=r"gone: lambda_deno=0\.3,seed=0"):
        run_sweep(Sweep.create(base(data), {"lambda_deno": [0.03], "seed": [0, 1]}), folder)
    assert Sweep.load(folder).combinations == sweep.combinations
    # What a result does not depend on may change.
    free = Sweep.create(base(data, log_every=7), grid)
    assert {outcome.status for outcome in run_sweep(free, folder)} == {"kept"}


def test_extended_and_diverged_and_busy(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    run_sweep(Sweep.create(base(data), {"learning_rate": [1e-3]}), folder)
    wild = Sweep.create(base(data, gradient_clip=0), {"learning_rate": [1e30]})
    with pytest.raises(SweepError, match="gradient_clip"):
        run_sweep(wild, folder, extend=True)
    more = Sweep.create(base(data), {"learning_rate": [1e-3, 1e30, 1e-2]})
    with locked(folder / ".locks" / "learning_rate=0.01"):
        outcomes = run_sweep(more, folder, extend=True)
    assert [outcome.status for outcome in outcomes] == ["kept", "diverged", "busy"]
    assert outcomes[1].result is not None
    assert "diverged at step" in outcomes[1].result["error"]
    groups = write_summary(folder)
    assert [len(group.results) for group in groups] == [1, 0, 0]
    assert groups[1].diverged == ("learning_rate=1e+30",)
    assert groups[2].missing == ("learning_rate=0.01",)
    outcomes = run_sweep(more, folder)
    assert [outcome.status for outcome in outcomes] == ["kept", "diverged", "finished"]


def test_workers_of_torchrun_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SweepError, match=r"WORLD_SIZE=2: .* without torchrun"):
        run_sweep(Sweep.create(base(data), {"seed": [0]}), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_data_that_changed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    write_csv(synthetic(num_users=60, num_items=40), path)
    run_sweep(Sweep.create(base(path), {"seed": [0]}), tmp_path / "sweep")
    write_csv(synthetic(num_users=61, num_items=40), path)
    more = Sweep.create(base(path), {"seed": [0, 1]})
    with pytest.raises(SweepError, match="data have changed since seed=0 was finished"):
        run_sweep(more, tmp_path / "sweep", extend=True)
    with pytest.raises(SweepError, match="60 users and 40 items then, 61 and 40 now"):
        run_sweep(Sweep.load(tmp_path / "sweep"), tmp_path / "sweep")


def test_from_the_command_line(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    fields = "\n".join(f"{k}: {v}" for k, v in {**MODEL, **TRAIN}.items())
    file.write_text(f"{fields}\nlist: [{{depth: fixed}}, {{moe: off}}]\ngrid: {{seed: [0]}}\n")
    options = ["sweep", "--sweep-dir", tmp_path / "sweep"]
    planned = adarec(*options, "--config", file, "--data", data, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "new       depth=fixed,seed=0" in planned.stdout
    assert not (tmp_path / "sweep").exists()
    shown = adarec(*options, "--config", file, "--data", data)
    assert shown.exit_code == 0, shown.output
    assert "[2/2] moe=false,seed=0" in shown.stdout
    assert "NDCG@20" in shown.stdout
    again = adarec(*options)  # as defined
    assert again.exit_code == 0, again.output
    assert again.stdout.count("finished before") == 2
    for extra, message in (
        (["--data", data], "as it was defined"),
        (["--data", data, "--grid", "seed=0,1"], "holds another sweep"),
        (["--config", file, "--data", data, "--grid", "seed=0,1"], "--extend"),
    ):
        refused = adarec(*options, *extra)
        assert refused.exit_code == 2, refused.output
        assert message in refused.stderr
    nothing = adarec("sweep", "--sweep-dir", tmp_path / "other")
    assert (nothing.exit_code, (tmp_path / "other").exists()) == (2, False)
    assert "nothing to sweep over" in nothing.stderr


def start(folder: Path, data: Path) -> subprocess.Popen[str]:
    options = [f"--{k.replace('_', '-')}={v}" for k, v in {**MODEL, **TRAIN}.items()]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    command = "import sys; from adarec_fast.cli import app; app(sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", command, "sweep", "--sweep-dir", str(folder), "--data", str(data),
         "--grid", "lambda_deno=0.03,0.3", "--grid", "seed=0,1", *options, "--epochs=3",
         "--checkpoint-every=3"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path]:
    """What ``start`` starts, never ended."""
    folder = tmp_path_factory.mktemp("whole") / "sweep"
    sweep = Sweep.create(
        base(data, epochs=3, checkpoint_every=3), {"lambda_deno": [0.03, 0.3], "seed": [0, 1]}
    )
    run_sweep(sweep, folder)
    return sweep, folder


@pytest.mark.parametrize(
    "sign", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_ended_and_gone_on_with(
    sign: signal.Signals, data: Path, whole: tuple[Sweep, Path], tmp_path: Path
) -> None:
    """Ended in the second run, wherever that is: nothing finished is lost, nothing differs."""
    folder = tmp_path / "ended"
    process = start(folder, data)
    begun = time.monotonic()
    log = folder / "lambda_deno=0.03,seed=1" / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 1):
        assert time.monotonic() - begun < 120, process.communicate(timeout=5)
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(sign)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == (-sign if sign is signal.SIGKILL else 130), shown
    if sign is signal.SIGTERM:
        assert "go on with" in shown
    assert set(results(folder)) == {"lambda_deno=0.03,seed=0"}
    states: list[str] = []
    outcomes = run_sweep(
        whole[0], folder, on_start=lambda number, name, state: states.append(state)
    )
    assert states == ["finished", "begun", "new", "new"]
    assert [outcome.status for outcome in outcomes] == ["kept", *["finished"] * 3]
    assert results(folder) == results(whole[1])
    for name in results(folder):
        file = Path(name) / "best" / "model.safetensors"
        assert (folder / file).read_bytes() == (whole[1] / file).read_bytes()
