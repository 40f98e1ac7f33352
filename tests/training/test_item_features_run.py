"""Runs whose items have features: trained, resumed, evaluated, gone on from, added to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch
from helpers_cli import adarec
from helpers_training import config, outcome

from adarec_fast import Recommender, TrainConfig, load
from adarec_fast.config import ConfigError
from adarec_fast.data import InteractionData, Split
from adarec_fast.data.item_tables import read_items
from adarec_fast.export.graph import RankingModel
from adarec_fast.models.featured import FeaturedItems
from adarec_fast.models.pretrained import CheckpointError
from adarec_fast.models.registry import build, config_type
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.ranking.segments import by_training
from adarec_fast.training import load_run, train
from adarec_fast.training.further import continued, refitted
from adarec_fast.training.updated import add_items, load_current, update_memory

SMALL: dict[str, Any] = {
    "model": "sasrec", "hidden_size": 8, "num_layers": 1, "num_heads": 1, "max_length": 8,
    "dropout": 0.1, "attention_dropout": 0.1, "backend": "packed",
}  # fmt: skip


def planted(seed: int, users: int = 100, items: int = 60, themes: int = 6) -> tuple[Any, Any]:
    """A log and a table of items. A person stays with a theme, which the table tells; a fifth of
    the items comes up in the last fifth of the time, and sells then."""
    draw = np.random.default_rng(seed)
    theme = np.arange(items) % themes
    begins = np.where(draw.random(items) < 0.2, 0.8, 0.0)
    rows = []
    for user in range(users):
        own = draw.integers(themes)
        for moment in np.sort(draw.random(8)):
            there = np.flatnonzero((theme == own) & (begins <= moment))
            weight = np.where(begins[there] > 0, 4.0, 1.0)
            rows.append((f"u{user}", f"i{draw.choice(there, p=weight / weight.sum())}", moment))
    log = polars.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    table = polars.DataFrame({
        "item": [f"i{item}" for item in range(items)], "theme": [f"t{x}" for x in theme],
        "price": draw.random(items) * 90 + 10,
    })  # fmt: skip
    return log, table


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    log, table = planted(0)
    log.write_csv(folder / "log.csv")
    table.write_parquet(folder / "items.parquet")
    return folder


@pytest.fixture(scope="module")
def run(files: Path) -> Path:
    """Trained by the command line, on a split by time."""
    done = adarec(
        "train", "--data", files / "log.csv", "--items", files / "items.parquet", "--model",
        "sasrec", "--split", "time", "--at", "0.85", "--hidden-size", "8", "--num-layers", "1",
        "--dropout", "0.1", "--max-length", "8", "--backend", "packed", "--epochs", "6",
        "--learning-rate", "0.02", "--batch-size", "64", "--memory", "transitions", "--device",
        "cpu", "--log", "none", "--run-dir", files / "run",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "items: features theme (6 values), price (number);" in done.output
    return files / "run"


def data_of(files: Path, **options: Any) -> InteractionData:
    items = files / "items.parquet"
    return load(files / "log.csv", items=items, split="time", at=0.85, **options)


def items_of(run: Any) -> FeaturedItems:
    found = run.model.item_embedding
    assert isinstance(found, FeaturedItems)
    return found


class TestEvaluation:
    def test_cold_items_are_found_where_popularity_finds_none(self, run: Path) -> None:
        told = adarec("evaluate", run, "--json", "--ks", "10", "--device", "cpu")
        ours, popular, _ = json.loads(told.stdout)["results"]
        cold = ours["segments"]["cold"]["cold"]
        assert cold["users"] > 20
        assert cold["HR@10"] > 0.2
        assert cold["HR@10"] > 5 * popular["segments"]["cold"]["cold"]["HR@10"]
        assert ours["segments"]["cold"]["trained"]["HR@10"] > 0.1
        table = adarec("evaluate", run, "--no-baselines", "--no-lists", "--device", "cpu").output
        assert "by cold" in table

    def test_later_interactions(self, run: Path, tmp_path: Path) -> None:
        found = load_run(run)
        assert found.data.features is not None
        known = found.data.features.trained
        cold, trained = found.data.items.decode([known + 1, known])
        (tmp_path / "later.csv").write_text(
            f"user,item,time\nu0,{cold},2\nu1,{trained},3\nu2,nobody-knows,3\n"
        )
        told = adarec(
            "evaluate", run, "--data", tmp_path / "later.csv", "--json", "--no-baselines",
            "--device", "cpu",
        )  # fmt: skip
        groups = json.loads(told.stdout)["results"][0]["segments"]["cold"]
        assert {name: found["users"] for name, found in groups.items()} == {
            "trained": 1, "cold": 1, "unknown": 1,
        }  # fmt: skip

    def test_inspected(self, files: Path) -> None:
        told = adarec("data", "inspect", files / "log.csv", "--items", files / "items.parquet")
        assert "theme (6 values), price (number)" in told.output

    def test_segments_by_training(self, files: Path) -> None:
        data = data_of(files)
        split = Split(data)
        assert data.features is not None
        found = by_training(split, "test")
        counts = split.targets("test")
        assert torch.equal(found.index == 1, counts > data.features.trained)
        assert found.labels == ("trained", "cold", "unknown")


class TestRun:
    def test_resumed_it_is_what_it_would_have_been(self, files: Path, tmp_path: Path) -> None:
        more = {"model": "adarec", "max_depth": 1, "feature_net": "mlp", "id_dropout": 0.4}
        model = {**SMALL, **more, "supervision": "all"}
        data, options = data_of(files), config(epochs=2, batch_size=32, log="none")
        train(model, options, data, tmp_path / "whole")
        train(model, options, data, tmp_path / "stopped", stop_after_steps=4)
        train(model, options, data, tmp_path / "stopped", resume=True)
        assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")

    def test_it_keeps_what_it_needs(self, files: Path, run: Path) -> None:
        found, data = load_run(run), data_of(files)
        assert found.data.features is not None
        assert data.features is not None
        assert found.data.features.fingerprint() == data.features.fingerprint()
        assert found.data.items == data.items
        for name in ("features.json", "features.safetensors"):
            assert (run / "best" / name).exists()
        about = json.loads((run / "config.json").read_text())["data"]
        assert about["features"]["trained"] == data.features.trained
        assert Path(about["source"]["items"]).is_absolute()

    def test_resuming_with_other_features_is_refused(self, files: Path, tmp_path: Path) -> None:
        options = config(epochs=1, batch_size=256, log="none")
        train(SMALL, options, data_of(files), tmp_path)
        with pytest.raises(CheckpointError, match="other features"):
            train(SMALL, options, data_of(files, features="theme"), tmp_path, resume=True)
        plain = load(files / "log.csv", split="time", at=0.85)
        with pytest.raises(CheckpointError, match=r"model\.num_items"):
            train(SMALL, options, plain, tmp_path, resume=True)

    def test_a_cold_item_is_recommended_asked_about_and_exported(self, run: Path) -> None:
        found = load_run(run)
        assert found.data.features is not None
        cold = found.data.items.decode([found.data.features.trained + 1])[0]
        told = adarec("recommend", run, "--history", cold, "--k", "3", "--output", "json")
        assert told.exit_code == 0
        assert json.loads(told.stdout)[0]["history"] == [cold]
        table = found.data.items.find([cold])
        answers = Recommender(found.model).recommend([table.tolist()], k=found.data.num_items - 1)
        assert answers.items.max() == found.data.num_items
        similar = adarec("similar", run, cold, "--k", "3")
        assert similar.exit_code == 0, similar.output
        graph = RankingModel(found.model, k=5, exclude_seen=False)
        assert not any(isinstance(part, FeaturedItems) for part in graph.modules())
        with torch.no_grad():
            items, scores = graph(torch.tensor([[int(table[0]), 1, 0]]))
        expected = Recommender(found.model).recommend(
            [[int(table[0]), 1]], k=5, exclude_seen=False
        )
        assert torch.equal(items, expected.items)
        assert torch.allclose(scores, expected.scores, atol=1e-4)

    def test_what_does_not_go_together_is_refused_first(self, files: Path, tmp_path: Path) -> None:
        data, plain = data_of(files), load(files / "log.csv", min_length=3)
        for model, given, words in (
            ({"model": "popularity"}, data, "model popularity: .*--items"),
            ({"model": "bert4rec"}, data, "model bert4rec: .*--items"),
            ({**SMALL, "feature_net": "mlp"}, plain, "feature_net=mlp: is for features"),
            ({**SMALL, "id_dropout": 0.5}, plain, r"id_dropout=0\.5: is for features"),
        ):  # fmt: skip
            with pytest.raises(ConfigError, match=words):
                train(model, TrainConfig(device="cpu"), given, tmp_path / "no")
        assert not (tmp_path / "no").exists()
        told = adarec("train", "--data", files / "log.csv", "--features", "theme")
        assert told.exit_code != 0
        assert "--items FILE" in told.output
        told = adarec("train", "--items", files / "items.parquet")
        assert told.exit_code != 0
        assert "items: these are for files" in told.output


class TestGoingOn:
    def test_refitted(self, files: Path, run: Path, tmp_path: Path) -> None:
        whole = load(files / "log.csv", split="none", items=files / "items.parquet")
        plan = refitted(run, whole, train={"epochs": 1})
        assert plan.data.features is not None
        assert plan.data.features.trained == len(set(whole.values.tolist()))
        train(plan.model, plan.train, plan.data, tmp_path / "whole", start=plan.start)
        assert len(items_of(load_run(tmp_path / "whole")).ids) == plan.data.features.trained
        with pytest.raises(ConfigError, match="its items have features"):
            refitted(run, load(files / "log.csv", split="none"))

    def test_trained_further(self, files: Path, run: Path, tmp_path: Path) -> None:
        before = load_run(run)
        assert before.data.features is not None
        known = before.data.features.trained
        cold = before.data.items.decode([known + 1])[0]
        (tmp_path / "later.csv").write_text(
            f"user,item,time\nu0,{cold},2\nu0,new,3\nu1,new,3\nu1,i3,4\nu2,{cold},5\nu3,odd,6\n"
        )
        polars.DataFrame({
            "item": ["new", "waits"], "theme": ["t9", "t2"], "price": [50.0, 1.0]
        }).write_csv(tmp_path / "new.csv")  # fmt: skip
        more = load(tmp_path / "later.csv", min_length=1)
        table = read_items(tmp_path / "new.csv", like=before.data.features.rows.columns)
        plan = continued(run, more, hold_out="none", items=table, train={"epochs": 1})
        after = plan.data.features
        assert after is not None
        ids = plan.data.items.ids
        assert ids[:known] == before.data.items.ids[:known]
        assert {cold, "new", "odd"} <= set(ids[known : after.trained])
        assert "waits" in ids[-1:]
        assert after.rows.labels[-1] == (0, "t9")
        fresh = build(plan.model)
        fresh.join_features(after)
        plan.start.give(fresh, Split(plan.data))
        items, old = fresh.item_embedding, items_of(before)
        assert isinstance(items, FeaturedItems)
        assert torch.equal(items.ids[:known], old.ids)
        assert items.values is not None
        assert old.values is not None
        assert items.numbers is not None
        assert torch.equal(items.values[:-1], old.values)
        assert not items.values[-1].any()
        assert torch.equal(items.mean, old.mean)
        assert torch.equal(items.scale, old.scale)
        # A cold item that comes to be trained begins where it was.
        with torch.no_grad():
            place = [int(v.find([cold])[0]) for v in (plan.data.items, before.data.items)]
            now, then = fresh.eval().table()[place[0]], before.model.table()[place[1]]
        assert torch.allclose(now, then, atol=1e-5)
        done = adarec(
            "train", "--from", run, "--data", tmp_path / "later.csv", "--items",
            tmp_path / "new.csv", "--split", "none", "--epochs", "1", "--run-dir", tmp_path / "on",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert load_run(tmp_path / "on").data.items.ids == ids

    def test_without_features_there_is_nothing_to_add_to(self, files: Path, tmp_path: Path) -> None:
        plain = load(files / "log.csv", min_length=3)
        train({**SMALL, "memory": "transitions"}, config(epochs=1, log="none"), plain, tmp_path)
        table = read_items(files / "items.parquet")
        more = load({"u0": ["i1", "i2"]}, min_length=1)
        for call in (
            lambda: continued(tmp_path, more, items=table),
            lambda: update_memory(tmp_path, more, table),
            lambda: add_items(tmp_path, table),
        ):
            with pytest.raises(ConfigError, match="its items have no features"):
                call()


class TestAdded:
    def test_new_items_without_training(self, run: Path, tmp_path: Path) -> None:
        shutil.copytree(run, tmp_path / "run")
        before = load_run(run)
        polars.DataFrame({"item": ["first", "second"], "theme": ["t1", "t2"]}).write_csv(
            tmp_path / "new.csv"
        )
        told = adarec("items", "add", tmp_path / "run", tmp_path / "new.csv")
        assert told.exit_code == 0
        assert "2 more than it was trained with" in told.output
        now = load_current(tmp_path / "run")
        assert now.data.items.ids == [*before.data.items.ids, "first", "second"]
        old, new = before.model.table().detach(), now.model.table().detach()
        known = items_of(before).trained
        assert torch.equal(new[: known + 1], old[: known + 1])
        assert torch.allclose(new[: len(old)], old, atol=1e-6)
        # Two of one theme are where it is; what else is known is the price, which these have not.
        told = adarec(
            "recommend", tmp_path / "run", "--history", "first", "--k", "5", "--output", "json"
        )
        answer = json.loads(told.stdout)[0]
        assert answer["history"] == ["first"]
        assert len(answer["items"]) == 5
        # The run itself is what it was, and so are its figures.
        assert load_run(tmp_path / "run").data.num_items == before.data.num_items
        # Counted on top of that, interactions with an item that nothing is known of.
        grown = update_memory(tmp_path / "run", load({"u0": ["first", "strange"]}, min_length=1))
        now = load_current(tmp_path / "run")
        assert now.data.items.ids[-2:] == ["second", "strange"]
        assert grown.new_items == 1
        assert now.model.memory is not None
        assert now.model.memory.num_items == now.data.num_items
        assert torch.allclose(now.model.table()[:-1], new, atol=1e-6)

    def test_a_table_of_other_columns_is_refused(self, run: Path, tmp_path: Path) -> None:
        polars.DataFrame({"item": ["first"], "size": [1]}).write_csv(tmp_path / "new.csv")
        told = adarec("items", "add", run, tmp_path / "new.csv")
        assert told.exit_code != 0
        assert "none of the features theme, price" in told.output
        assert not (run / "updated").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("system", ["sasrec", "adarec"])
def test_cold_items_beat_popularity(tmp_path: Path, system: str, seed: int) -> None:
    log, table = planted(seed, users=500, items=300, themes=12)
    data = load(log, items=table, split="time", at=0.85)
    model = {**SMALL, "model": system, "hidden_size": 16, "backend": "auto"}
    options = TrainConfig(epochs=15, batch_size=128, learning_rate=5e-3, device="cpu", log="none")
    train(model, options, data, tmp_path)
    run = load_run(tmp_path)
    popularity = build(config_type("popularity").create(num_items=data.num_items))
    popularity.prepare(run.split)
    groups = [by_training(run.split, "test")]
    ours, popular = (
        evaluate(each, run.split, segments=groups, ks=(10,)).segments["cold"]
        for each in (run.model, popularity)
    )
    print(system, seed, {name: [found[name] for found in (ours, popular)] for name in ours})
    assert ours["cold"]["NDCG@10"] > 0.02 + popular["cold"]["NDCG@10"]
    assert ours["trained"]["NDCG@10"] > popular["trained"]["NDCG@10"]
