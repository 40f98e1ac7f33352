"""Runs that go back to a run: refitted on everything, and trained further with what came later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from adarec_fast import TrainConfig, synthetic
from adarec_fast.cli import app
from adarec_fast.config import ConfigError
from adarec_fast.data import InteractionData, Split, load, write_csv
from adarec_fast.models import growing
from adarec_fast.models.growing import take_over
from adarec_fast.models.memory import Memory
from adarec_fast.models.registry import build, create_config
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.training import load_run, train
from adarec_fast.training.further import continued, refitted
from adarec_fast.training.remember import remember

SMALL: dict[str, Any] = {"hidden_size": 8, "max_length": 9, "backend": "packed"}
MODELS: dict[str, dict[str, Any]] = {
    "adarec": {**SMALL, "model": "adarec", "num_layers": 1, "max_depth": 2, "supervision": "all"},
    "sasrec": {**SMALL, "model": "sasrec", "num_layers": 1, "memory": "transitions"},
    "counting": {"model": "counting"},
    "markov": {"model": "markov"},
    "popularity": {"model": "popularity"},
}
CONFIG = TrainConfig(epochs=2, batch_size=64, device="cpu", learning_rate=0.01)
DATA = synthetic(num_users=40, num_items=30, num_themes=2, subthemes_per_theme=2, seed=2)


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def later() -> InteractionData:
    """Ten known users and three new ones, three new items, one of them alone."""
    users, items = DATA.users.ids, DATA.items.ids
    rows = {user: ["fresh", items[3], "new", items[place]] for place, user in
            enumerate(users[:10])}  # fmt: skip
    rows |= {"n1": [items[0], "fresh", items[5]], "n2": ["new"], "n3": ["odd"]}
    return load(rows, min_length=1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each model."""
    folder = tmp_path_factory.mktemp("runs")
    for name, model in MODELS.items():
        train(model, CONFIG, DATA, folder / name)
    return {name: folder / name for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_further_by_each_model(runs: dict[str, Path], tmp_path: Path, name: str) -> None:
    before = load_run(runs[name])
    plan = continued(runs[name], later())
    assert plan.added is not None
    assert plan.added[1:] == (3, 3, 45)
    items = before.data.items.ids
    assert plan.data.items.ids == [*items, "fresh", "new", "odd"]
    assert plan.data.users.ids[: DATA.num_users] == DATA.users.ids
    # Bit for bit before the first step.
    model = build(plan.model)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    if not model.fitted:
        split = Split(plan.data)
        plan.start.give(model, split)
        for key, old in before.model.state_dict().items():
            assert torch.equal(model.state_dict()[key][: old.shape[0]] if old.dim() else
                               model.state_dict()[key], old)  # fmt: skip
        # A new item begins as the mean of what it comes with, or, coming with nothing, as drawn.
        table = before.model.table()
        counts = Memory.of(*split.inputs("train"), len(items) + 3, max_length=9)
        begin, end = counts.rows[len(items) + 1 : len(items) + 3].tolist()
        others = counts.neighbours[begin:end].long()
        there = others <= len(items)
        weights = counts.weights[begin:end][there, None]
        expected = (weights * table[others[there]]).sum(0) / weights.sum()
        torch.testing.assert_close(model.table()[len(items) + 1], expected)
        assert torch.equal(model.table()[-1], fresh["item_embedding.weight"][-1])
    result = train(plan.model, plan.train, plan.data, tmp_path / "run", start=plan.start)
    assert result.status == "finished"
    run = load_run(tmp_path / "run")
    assert run.model.item_vocabulary == plan.data.items
    assert run.source["from"]["new_items"] == 3
    assert run.source["from"]["folder"] == str(runs[name])
    assert run.split.users("test").tolist() == [*range(10), DATA.num_users]
    if model.fitted:
        # Counts of all that is not held out, of before and of now.
        whole = build(plan.model)
        whole.prepare(run.split)
        for key, value in whole.state_dict().items():
            assert torch.equal(run.model.state_dict()[key], value)


def test_popularity_adds_up(runs: dict[str, Path], tmp_path: Path) -> None:
    plan = continued(runs["popularity"], later(), hold_out="none")
    train(plan.model, plan.train, plan.data, tmp_path / "run", start=plan.start)
    counts = load_run(tmp_path / "run").model.table()[:, 0]
    expected = torch.bincount(plan.data.values, minlength=34).float()
    assert torch.equal(counts, expected)
    assert expected[:31].sum() == DATA.num_interactions + 22


def test_without_a_step_nothing_changes(runs: dict[str, Path], tmp_path: Path) -> None:
    """What is saved before the first step ranks known items as the run did."""
    plan = continued(runs["adarec"], later())
    train(plan.model, plan.train, plan.data, tmp_path / "run", start=plan.start, stop_after_steps=1)
    kept = load_run(tmp_path / "run", which="last").model
    old = load_run(runs["adarec"]).model
    assert not torch.equal(kept.table()[:31], old.table())
    model = build(plan.model)
    plan.start.give(model, Split(plan.data))
    history = torch.tensor([3, 5, 9]), torch.tensor([0, 3])
    assert torch.equal(model.eval().represent(*history), old.represent(*history))


def test_sizes_that_differ_are_refused(runs: dict[str, Path]) -> None:
    message = r"item_embedding.weight is \[34, 16\] and was \[31, 8\]"
    with pytest.raises(ConfigError, match=message):
        continued(runs["adarec"], later(), model={"hidden_size": 16})
    with pytest.raises(ConfigError, match="a SASRec cannot go on from a ADARec"):
        take_over(
            build(create_config({**MODELS["sasrec"], "num_items": 30})),
            load_run(runs["adarec"]).model,
        )
    with pytest.raises(ConfigError, match="split='time': what comes to a run"):
        continued(runs["adarec"], later(), hold_out="time")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is of the model adarec, and cannot go on as a sasrec"):
        continued(runs["adarec"], later(), model={"model": "sasrec", "max_depth": 2})


@pytest.mark.slow
def test_new_items_begin_better_by_what_they_come_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On planted data, of three seeds: items that came up later rank better in each."""
    shape = {"model": "sasrec", "hidden_size": 32, "num_layers": 1, "max_length": 30,
             "dropout": 0.2, "attention_dropout": 0.2}  # fmt: skip
    config = {"batch_size": 128, "learning_rate": 3e-3, "device": "cpu", "patience": 6}
    begin = growing.begin_new_items
    gained = []
    for seed in range(3):
        data = synthetic(500, 160, num_themes=4, subthemes_per_theme=4, seed=seed)
        drawn = torch.randperm(160, generator=torch.Generator().manual_seed(seed))[:24]
        late = set(data.items.decode(drawn + 1))
        old, new = {}, {}
        for place, user in enumerate(data.users.ids):
            history = data.items.decode(data.sequence(place))
            cut = max(3, 2 * len(history) // 3)
            old[user] = [item for item in history[:cut] if item not in late]
            new[user] = history[cut:]
        base = tmp_path / f"{seed}"
        train({**shape, "seed": seed}, TrainConfig(epochs=20, seed=seed, **config), load(old), base)
        more = load({user: items for user, items in new.items() if items}, min_length=1)
        plan = continued(base, more, train={"epochs": 6})
        found = []
        for name, way in (("drawn", lambda *_: None), ("means", begin)):
            monkeypatch.setattr("adarec_fast.training.further.begin_new_items", way)
            folder = tmp_path / f"{seed}-{name}"
            train(plan.model, plan.train, plan.data, folder, start=plan.start)
            run = load_run(folder)
            users = run.split.users("test")
            is_late = torch.tensor([
                item in late for item in run.data.items.decode(run.split.targets("test")[users])
            ])  # fmt: skip
            result = evaluate(run.model, run.split, "test", users=users[is_late])
            found.append(result.overall["NDCG@20"])
        gained.append(found[1] - found[0])
    assert min(gained) > 0, gained
    assert sum(gained) / 3 > 0.01, gained


def test_refitted(runs: dict[str, Path], tmp_path: Path) -> None:
    old = load_run(runs["sasrec"])
    plan = refitted(runs["sasrec"])
    best = max(line["epoch"] for line in old.history if line.get("best"))
    assert plan.train == old.train_config.replace(epochs=best)
    result = train(plan.model, plan.train, plan.data, tmp_path / "run", start=plan.start)
    assert result.best_epoch == best
    assert result.best_metric is None
    run = load_run(tmp_path / "run")
    assert all("valid" not in line for line in run.history)
    assert run.split.training_prefixes() == int((DATA.lengths - 1).sum())
    # From new weights, as the same training on the same data would have it.
    assert run.source["from"]["note"].endswith("test figures of this run are void")
    kept, fitted = run.model.memory, old.model.memory
    assert kept is not None
    assert fitted is not None
    assert (kept.alpha, kept.gamma) == (fitted.alpha, fitted.gamma)
    told = invoke("evaluate", tmp_path / "run")
    assert told.exit_code == 2
    assert "all of it was trained on" in told.output
    # It can go on, but not be refitted again.
    assert invoke("train", "--refit", tmp_path / "run").exit_code == 2
    assert continued(tmp_path / "run", later()).data.num_items == 33


def test_a_memory_needs_something_to_be_fitted_on(tmp_path: Path) -> None:
    everything = refitted_data()
    with pytest.raises(ConfigError, match="chosen on a validation part"):
        train(MODELS["sasrec"], CONFIG, everything, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_memory_of_another_kind_is_not_taken_over(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    plan = refitted(runs["sasrec"], model={"memory": "regression"})
    with pytest.raises(ConfigError, match=r"memory='regression'.*one of transitions, "):
        train(plan.model, plan.train, plan.data, tmp_path / "run", start=plan.start)
    assert not (tmp_path / "run").exists()
    # What was trained without one takes that of the run that it goes back to, whatever its kind.
    plan = refitted(runs["sasrec"], model={"memory": "none"}, train={"epochs": 1})
    train(plan.model, plan.train, plan.data, tmp_path / "run", start=plan.start)
    remember(tmp_path / "run")
    memory = load_run(tmp_path / "run").model.memory
    assert memory is not None
    assert memory.kind == "transitions"
    with pytest.raises(ConfigError, match=r"memory='regression'.*one of transitions"):
        remember(tmp_path / "run", kind="regression")


def refitted_data() -> InteractionData:
    from adarec_fast.data.readers import train_on_all

    return train_on_all(DATA)


def test_by_commands(tmp_path: Path) -> None:
    file, more = tmp_path / "events.csv", tmp_path / "later.csv"
    write_csv(DATA, file)
    lines = [f"{user},{item},{9000 + place}" for user, items in
             {"n1": DATA.items.ids[:4], DATA.users.ids[0]: [*DATA.items.ids[5:8], "fresh"]}.items()
             for place, item in enumerate(items)]  # fmt: skip
    header = file.read_text().splitlines()[0]
    more.write_text("\n".join([header, *lines]) + "\n")
    shape = ("--model", "sasrec", "--hidden-size", 8, "--num-layers", 1, "--backend", "packed")
    base, whole, further = (tmp_path / name for name in ("base", "whole", "further"))
    done = invoke("train", "--data", file, *shape, "--epochs", 1, "--run-dir", base)
    assert done.exit_code == 0, done.output
    told = invoke("evaluate", base, "--data", more, "--json", "--no-baselines")
    assert told.exit_code == 0, told.output
    answer = json.loads(told.stdout)
    assert answer["later"]["new_users"] == 1
    assert answer["later"]["new_items"] == 1
    assert answer["results"][0]["num_users"] == 2
    assert "8 interactions of 1 known and 1 new users" in invoke(
        "evaluate", base, "--data", more).output  # fmt: skip
    assert invoke("evaluate", base, "--data", more, "--part", "valid").exit_code == 2

    done = invoke("train", "--refit", base, "--run-dir", whole)
    assert done.exit_code == 0, done.output
    assert "test figures of this run are void" in done.output
    assert invoke("recommend", whole, "--user", DATA.users.ids[0]).exit_code == 0

    done = invoke("train", "--from", whole, "--data", more, "--run-dir", further, "--epochs", 1)
    assert done.exit_code == 0, done.output
    assert "8 new interactions, 1 new users, 1 new items; goes on from" in done.output
    # Its folder has all it needs, its data too.
    for needed in (file, more):
        needed.unlink()
    again = invoke("train", "--run-dir", further, "--resume", "--epochs", 2)
    assert again.exit_code == 0, again.output
    asked = invoke("recommend", further, "--history", "fresh", "--format", "json", "--k", 3)
    assert asked.exit_code == 0, asked.output
    assert invoke("train", "--run-dir", whole, "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--from", "RUN"), "--from RUN needs --data FILE"),
        (("--from", "RUN", "--refit", "RUN"), "--from and --refit: choose one"),
        (("--refit", "RUN", "--model", "markov"), "is of the model sasrec, and --model names"),
        (("--refit", "RUN", "--split", "none"), "leave out --split"),
        (("--refit", "RUN", "--k-core", 2), "k_core: goes with --data FILE"),
        (("--from", "RUN", "--data", "x.csv", "--split", "time"), "leave-one-out or none"),
        (("--from", "RUN", "--data", "x.csv", "--k-core", 3), "is for a whole data set"),
        (("--from", "nowhere", "--data", "x.csv"), "holds no run"),
    ],
)
def test_options_that_do_not_fit(
    runs: dict[str, Path], tmp_path: Path, words: tuple[Any, ...], message: str
) -> None:
    words = tuple(runs["sasrec"] if word == "RUN" else word for word in words)
    told = invoke("train", *words, "--run-dir", tmp_path / "run")
    assert told.exit_code == 2
    assert message in " ".join(told.output.split())
    assert not (tmp_path / "run").exists()
