"""Runs on a split by time: saved, read back, resumed, evaluated, compared and swept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch
from typer.testing import CliRunner, Result

from adarec_fast import TrainConfig
from adarec_fast.cli import app
from adarec_fast.config import ConfigError
from adarec_fast.data import EvaluationBatch, InteractionData, Split, load
from adarec_fast.models.pretrained import CheckpointError
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.training import load_run, train

SMALL: dict[str, Any] = {
    "model": "sasrec", "hidden_size": 8, "num_layers": 1, "max_length": 9, "backend": "packed"
}  # fmt: skip
CONFIG = TrainConfig(epochs=2, batch_size=64, device="cpu")


def events(users: int = 60) -> polars.DataFrame:
    """A year and a half; the catalogue grows by an item in three weeks, users come and go."""
    g = np.random.default_rng(0)
    rows = []
    for user in range(users):
        days = np.sort(g.integers(0, 330) + g.integers(0, 200, g.integers(1, 14)))
        for day in days.tolist():
            date = np.datetime64("2025-01-01") + day
            rows.append((f"u{user}", f"i{g.integers(0, 30 + day // 20)}", str(date)))
    return polars.DataFrame(rows, schema=["user", "item", "date"], orient="row")


EVENTS = events()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "events.csv"
    EVENTS.write_csv(path)
    return path


@pytest.fixture(scope="module")
def data(file: Path) -> InteractionData:
    return load(file, split="time", at="2026-01-01")


@pytest.fixture(scope="module")
def run_dir(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = invoke(
        "train", "--data", file, "--split", "time", "--at", "2026-01-01", "--model", "sasrec",
        "--hidden-size", 8, "--num-layers", 1, "--max-length", 9, "--backend", "packed",
        "--epochs", 2, "--memory", "transitions", "--run-dir", folder,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "split: by time: " in done.output
    assert "unseen targets" in done.output
    return folder


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


class Random:
    """The same scores for a user whatever its batch."""

    name = "random"

    def scores(self, batch: EvaluationBatch) -> torch.Tensor:
        rows = [torch.Generator().manual_seed(int(user)) for user in batch.users]
        return torch.stack([torch.rand(NUM_ITEMS + 1, generator=g) for g in rows])


NUM_ITEMS = 0


@pytest.mark.parametrize("targets", ["next", "all"])
def test_metrics_are_those_of_ir_measures(
    data: InteractionData, monkeypatch: pytest.MonkeyPatch, targets: Any
) -> None:
    measures = pytest.importorskip("ir_measures")
    monkeypatch.setitem(globals(), "NUM_ITEMS", data.num_items)
    split = Split(data)
    result = evaluate(Random(), split, "test", batch_size=7, targets=targets)
    assert result.num_users == split.users("test").numel() < data.num_users
    assert result.num_unseen > 0
    assert result.num_cold > 0
    values, offsets = split.inputs("test")
    asked, documents = [], []
    for user in split.users("test").tolist():
        target = int(split.targets("test")[user])
        names = {data.items.decode([target])[0] if target else "new"}
        if targets == "all":  # from the file itself
            rows = EVENTS.filter(user=data.users.ids[user]).filter(polars.col("date") >= "2026")
            names = set(rows["item"])
        asked += [measures.Qrel(str(user), name, 1) for name in names]
        seen = set(values[offsets[user] : offsets[user + 1]].tolist())
        scores = torch.rand(data.num_items + 1, generator=torch.Generator().manual_seed(user))
        documents += [
            measures.ScoredDoc(str(user), data.items.decode([item])[0], float(scores[item]))
            for item in range(1, data.num_items + 1)
            if item not in seen
        ]
    wanted = {
        f"{ours}@{k}": theirs @ k
        for ours, theirs in (("HR", measures.Success), ("NDCG", measures.nDCG),
                             ("MRR", measures.RR), ("Recall", measures.R),
                             ("MAP", measures.AP))
        for k in (5, 10, 20) if f"{ours}@{k}" in result.overall
    }  # fmt: skip
    assert targets == "next" or len(wanted) == 15
    found = measures.calc_aggregate(list(wanted.values()), asked, documents)
    assert result.overall == pytest.approx({name: found[m] for name, m in wanted.items()})


def test_a_run_is_read_back_with_its_split(run_dir: Path, data: InteractionData) -> None:
    run = load_run(run_dir)
    assert run.data.cuts is not None
    assert data.cuts is not None
    assert run.data.cuts.facts == data.cuts.facts
    for name in ("valid", "test"):
        assert torch.equal(run.split.users(name), Split(data).users(name))  # type: ignore[arg-type]
        assert torch.equal(run.split.targets(name), Split(data).targets(name))  # type: ignore[arg-type]
    # What the memory counted is what trained.
    assert run.model.memory is not None
    held_out = Split(data).inputs("train")[0].bincount(minlength=data.num_items + 1) == 0
    assert not held_out[1:].any()
    assert run.source["source"]["at"] == "2026-01-01"


def test_another_cut_is_other_data(run_dir: Path, file: Path) -> None:
    other = invoke("train", "--run-dir", run_dir, "--resume", "--at", "2026-01-02")
    assert other.exit_code == 2
    assert "trained on other data" in other.output
    assert invoke("train", "--run-dir", run_dir, "--resume").exit_code == 0


def test_an_altered_cut_is_noticed(run_dir: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    path = copy / "interactions.safetensors"
    with safe_open(path, framework="pt") as kept:
        about = kept.metadata()
    tensors = load_file(path)
    tensors["cuts/test"][0] = tensors["cuts/valid"][0]
    tensors["cuts/lost"][1, 0] = ~tensors["cuts/lost"][1, 0]
    save_file(tensors, path, about)
    with pytest.raises(CheckpointError, match="altered"):
        load_run(copy)


def test_commands_on_the_run(run_dir: Path) -> None:
    told = invoke("evaluate", run_dir, "--json")
    assert told.exit_code == 0, told.output
    first = json.loads(told.stdout)["results"][0]
    several = invoke("evaluate", run_dir, "--targets", "all", "--no-baselines")
    assert several.exit_code == 0, several.output
    assert "Recall@20" in several.output
    assert first["num_unseen"] > 0
    assert first["num_cold"] > 0
    run = load_run(run_dir)
    cold = (set(range(run.data.num_users)) - set(run.split.users("test").tolist())).pop()
    empty = run.split.inputs("valid")[1].diff()[cold] == 0
    user = run.data.users.ids[cold]
    asked = invoke("recommend", run_dir, "--user", user, "--part", "valid")
    assert asked.exit_code == (2 if empty else 0), asked.output
    assert invoke("recommend", run_dir, "--user", user).exit_code == 0
    table = run_dir.parent / "all.csv"
    made = invoke("recommend", run_dir, "--all-users", "--part", "test", "--out", table,
                  "--format", "csv")  # fmt: skip
    assert made.exit_code == 0, made.output
    users = polars.read_csv(table)["user"].n_unique()
    assert users == int((run.split.inputs("test")[1].diff() > 0).sum())


def test_compared_with_another_run(
    run_dir: Path, data: InteractionData, file: Path, tmp_path: Path
) -> None:
    train({"model": "counting"}, CONFIG, data, tmp_path / "counting")
    told = invoke("compare", run_dir, tmp_path / "counting", "--json", "--part", "valid")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["users"] == Split(data).users("valid").numel()
    told = invoke("compare", run_dir, tmp_path / "counting", "--json", "--data", file)
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["users"] == Split(data).users("test").numel()
    leave_one_out = load(EVENTS)
    train({"model": "popularity"}, CONFIG, leave_one_out, tmp_path / "other")
    told = invoke("compare", run_dir, tmp_path / "other")
    assert told.exit_code == 2


def test_arms_and_a_sweep(file: Path, tmp_path: Path) -> None:
    arms = tmp_path / "arms.yaml"
    arms.write_text(
        "arms: {chain: {model: markov}, counts: {model: counting}}\nsplit: time\nat: 2026-01-01\n"
    )
    done = invoke("compare", "--arms", arms, "--data", file, "--seeds", 1, "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    again = invoke("compare", "--from", tmp_path / "o" / "compare.json", "--baseline", "counts",
                   "--part", "valid")  # fmt: skip
    assert again.exit_code == 0, again.output
    swept = invoke("sweep", "--data", file, "--split", "time", "--model", "markov", "--sweep-dir",
                   tmp_path / "cuts", "--grid", "at=2026-01-01,0.9")  # fmt: skip
    assert swept.exit_code == 0, swept.output
    refused = invoke("sweep", "--data", file, "--split", "none", "--grid", "model=markov,counting",
                     "--sweep-dir", tmp_path / "sweep")  # fmt: skip
    assert refused.exit_code == 2
    assert "split=none holds nothing out" in refused.output


def test_nothing_held_out_is_nothing_to_evaluate(data: InteractionData) -> None:
    everything = load(EVENTS, split="none")
    assert not Split(everything).holds_out
    with pytest.raises(ConfigError, match="there is no test part"):
        evaluate(Random(), Split(everything), "test")
