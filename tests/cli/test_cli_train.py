"""``adarec-fast train``, ``evaluate`` and ``recommend`` on a tiny data set, and how runs fail."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adarec_fast.cli import app, train
from adarec_fast.config import TrainConfig
from adarec_fast.data import load, synthetic, write_csv
from adarec_fast.models.adarec.config import ADARecConfig

TINY = [
    "--hidden-size", "8", "--num-layers", "1", "--max-depth", "2", "--batch-size", "64",
    "--dropout", "0.1", "--backend", "packed", "--device", "cpu",
]  # fmt: skip


def adarec(*arguments: str | Path, **environment: str) -> Result:
    return CliRunner().invoke(
        app, [str(a) for a in arguments], env={"COLUMNS": "120", **environment}
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny set.csv"
    write_csv(synthetic(num_users=60, num_items=40), path)
    return path


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch."""
    folder = tmp_path_factory.mktemp("run") / "run"
    shown = adarec("train", "--data", data, "--run-dir", folder, "--epochs", "1", *TINY)
    assert shown.exit_code == 0, shown.output
    return folder


def test_train_ends_with_metrics_and_recommendations(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {{data: '{data}'}}\ntrain: {{epochs: 7, seed: 3}}\nmoe: off\n")
    shown = adarec("train", "--config", config, *TINY, "--epochs", "1", "--set", "model.seed=4")
    assert shown.exit_code == 0, shown.output
    assert "epoch 1/1" in shown.output
    assert "NDCG@20" in shown.output
    assert "Some users of the test set" in shown.output
    assert "adarec-fast recommend runs/tiny-set-1" in shown.output
    stored = json.loads((tmp_path / "runs" / "tiny-set-1" / "config.json").read_text())
    assert (stored["train"]["epochs"], stored["train"]["seed"]) == (1, 3)
    assert (stored["model"]["seed"], stored["model"]["moe"]) == (4, False)
    assert stored["data"]["source"]["data"] == str(data)


def test_runs_are_numbered(tmp_path: Path) -> None:
    made = [train.next_run_dir(tmp_path / "runs", name) for name in ("a b", "a b", "..")]
    assert [folder.name for folder in made] == ["a-b-1", "a-b-2", "run-1"]


def test_synthetic_defaults_are_valid_and_yield_to_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ADARecConfig.create(num_items=500, **train.SYNTHETIC.model)
    TrainConfig.create(**train.SYNTHETIC.train)
    monkeypatch.chdir(tmp_path)
    shown = adarec("train", "--epochs", "0", "--dropout", "0.4")
    assert shown.exit_code == 2
    assert "smaller defaults" in shown.stdout
    assert "epochs=" not in shown.stdout
    assert "hidden_size=32" in shown.stdout
    assert "epochs=0" in shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_evaluate_prints_models_side_by_side(run: Path) -> None:
    shown = adarec("evaluate", run)
    assert shown.exit_code == 0, shown.output
    for word in ("ADARec", "popularity", "markov", "sparse", "NDCG@20", "neg-inf", "depth"):
        assert word in shown.stdout


def test_evaluate_prints_pure_json(run: Path) -> None:
    options = ["--json", "--no-baselines", "--part", "valid", "--seen-mask", "off"]
    shown = adarec("evaluate", run, *options)
    assert shown.exit_code == 0, shown.output
    (result,) = json.loads(shown.stdout)["results"]
    assert (result["part"], result["seen_mask"], result["num_users"]) == ("valid", "off", 60)
    assert 0 <= result["overall"]["NDCG@20"] <= 1
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    masked = adarec("evaluate", run, "--json", "--part", "valid")
    overall = json.loads(masked.stdout)["results"][0]["overall"]
    assert overall["NDCG@20"] == pytest.approx(logged["valid"]["NDCG@20"], abs=1e-9)


def test_evaluate_by_cut_offs_lists_and_segments(run: Path, tmp_path: Path) -> None:
    users, table = tmp_path / "users.csv", tmp_path / "metrics.csv"
    users.write_text("user,plan\nu00000,free\nu00001,paid\n")
    options = ["--ks", "3, 7", "--segments", "history", "--segments", f"{users}:plan"]
    shown = adarec("evaluate", run, *options, "--csv", table, COLUMNS="160")
    assert shown.exit_code == 0, shown.output
    for word in ("NDCG@7", "Coverage@3", "Diversity@7", "by history", "by plan", "(not told)"):
        assert word in shown.stdout
    assert "@20" not in shown.stdout
    rows = list(csv.DictReader(table.open()))
    assert {row["model"] for row in rows} == {"ADARec", "popularity", "markov chain"}
    free = next(row for row in rows if row["group"] == "free")
    assert (free["segment"], free["users"], free["Gini@3"]) == ("plan", "1", "")
    asked = adarec("evaluate", run, *options, "--json", "--no-baselines", "--no-lists")
    (result,) = json.loads(asked.stdout)["results"]
    assert (result["ks"], result["lists"]) == ([3, 7], None)
    assert result["segments"]["plan"]["free"]["HR@3"] == float(free["HR@3"])
    for wrong, message in (
        (["--ks", "5,x"], "--ks 5,x: must be cut-offs of at least 1"),
        (["--csv", tmp_path / "no" / "m.csv"], "there is no folder"),
        (["--segments", "plan"], "--segments plan: must be history, popularity, cold, or a file"),
    ):
        refused = adarec("evaluate", run, *wrong, COLUMNS="300")
        assert refused.exit_code == 2
        assert message in refused.stderr


def test_evaluate_says_nmi_of_planted_labels(tmp_path: Path, run: Path) -> None:
    # The labels live in the run folder, so a run on synthetic data is needed.
    folder = tmp_path / "synthetic"
    small = ["--epochs", "1", *TINY, "--batch-size", "2048", "--max-length", "10"]
    shown = adarec("train", "--run-dir", folder, *small)
    assert shown.exit_code == 0, shown.output
    assert "NMI with planted labels" in shown.stdout
    assert "NMI" not in adarec("evaluate", run).stdout


def test_recommend_to_users_by_id(run: Path, data: Path) -> None:
    options = ["--user", "u00003", "--user", "u00000", "--k", "6", "--format", "json"]
    shown = adarec("recommend", run, *options)
    assert shown.exit_code == 0, shown.output
    answers = json.loads(shown.stdout)
    assert [answer["user"] for answer in answers] == ["u00003", "u00000"]
    interactions = load(data)
    for answer in answers:
        index = int(interactions.users.encode([answer["user"]])[0])
        history = interactions.items.decode(interactions.sequence(index))
        assert answer["history"] == history
        items = [row["item"] for row in answer["items"]]
        scores = [row["score"] for row in answer["items"]]
        assert len(set(items)) == 6
        assert not set(items) & set(history)
        assert scores == sorted(scores, reverse=True)
        assert 0 <= answer["depth"] <= 2


def test_recommend_to_a_new_user_is_the_same_by_history(run: Path) -> None:
    known = adarec("recommend", run, "--user", "u00007", "--format", "json")
    (expected,) = json.loads(known.stdout)
    history = ", ".join(expected["history"])
    new = adarec("recommend", run, "--history", history, "--format", "json")
    (answer,) = json.loads(new.stdout)
    assert answer["user"] is None
    assert answer["items"] == expected["items"]


def test_ids_with_commas_and_spaces(tmp_path: Path) -> None:
    data = tmp_path / "events.csv"
    rows = [f'"u {u}","item, {i}",{i}' for u in range(4) for i in range(u, u + 6)]
    data.write_text("user,item,time\n" + "\n".join(rows) + "\n", encoding="utf-8-sig")
    folder = tmp_path / "a run"
    trained = adarec("train", "--data", data, "--run-dir", folder, "--epochs", "1", *TINY)
    assert trained.exit_code == 0, trained.output
    (line,) = (line for line in trained.stdout.splitlines() if "adarec-fast recommend" in line)
    shown = adarec(*shlex.split(line)[1:], "--format", "json")
    assert json.loads(shown.stdout)[0]["user"] == "u 0"
    shown = adarec("recommend", folder, "--history", '"item, 1", "item, 2"', "--format", "json")
    assert json.loads(shown.stdout)[0]["history"] == ["item, 1", "item, 2"]
    refused = adarec("recommend", folder, "--history", "item, 1")
    assert refused.exit_code == 2
    assert "unknown id 'item'" in refused.stderr
    assert "an id with a comma stands in double quotes" in refused.stderr


def test_recommend_says_why(run: Path) -> None:
    shown = adarec("recommend", run, "--user", "u00001", "--k", "3", "--why", "--format", "json")
    (answer,) = json.loads(shown.stdout)
    for entry in answer["items"]:
        owed = [reason["difference"] for reason in entry["why"]]
        assert len(owed) == len(answer["history"])
        assert owed == sorted(owed, reverse=True)
    table = adarec("recommend", run, "--user", "u00001", "--k", "3", "--why")
    assert "without" in table.stdout
    assert answer["items"][0]["why"][0]["item"] in table.stdout
    refused = adarec("recommend", run, "--user", "u00001", "--why", "--format", "csv")
    assert refused.exit_code == 2
    assert "--why goes with --format table or json, not csv" in refused.stderr


def test_recommend_as_csv_and_table(run: Path) -> None:
    shown = adarec("recommend", run, "--user", "u00001", "--k", "3", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(shown.stdout)))
    assert [(row["user"], row["rank"]) for row in rows] == [("u00001", str(r)) for r in (1, 2, 3)]
    table = adarec("recommend", run, "--user", "u00001", "--k", "3")
    assert all(row["item"] in table.stdout for row in rows)
    assert "user u00001, depth" in table.stdout


