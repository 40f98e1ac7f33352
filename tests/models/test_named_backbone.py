"""``backbone="package:Class"``: built by name, trained, saved and loaded; imported only where
somebody vouches for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers_cli import adarec
from helpers_training import DATA, MODEL, config

from adarec_fast import ADARec, ADARecConfig, ConfigError
from adarec_fast.data import write_csv
from adarec_fast.models.encoders import named
from adarec_fast.models.encoders.foreign import ForeignBackbone
from adarec_fast.training import load_run, train

SOURCE = '''
from torch import nn

class Mine(nn.GRU):
    def __init__(self, hidden_size, dropout, layers=1, **rest):
        super().__init__(hidden_size, hidden_size, layers, batch_first=True)
        self.dropout_given = dropout

class Asks(nn.Module):
    def __init__(self, width):
        super().__init__()

def function(hidden_size):
    raise AssertionError("it is not called")
'''
NAME = "shop_encoders:Mine"


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that can be imported, and nobody who vouches for it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "shop_encoders.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path / "outside"))
    monkeypatch.delitem(sys.modules, "shop_encoders", raising=False)
    monkeypatch.setattr(named, "_trusted", set())
    monkeypatch.delenv(named.ENVIRONMENT, raising=False)


def test_trained_saved_and_loaded_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    chosen = {**MODEL, "dropout": 0.25, "backbone": NAME}
    train(chosen, config(epochs=1, log="none"), DATA, run_dir)
    run = load_run(run_dir)
    encoder = run.model.backbone
    assert isinstance(encoder, ForeignBackbone)
    assert (encoder.module.hidden_size, encoder.module.dropout_given) == (16, 0.25)
    # Another process, which did not name it: not imported until the environment does.
    monkeypatch.setattr(named, "_trusted", set())
    monkeypatch.delitem(sys.modules, "shop_encoders")
    with pytest.raises(ConfigError, match=f"set {named.ENVIRONMENT}={NAME}"):
        load_run(run_dir)
    assert "shop_encoders" not in sys.modules
    monkeypatch.setenv(named.ENVIRONMENT, f"other:Thing,{NAME}")
    again = load_run(run_dir)
    assert torch.equal(
        again.model.backbone.module.weight_ih_l0, run.model.backbone.module.weight_ih_l0
    )


def test_on_the_command_line(tmp_path: Path) -> None:
    write_csv(DATA, tmp_path / "shop.csv")
    run = tmp_path / "run"
    shown = adarec(
        "train", "--data", tmp_path / "shop.csv", "--run-dir", run, "--backbone", NAME,
        "--hidden-size", "8", "--max-depth", "2", "--max-length", "10", "--epochs", "1",
        "--backend", "packed", "--device", "cpu", "--log", "none",
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    assert json.loads((run / "config.json").read_text())["model"]["backbone"] == NAME
    assert adarec("evaluate", run, "--no-baselines").exit_code == 0  # this process named it
    named._trusted.clear()
    refused = adarec("evaluate", run)
    assert refused.exit_code == 2
    assert named.ENVIRONMENT in refused.stderr
    # To go on with a run is not to name its encoder.
    refused = adarec("train", "--run-dir", run, "--resume", "--epochs", "2")
    assert refused.exit_code == 2
    assert named.ENVIRONMENT in refused.stderr


def test_a_module_of_its_own_goes_before_the_name() -> None:
    given = torch.nn.GRU(8, 8, batch_first=True)
    model = ADARec(ADARecConfig(num_items=5, hidden_size=8, backbone=NAME), backbone=given)
    assert model.backbone.module is given
    assert ADARec(num_items=5, hidden_size=8, backbone=NAME).config.backbone == NAME


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shop_encoders", "backbone='shop_encoders': string should match pattern"),
        ("os.system:x y", "should match pattern"),
        ("no_such_thing:Mine", "there is no module 'no_such_thing' to import"),
        ("shop_encoders:Yours", "shop_encoders has nothing named Yours"),
        ("shop_encoders:function", "must be a class derived from torch.nn.Module"),
        ("os:system", "must be a class derived from torch.nn.Module"),
        ("shop_encoders:Asks", "asks for width, which is no field .*; it may ask for num_items"),
    ],
)
def test_bad_names(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ADARec(num_items=5, hidden_size=8, backbone=name)
