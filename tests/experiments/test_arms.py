"""What ``adarec-fast compare`` is asked: its arms, and runs that are no answer to one question."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from adarec_fast.config import ConfigError
from adarec_fast.data import Split, load
from adarec_fast.experiments.arms import Arms, read_arms
from adarec_fast.experiments.runs import _check_same, _other_settings
from adarec_fast.experiments.runs_table import TextTable, latex
from adarec_fast.training.presets import preset
from adarec_fast.training.values import place


def test_latex_letters_are_escaped() -> None:
    table = TextTable("50% of a_b", ("run", "x"), [("a\\b^c~#$&{}", "1")], [(False, True)], 1)
    text = latex([table])
    assert r"\caption{50\% of a\_b}" in text
    row = r"a\textbackslash{}b\textasciicircum{}c\textasciitilde{}\#\$\&\{\} & \textbf{1} \\"
    assert row in text


def split_of(histories: Mapping[str, list[str]]) -> Split:
    return Split(load(histories))


def test_what_differs_is_named() -> None:
    base = {"u1": ["a", "b", "c", "d"], "u2": ["b", "c", "d", "a"], "u3": ["d", "c", "b", "a"]}
    first = split_of(base)
    _check_same(first, split_of(base), "two", "one", "")
    # The first of four is cut off: fewer items, the same question.
    _check_same(first, split_of({**base, "u1": ["b", "c", "d"]}), "two", "one", "")
    for other, message in (
        ({**base, "u1": ["a", "b", "x", "d"]}, r"two: ranks another catalogue.*5 items and 4; 'x'"),
        ({**base, "u4": ["a", "b", "c"]}, r"other users than one \(4 and 3; 'u4' is in one alone"),
        (dict(reversed(base.items())), "3 and 3; in another order"),
        ({**base, "u2": ["b", "c", "a", "d"]},
         "valid item of the user 'u2' is 'a' there and 'd' in one, and so for 1 of 3 users"),
        ({**base, "u3": ["d", "c", "b", "c"]}, "the test item of the user 'u3' is 'c' there"),
        ({**base, "u2": ["a", "c", "d", "a"]}, "other histories than one, .* the user 'u2'"),
    ):
        with pytest.raises(ConfigError, match=message):
            _check_same(first, split_of(other), "two", "one", "")
    assert _other_settings({"k_core": 0, "data": "x"}, {"k_core": 5, "data": "x"}) == (
        " (of their data settings, k_core is 5 and 0)"
    )


@pytest.mark.parametrize(
    ("arms", "more", "message"),
    [
        ({}, {}, "one arm or more"),
        ({"a": {"hiden_size": 8}}, {}, "arm 'a': unknown key 'hiden_size'"),
        ({"a": "papr"}, {}, "arm 'a': preset 'papr' is not known, did you mean 'paper'"),
        ({"a": 3}, {}, "must be a mapping"),
        ({"a": {"seed": 1}}, {}, "seed is given by --data and --seeds"),
        ({"a": {"k_core": 5}}, {}, "k_core: all arms must be asked the same"),
        ({"a": None}, {"shared": place({"data": "x"})}, "data is given by"),
        ({"a": None, "b": {}}, {}, "the arms 'a' and 'b' set the same"),
        ({"a": None}, {"baseline": "b"}, "baseline='b' must be one of 'a'"),
        ({"a": {"preset": "paper", "model": "sasrec"}}, {}, "its preset is of the model adarec"),
    ],
)
def test_bad_arms(arms: Mapping[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Arms.create(arms, **more)


def test_arms_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "arms.yaml"
    file.write_text(
        "arms:\n  backbone: {model: sasrec, train: {epochs: 3}}\n  paper: paper\n"
        "  cut: {preset: paper, lambda_cont: 0.5, truncate: 6}\nbaseline: paper\nepochs: 2\n"
    )
    arms = read_arms(file)
    assert arms.baseline == "paper"
    assert read_arms(file, baseline="cut").baseline == "cut"
    paper = preset("paper")
    assert arms.arms["paper"] == {**paper.model, **paper.train}
    assert arms.arms["cut"] == arms.arms["paper"] | {"lambda_cont": 0.5, "truncate": 6}
    sweep = arms.sweep(["/a/b.csv", "/a/c.csv"], range(2))
    assert arms.keys(["b", "c"], range(2))[:4] == [
        ("backbone", "b", 0), ("paper", "b", 0), ("cut", "b", 0), ("backbone", "c", 0),
    ]  # fmt: skip
    values = [sweep.values(combination) for combination in sweep.combinations]
    assert [v.train["epochs"] for v in values[:3]] == [3, 2, 2]
    assert (values[6].data["data"], values[6].model["seed"]) == ("/a/b.csv", 1)
    # What is set for all of them holds in an arm and in a preset too.
    over = read_arms(file, over=place({"epochs": 4, "max_length": 5, "truncate": 6}))
    for combination in over.sweep(["/a/b.csv"], [0]).combinations[:2]:
        found = over.sweep(["/a/b.csv"], [0]).values(combination)
        assert (found.train["epochs"], found.model["max_length"]) == (4, 5)
        assert found.data["truncate"] == 6
    with pytest.raises(ConfigError, match="'paper' and 'cut' set the same"):
        read_arms(file, over=place({"lambda_cont": 0.1, "truncate": 6}))
    for text, message in (("arms: [a]", "must be a mapping"), ("arms: {a: }\nnotes: x", "notes:")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_arms(file)