def test_only_unseen_items_come_unless_asked(run: Path, data: Path) -> None:
    catalogue = load(data).items.ids
    seen = ",".join(map(str, catalogue[:38]))
    left = adarec("recommend", run, "--history", seen, "--k", "40", "--format", "json")
    (answer,) = json.loads(left.stdout)
    assert sorted(row["item"] for row in answer["items"]) == sorted(catalogue[38:])
    every = adarec(
        "recommend", run, "--history", seen, "--k", "40", "--include-seen", "--format", "json"
    )
    assert len(json.loads(every.stdout)[0]["items"]) == len(catalogue)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--user ID, --history ITEM,ITEM,... or --all-users"),
        (["--user", "u9"], "--user: unknown id 'u9'"),
        (["--history", "t0-s0-i000,nothing"], "--history: unknown id 'nothing'"),
        (["--history", " , "], "names no item"),
        (["--history", 't0-s0-i000,"t0'], "--history: "),
        (["--user", "u00000", "--k", "41"], "k=41"),
        (["--user", "u00000", "--device", "tpu9"], "device='tpu9'"),
    ],
)
def test_bad_requests_are_one_line(run: Path, arguments: list[str], expected: str) -> None:
    shown = adarec("recommend", run, *arguments)
    assert shown.exit_code == 2
    assert shown.stdout == ""
    assert shown.stderr.startswith("error: ")
    assert shown.stderr.count("\n") == 1
    assert expected in shown.stderr


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    for name in ("evaluate", "recommend"):
        shown = adarec(name, tmp_path, *(["--user", "1"] if name == "recommend" else []))
        assert shown.exit_code == 2
        assert "holds no run" in shown.stderr


