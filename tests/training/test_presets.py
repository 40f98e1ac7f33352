"""Presets: named values, which options override."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_cli import adarec

from adarec_fast.config import ConfigError, TrainConfig
from adarec_fast.data import synthetic, write_csv
from adarec_fast.models.registry import create_config, described
from adarec_fast.training.presets import PRESETS, listed, preset

SMALL = ["--hidden-size", "8", "--num-layers", "1", "--max-depth", "2", "--backend", "packed",
         "--device", "cpu", "--epochs", "1"]  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_valid_configuration(name: str) -> None:
    values = preset(name)
    config = described(create_config({"num_items": 1, **values.model}))
    assert values.model.items() <= config.items()
    assert values.train.items() <= TrainConfig.create(**values.train).to_dict().items()
    assert not values.data
    assert values.system == config["model"]
    summary = PRESETS[name].summary
    assert "\n" not in summary
    assert {"name": name, "model": values.system, "summary": summary} in listed()


def test_the_papers_is_the_model_of_its_equations() -> None:
    values = preset("paper")
    config = create_config({"num_items": 1, **values.model})
    assert config == create_config({"num_items": 1})  # the defaults are the paper's
    assert TrainConfig.create(**values.train) == TrainConfig(weight_decay=1e-4)
    values.model["moe"] = False  # a copy
    assert preset("paper").model["moe"]


def test_an_unknown_one_says_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"preset 'papr' is not known, did you mean 'paper'\?"):
        preset("papr")
    refused = adarec("train", "--preset", "x")
    assert refused.exit_code == 2
    assert "--preset 'x' is not known; there are paper" in refused.stderr


def test_options_win_over_a_preset(tmp_path: Path) -> None:
    write_csv(synthetic(num_users=40, num_items=40), tmp_path / "data.csv")
    file = tmp_path / "config.yaml"
    file.write_text("lambda_cont: 0.03\nlambda_expl: 0.03\n")
    run = tmp_path / "run"
    command = ["train", "--preset", "paper", "--data", tmp_path / "data.csv", "--run-dir", run]
    own = [*SMALL, "--lambda-expl", "0.1", "--set", "router=level"]
    done = adarec(*command, "--config", file, *own)
    assert done.exit_code == 0, done.output
    stored = json.loads((run / "config.json").read_text())
    assert stored["train"]["weight_decay"] == 1e-4
    assert stored["model"]["gumbel_temperature"] == 0.5
    found = {name: stored["model"][name] for name in ("lambda_cont", "lambda_expl", "router")}
    assert found == {"lambda_cont": 0.03, "lambda_expl": 0.1, "router": "level"}
    again = adarec(*command, "--resume")
    assert "a run that goes on keeps its settings" in again.stderr
    other = adarec(*command, "--model", "sasrec")
    assert "--preset paper is of the model adarec, and --model names sasrec" in other.stderr
    file.write_text("lambda: 1\n")
    assert "unknown key 'lambda'" in adarec(*command, "--config", file).stderr


def test_models_lists_them() -> None:
    assert json.loads(adarec("models", "--json").stdout)["presets"] == listed()
    shown = adarec("models").stdout
    assert "paper" in shown
    assert "Eq. 1 to 13" in shown
