"""Configurations: validation in plain words, round trips, replacement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from adarec_fast.config import ConfigError, TrainConfig, read_mapping
from adarec_fast.models.adarec.config import ADARecConfig


def test_defaults_are_the_papers_where_it_speaks() -> None:
    config = ADARecConfig.create(num_items=10)
    assert (config.max_length, config.num_heads) == (50, 2)
    assert (config.gumbel_temperature, config.contrastive_temperature) == (0.5, 0.07)
    assert config.num_levels == config.max_depth + 1
    assert config.augmented


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    for config in (
        ADARecConfig.create(num_items=7, dropout=0.25, schedule="direct", moe=False, seed=2**62),
        TrainConfig.create(learning_rate=3e-4, amp="bf16", device="cuda:1"),
    ):
        path = tmp_path / f"config{suffix}"
        text = config.to_json() if suffix == ".json" else yaml.safe_dump(config.to_dict())
        path.write_text(text, encoding="utf-8")
        assert type(config).load(path) == config
        assert list(json.loads(config.to_json())) == list(type(config).model_fields)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "num_items is missing"),
        ({"num_items": 0}, r"num_items=0: .*greater than or equal to 1"),
        ({"num_items": "many"}, r"num_items='many': .*valid integer"),
        ({"num_items": 3, "max_depth": 0}, r"max_depth=0: .*greater than or equal to 1"),
        ({"num_items": 3, "dropout": 1.0}, r"dropout=1.0: .*less than 1"),
        ({"num_items": 3, "schedule": "cosine"}, "schedule='cosine': .*'respaced' or 'direct'"),
        ({"num_items": 3, "seed": -1}, "seed=-1"),
        (
            {"num_items": 3, "hidden_size": 65, "num_heads": 2},
            "hidden_size=65 is not divisible by num_heads=2; choose a multiple of 2",
        ),
        (
            {"num_items": 3, "hiden_size": 64},
            "unknown key 'hiden_size', did you mean 'hidden_size'",
        ),
        ({"num_items": 3, "zzz": 1}, "unknown key 'zzz'; known: num_items, max_length"),
        ({"num_items": 3, "dropout": float("nan")}, "dropout=nan"),
        ({"num_items": 3, "lambda_cont": -0.1}, "lambda_cont=-0.1"),
    ],
)
def test_bad_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ADARecConfig.create(**values)


def test_every_complaint_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)epochs=0.*batch_size=-3"):
        TrainConfig.create(epochs=0, batch_size=-3)


def test_replace_validates_and_leaves_the_original() -> None:
    config = ADARecConfig.create(num_items=5)
    assert config.replace(max_depth=8).max_depth == 8
    assert config.max_depth == 4
    with pytest.raises(ConfigError, match="hidden_size=3 is not divisible"):
        config.replace(hidden_size=3)
    with pytest.raises(ConfigError, match="did you mean 'max_depth'"):
        config.replace(maxdepth=8)


def test_fields_cannot_be_set() -> None:
    config = ADARecConfig.create(num_items=5)
    with pytest.raises(ValueError, match="frozen"):
        config.max_depth = 6  # type: ignore[misc]


def test_only_a_bare_backbone_is_not_augmented() -> None:
    config = ADARecConfig.create(num_items=5, depth="fixed", diffusion=False, moe=False)
    assert not config.augmented
    assert config.replace(moe=True).augmented


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "a.json: does not parse"),
        ("a.yaml", b"a: [1", "a.yaml: does not parse"),
        ("a.yaml", b"- 1\n- 2\n", "a.yaml: holds no mapping of names to values"),
        ("a.yaml", b"1: 2\n", "a.yaml: holds no mapping of names to values"),
        ("a.json", b"", "a.json: does not parse"),
        ("a.yaml", b"", "a.yaml: holds no mapping"),
        ("a.yaml", b"a: \xff", "a.yaml: not UTF-8 at byte 3"),
        ("a.yaml", None, "a.yaml: cannot be read: No such file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_mapping(tmp_path / name)
