"""Options made from the configurations: precedence, both file layouts, suggestions, help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from adarec_fast.cli import app
from adarec_fast.config import ConfigError, TrainConfig
from adarec_fast.data.configured import load_data
from adarec_fast.models.adarec.config import ADARecConfig
from adarec_fast.models.registry import BUILT_IN, config_type
from adarec_fast.training.values import (
    SECTIONS,
    Values,
    fields,
    known_keys,
    place,
    read_assignments,
    read_config,
)

runner = CliRunner()


def test_nested_and_flat_files_mean_the_same(tmp_path: Path) -> None:
    nested, flat = tmp_path / "nested.json", tmp_path / "flat.yaml"
    nested.write_text(
        json.dumps(
            {
                "data": {"data": "x.txt", "k_core": 5},
                "model": {"hidden_size": 32},
                "train": {"epochs": 3, "learning_rate": 1e-3},
            }
        )
    )
    flat.write_text("data: x.txt\nk_core: 5\nhidden_size: 32\nepochs: 3\nlearning_rate: 0.001\n")
    expected = Values(
        data={"data": "x.txt", "k_core": 5},
        model={"hidden_size": 32},
        train={"epochs": 3, "learning_rate": 0.001},
    )
    assert read_config(nested) == read_config(flat) == expected


def test_one_seed_reaches_weights_and_batches() -> None:
    assert place({"seed": 7}) == Values(model={"seed": 7}, train={"seed": 7})
    assert read_assignments(["model.seed=8"]) == Values(model={"seed": 8})


def test_later_values_win() -> None:
    file = place({"dropout": 0.1, "epochs": 2})
    merged = file.update(place({"dropout": 0.2})).update(read_assignments(["epochs=4"]))
    assert merged == Values(model={"dropout": 0.2}, train={"epochs": 4})


def test_a_bare_off_in_yaml_is_the_word(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("amp: off\nseen_mask: off\nmoe: off\n")
    values = read_config(path)
    assert values == Values(model={"moe": False}, train={"amp": "off", "seen_mask": "off"})
    assert TrainConfig.create(**values.train).amp == "off"


def test_exponents_that_yaml_calls_strings_are_numbers() -> None:
    values = read_assignments(["learning_rate=1e-3"])
    assert TrainConfig.create(**values.train).learning_rate == 1e-3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hiden_size: 32", "unknown key 'hiden_size', did you mean 'hidden_size'?"),
        ("model: {droput: 0.1}", "unknown key 'droput', did you mean 'dropout'?"),
        ("modle: {dropout: 0.1}", "unknown key 'modle', did you mean 'model'?"),
        ("train: {hidden_size: 3}", "unknown key 'hidden_size'"),
        ("num_items: 3", "unknown key 'num_items'"),
    ],
)
def test_unknown_keys_of_a_file_name_the_right_one(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml") as caught:
        read_config(path)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("droput=0.1", "did you mean 'dropout'"),
        ("trian.epochs=1", "unknown key 'trian.epochs'"),
        ("dropout", "write key=value"),
        ("dropout=[", "is not YAML"),
    ],
)
def test_bad_assignments(assignment: str, expected: str) -> None:
    with pytest.raises(ConfigError, match="--set") as caught:
        read_assignments([assignment])
    assert expected in str(caught.value)


def test_data_values_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="min_length=2"):
        load_data({"min_length": 2})
    with pytest.raises(ConfigError, match=r"k_core: .*not for data=synthetic"):
        load_data({"k_core": 3})
    # As a run stores them, defaults and all.
    assert load_data(SECTIONS["data"].create().to_dict()).labels is not None


def test_every_field_is_an_option_with_help() -> None:
    shown = runner.invoke(app, ["train", "--help"], env={"COLUMNS": "200"}, color=False)
    assert shown.exit_code == 0
    for section in SECTIONS:
        for name, info in fields(section).items():
            assert f"--{name.replace('_', '-')}" in shown.output
            description = info.description
            assert description
            if name != "seed":
                assert description[:40].split(" (")[0] in shown.output
    assert "--num-items" not in shown.output
    assert "--model " in shown.output
    every = {name for kind in BUILT_IN for name in config_type(kind).model_fields}
    assert set(ADARecConfig.model_fields) < every
    assert {*known_keys("model"), "num_items", "num_users"} == {*every, "model"}


def test_an_unknown_option_is_a_usage_error_that_suggests() -> None:
    shown = runner.invoke(app, ["train", "--hiden-size", "3"])
    assert shown.exit_code == 2
    assert "--hidden-size" in shown.output


def test_tune_without_a_gpu_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    shown = runner.invoke(app, ["tune"])
    assert shown.exit_code == 2
    assert "CUDA device" in shown.output
