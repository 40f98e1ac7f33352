"""Users and items that filters dropped are told from unknown ones, and can be served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adarec_fast.cli import app
from adarec_fast.data import DataError, load
from adarec_fast.models.pretrained import CheckpointError
from adarec_fast.training.run_folder import read_data, write_data

HISTORIES = {
    "ann": ["a", "b", "c"], "bob": ["b", "c", "a", "b"], "two": ["a", "z"], "one": ["y"],
}  # fmt: skip


def test_dropped_users_have_histories() -> None:
    data = load(HISTORIES)
    assert data.dropped is not None
    assert data.dropped.histories.users.ids == ["two", "one"]
    assert data.dropped.items.ids == ["y", "z"]
    assert data.items.decode(data.history_of("two")) == ["a"]
    assert data.items.decode(data.history_of(" ann ")) == ["a", "b", "c"]
    assert data.dropped.why("two") == (
        "user 'two' is in the data, with 2 items, and was dropped by min_length=3"
    )
    with pytest.raises(DataError, match=r"'one' is in the data, with 1 items, .* none of its"):
        data.history_of("one")
    with pytest.raises(DataError, match="unknown id 'tow'"):
        data.history_of("tow")
    assert load({"u": ["a", "b", "c"]}).dropped is None
    core = load({**HISTORIES, "cy": ["a", "b", "c", "x"]}, k_core=3)
    assert core.dropped is not None
    assert core.dropped.items.ids == ["x", "y", "z"]
    assert "min_length=3 and k_core=3" in core.dropped.why("one")


def test_dropped_users_go_with_a_run(tmp_path: Path) -> None:
    data = load({7: [1, 2, 3], 8: [1, 9]})
    write_data(tmp_path, data)
    back = read_data(tmp_path, data.items)
    assert back.dropped is not None
    assert back.items.decode(back.history_of("8")) == [1]
    assert back.dropped.known("8") == 8
    content = json.loads((tmp_path / "dropped.json").read_text())
    for damage in ({"values": [5, 5]}, {"values": "x"}, {"users": 3}, {"k_core": None}):
        (tmp_path / "dropped.json").write_text(json.dumps({**content, **damage}))
        with pytest.raises(CheckpointError, match=r"dropped\.json: damaged"):
            read_data(tmp_path, data.items)
    (tmp_path / "dropped.json").unlink()
    assert read_data(tmp_path, data.items).dropped is None


def test_recommend_serves_dropped_users_and_may_ignore_items(tmp_path: Path) -> None:
    lists = {**HISTORIES, **{f"u{n}": list("abcdef"[n % 3 :][:4]) for n in range(9)}}
    path = tmp_path / "d.json"
    path.write_text(json.dumps(lists))
    run = str(tmp_path / "run")
    options = ["--model", "popularity", "--data", str(path), "--run-dir", run]
    trained = CliRunner().invoke(app, ["train", *options])
    assert trained.exit_code == 0, trained.output
    assert "2 users with too short a history" in trained.output

    def recommend(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["recommend", run, "--k", "2", *words])
        return done.exit_code, done.output

    code, shown = recommend("--user", "two", "--user", "ann", "--format", "csv")
    assert code == 0
    assert "user 'two' is in the data, with 2 items, and was dropped by min_length=3" in shown
    assert {line.split(",")[0] for line in shown.splitlines()[-4:]} == {"ann", "two"}
    for words, message in (
        (["--user", "one"], "'one' is in the data, with 1 items"),
        (["--user", "tow"], "unknown id 'tow'"),
        (["--history", "a,z"], "item 'z' is in the data and was dropped with the few who have it"),
        (["--history", "a,zz"], "unknown id 'zz'"),
        (["--history", "zz", "--unknown-items", "ignore"], "none of its items is in the catalogue"),
        (["--user", "two", "--format", "csv", "--out", str(tmp_path / "x.csv")], "leave out"),
    ):  # fmt: skip
        code, shown = recommend(*words)
        assert code == 2, shown
        assert message in " ".join(shown.split())
    code, shown = recommend("--history", "a,zz,b", "--unknown-items", "ignore")
    assert code == 0
    assert "not in the catalogue, left out: zz" in shown