def test_a_tampered_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(run, tmp_path / "broken", symlinks=True)
    weights = next((broken / "best").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-40])
    shown = adarec("recommend", broken, "--user", "u00000")
    assert shown.exit_code == 2
    assert "safetensors" in shown.stderr


def test_a_run_folder_is_not_overwritten(run: Path, data: Path) -> None:
    shown = adarec("train", "--data", data, "--run-dir", run, "--epochs", "1", *TINY)
    assert shown.exit_code == 2
    assert "holds a run already" in shown.stderr


def test_resume_keeps_the_configuration(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "again", symlinks=True)
    shown = adarec("train", "--run-dir", folder, "--resume", "--epochs", "2")
    assert shown.exit_code == 0, shown.output
    assert "epoch 2/2" in shown.output
    assert "epoch 1/2" not in shown.output
    other = adarec("train", "--run-dir", folder, "--resume", "--hidden-size", "16")
    assert other.exit_code == 2
    assert "hidden_size" in other.stderr
    nowhere = adarec("train", "--resume")
    assert nowhere.exit_code == 2
    assert "--run-dir" in nowhere.stderr


def test_a_diverging_run_fails_with_one(data: Path, tmp_path: Path) -> None:
    options = ["--learning-rate", "1e30", "--gradient-clip", "0", "--epochs", "3"]
    shown = adarec("train", "--data", data, "--run-dir", tmp_path / "run", *TINY, *options)
    assert shown.exit_code == 1, shown.output
    assert "training diverged at step" in shown.stderr


def test_nothing_is_left_of_a_run_that_never_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("1 1 2 3\n2 3 2 1\n")
    shown = adarec("train", "--data", "short.txt", *TINY)
    assert shown.exit_code == 2
    assert "nothing to learn from" in shown.stderr
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_signals_save_and_say_how_to_go_on(
    data: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-c", "from adarec_fast.cli import app; app()", "train"]
    options = ["--data", str(data), "--run-dir", "run", "--epochs", "100000", "--patience", "9999"]
    process = subprocess.Popen(
        [*command, *options, *TINY],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 1/"):
                break
        time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert "--run-dir run --resume" in errors
    assert "Traceback" not in errors
