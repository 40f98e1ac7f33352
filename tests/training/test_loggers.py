"""``--log``: TensorBoard, and stubs in the places of Weights & Biases and MLflow, which record
what they are asked for."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from helpers_training import DATA, config

from adarec_fast import ConfigError
from adarec_fast.training import train
from adarec_fast.training.metrics_log import flatten

MODEL: dict[str, Any] = {
    "model": "sasrec", "hidden_size": 8, "num_layers": 1, "max_length": 10, "backend": "packed",
}  # fmt: skip


class Store:
    """What both stubs were told."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.closed = 0
        self.runs: dict[str, dict[str, Any]] = {}
        self.broken = False


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            if store.broken:
                raise RuntimeError("W&B is out of order")
            store.logged.append((step, values))

        def finish(self) -> None:
            store.closed += 1

    def init(**options: Any) -> Run:
        store.starts.append(options)
        return Run()

    module = ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return store


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()

    class Client:
        def __init__(self, tracking_uri: str) -> None:
            store.starts.append({"uri": tracking_uri})

        def get_experiment_by_name(self, name: str) -> Any:
            return SimpleNamespace(experiment_id="7") if store.runs else None

        def create_experiment(self, name: str) -> str:
            return "7"

        def search_runs(self, experiments: list[str], filter_string: str) -> list[Any]:
            assert experiments == ["7"]
            return [
                SimpleNamespace(info=SimpleNamespace(run_id=name))
                for name, run in store.runs.items()
                if f"tags.`adarec_fast.run` = '{run['tags']['adarec_fast.run']}'" == filter_string
            ]

        def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
            store.runs[f"r{len(store.runs)}"] = {"name": run_name, "tags": tags, "params": {}}
            return SimpleNamespace(info=SimpleNamespace(run_id=f"r{len(store.runs) - 1}"))

        def log_param(self, run: str, name: str, value: Any) -> None:
            store.runs[run]["params"][name] = value

        def log_metric(self, run: str, name: str, value: float, step: int) -> None:
            assert run in store.runs
            assert re.fullmatch(r"[\w./ -]+", name)  # what MLflow takes
            store.logged.append((step, {name: value}))

        def set_terminated(self, run: str) -> None:
            store.closed += 1

    module = ModuleType("mlflow")
    module.MlflowClient = Client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever a logger sets
        monkeypatch.delenv(name)
    return store


def test_both_get_every_epoch_of_a_run_that_goes_on(
    wandb: Store, mlflow: Store, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(MODEL, config(epochs=1, log="wandb,mlflow"), DATA, run)
    # Who logs is free when a run goes on.
    history = train(MODEL, config(epochs=2, log="mlflow, wandb"), DATA, run, resume=True).history
    identity = json.loads((run / "config.json").read_text())["run"]
    assert not (run / "tensorboard").exists()
    for start in wandb.starts:
        assert (start["id"], start["resume"], start["mode"]) == (identity, "allow", "offline")
        assert (start["dir"], start["name"], start["project"]) == (str(run), "run", "adarec_fast")
        assert start["config"]["model.hidden_size"] == 8
    assert [step for step, _ in wandb.logged] == [1, 2]
    for line, (_, values) in zip(history, wandb.logged, strict=True):
        flat = flatten(line)
        assert values["valid/NDCG@20"] == line["valid"]["NDCG@20"]
        assert values == {n: v for n, v in flat.items() if n not in ("epoch", "step")}
    assert [start["uri"] for start in mlflow.starts] == [(run / "mlflow").absolute().as_uri()] * 2
    assert os.environ["MLFLOW_ALLOW_FILE_STORE"] == "true"  # MLflow 3 refuses folders without
    (stored,) = mlflow.runs.values()
    assert stored["params"]["train.epochs"] == 1
    found = [(step, v) for step, v in mlflow.logged if "valid/NDCG_at_20" in v]
    assert found == [
        (line["epoch"], {"valid/NDCG_at_20": line["valid"]["NDCG@20"]}) for line in history
    ]
    assert (wandb.closed, mlflow.closed) == (2, 2)


def test_the_environment_says_where_to(
    wandb: Store, mlflow: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "shop")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    train({"model": "popularity"}, config(log="wandb,mlflow"), DATA, tmp_path)
    assert (wandb.starts[0]["mode"], wandb.starts[0]["project"]) == ("online", "shop")
    assert mlflow.starts[0]["uri"] == "http://tracking:5000"


def test_a_logger_that_fails_leaves_a_run_to_go_on_with(
    wandb: Store, mlflow: Store, tmp_path: Path
) -> None:
    chosen = config(epochs=2, log="wandb,mlflow")
    wandb.broken = True
    with pytest.raises(RuntimeError, match="out of order"):
        train(MODEL, chosen, DATA, tmp_path)
    assert (wandb.closed, mlflow.closed) == (1, 1)
    wandb.broken = False
    assert train(MODEL, chosen, DATA, tmp_path, resume=True).epochs == 2


def test_none_and_tensorboard(tmp_path: Path) -> None:
    train({"model": "popularity"}, config(log="none"), DATA, tmp_path / "none")
    assert not (tmp_path / "none" / "tensorboard").exists()
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    train({"model": "popularity"}, config(log="tensorboard"), DATA, tmp_path / "board")
    assert any((tmp_path / "board" / "tensorboard").iterdir())


@pytest.mark.parametrize(("name", "extra"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_what_is_not_installed_is_said_before_there_is_a_folder(
    name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"--log {name} needs {name}: .*adarec_fast\[{extra}\]"):
        train(MODEL, config(log=name), DATA, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("log", ["wand", "wandb,wandb", "", "auto,wandb"])
def test_unknown_loggers(log: str) -> None:
    with pytest.raises(ConfigError, match="must be auto, none, or one or more of tensorboard"):
        config(log=log)
