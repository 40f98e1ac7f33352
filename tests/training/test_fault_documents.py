"""Configurations in YAML and JSON made to harm, and any text and values at all."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusal import refusal

from adarec_fast import ConfigError, TrainConfig
from adarec_fast.config import read_mapping
from adarec_fast.data import DataError, Vocabulary
from adarec_fast.documents import DEEPEST, DocumentError, parse_json, parse_yaml, shown
from adarec_fast.models.adarec.config import ADARecConfig
from adarec_fast.training.values import read_assignments, read_config

LAUGHS = "a0: &a0 [lol]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)
YAML = {
    "a billion laughs": (LAUGHS + "epochs: *a29\n", "anchors and aliases"),
    "merged a billion times": (MERGES, "anchors and aliases"),
    "an alias of itself": ("epochs: &a [*a]\n", "anchors and aliases"),
    "a call": ("epochs: !!python/object/apply:os.mkdir ['MARK']\n", "the tag .* is not read"),
    "an object": ("!!python/object/new:os.mkdir ['MARK']\n", "the tag .* is not read"),
    "a local tag": ("epochs: !mine 3\n", "the tag '!mine'"),
    "a broken number": ("epochs: !!int ''\n", "the tag"),
    "nested 100,000 deep": ("epochs: " + "[" * 100_000, f"nested more than {DEEPEST} deep"),
    "mappings 10,000 deep": ("{a: " * 10_000, f"nested more than {DEEPEST} deep"),
    "indented 400 deep": ("".join(f"{' ' * i}a:\n" for i in range(400)), "nested more than"),
    "a key twice": ("epochs: 1\nepochs: 2\n", "'epochs' occurs twice"),
    "a date that is none": ("epochs: 2024-13-45\n", "epochs='2024-13-45'"),
    "digits without end": ("epochs: " + "9" * 200_000, "does not parse as YAML"),
    "sexagesimals without end": ("epochs: 1" + ":1" * 90_000, "does not fit in 64 bits"),
    "hexadecimals without end": ("epochs: 0x" + "f" * 200_000, "does not fit in 64 bits"),
    "not a number": ("learning_rate: .nan\n", "learning_rate=nan"),
    "infinity": ("learning_rate: .inf\n", "learning_rate=inf"),
    "a huge text": ("epochs: " + "x" * 200_000, "epochs='x+'…: "),
    "50,000 unknown keys": ("".join(f"k{i}: 1\n" for i in range(25_000)), "unknown key 'k0'"),
    "a mapping as key": ("{{a: 1}: 2}", "does not parse as YAML"),
    "a list as key": ("? [1]\n: 2\n", "does not parse as YAML"),
    "a NUL": ("epochs: \0", "does not parse as YAML"),
    "a megabyte": ("# " + "x" * (1 << 20) + "\nepochs: 1\n", "holds more than 262144 bytes"),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    text, message = YAML[name]
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")

    def read() -> None:
        TrainConfig.create(**read_config(path).train)

    said = refusal(read)
    assert len(said) < 3000
    assert re.search(message, said), said
    if "\n" not in text[:-1] and len(text) < 1000:
        refusal(lambda: TrainConfig.create(**read_assignments([text.replace(": ", "=", 1)]).train))
    assert not (tmp_path / "MARK").exists()


# ---------------------------------------------------------------------- anything at all

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(text=st.text() | st.text("!&*?:-[]{}<>|,'\"0x_1.e\n #%@~atrue") | PLAIN.map(json.dumps))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (parse_json, parse_yaml):
        try:
            value = parse(text)
        except DocumentError:
            continue
        assert len(shown(value)) < 400


@settings(deadline=None, max_examples=60)
@given(values=st.dictionaries(st.sampled_from(list(ADARecConfig.model_fields)) | st.text(), PLAIN))
def test_any_values_make_a_configuration_or_are_refused(values: dict[str, Any]) -> None:
    for kind in (ADARecConfig, TrainConfig):
        message = ""
        try:
            kind.create(**values)
        except ConfigError as error:
            message = str(error)
        assert len(message) < 20_000


@settings(deadline=None, max_examples=60)
@given(value=PLAIN)
def test_any_value_is_a_vocabulary_or_is_refused(value: Any) -> None:
    for given_value in (value, {"kind": "int", "first": 0, "ids": value},
                        {"kind": "str", "first": value, "ids": ["a"]}):  # fmt: skip
        with contextlib.suppress(DataError):
            assert len(Vocabulary.from_json(given_value)) >= 0


def test_round_trip_of_what_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: {hidden_size: 32, moe: off}\nepochs: 3\nlearning_rate: 1.0e-3\n")
    assert read_mapping(path)["model"] == {"hidden_size": 32, "moe": False}
    values = read_config(path)
    assert values.train == {"epochs": 3, "learning_rate": 0.001}
