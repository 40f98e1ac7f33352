"""Runs of reproduce as a result file that grows, and the page's table of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
from adarec_fast.experiments import paper  # noqa: E402
from adarec_fast.experiments.definition import RESULT, run_name  # noqa: E402
from adarec_fast.experiments.reproduction import Reproduction  # noqa: E402
from adarec_fast.experiments.tables import TABLES  # noqa: E402
from adarec_fast.training.values import Values, place  # noqa: E402
from bench import report, reproduced  # noqa: E402


def result(name: str, factor: float, commit: str = "abc") -> dict[str, Any]:
    printed = paper.TABLE1["Beauty"][name]
    test = {key: factor * value for key, value in zip(paper.METRICS, printed, strict=True)}
    return {
        "status": "early_stopped", "combination": {}, "source": {"data": "/home/me/Beauty.txt"},
        "data": {"users": 22_363, "items": 12_101, "fingerprint": "12"}, "test": test,
        "valid": test, "epochs": 9, "best_epoch": 7, "train_seconds": 3000.0,
        "valid_seconds": 600.0, "device": "cpu", "threads": 1,
        "environment": {"cpu": "some CPU", "torch": "2.13.0", "commit": commit},
    }  # fmt: skip


def folder_of(
    to: Path, found: dict[tuple[str, str, int], dict[str, Any]], seeds: int = 1, **given: Any
) -> Path:
    """What reproduce leaves, with these results by label, loss and seed."""
    path = str(to / "Beauty.txt")
    table = TABLES["table1"]
    wanted = Reproduction.create(table, [path], range(seeds), Values().update(place(given)))
    wanted.sweep().store(to / "runs")
    for row in table.rows:
        for seed in range(seeds):
            one = found.get((row.label, row.loss, seed))
            if one is not None:
                run = to / "runs" / run_name({**wanted.combination(row, path), "seed": seed})
                run.mkdir()
                (run / RESULT).write_text(json.dumps(one), encoding="utf-8")
    return to


def read(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("table1-beauty-*.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_a_result_file_grows_by_each_run(tmp_path: Path) -> None:
    into = tmp_path / "results"
    into.mkdir()
    first = folder_of(tmp_path / "first", {("SASRec", "original", 0): result("SASRec", 1.0)})
    assert reproduced.main([str(first), "--table", "table1", "--into", str(into)]) == 0
    record = read(into)
    (run,) = record["runs"]
    assert (run["row"], run["loss"], run["seed"]) == ("SASRec", "original", 0)
    assert run["environment"]["commit"] == "abc"
    assert run["data"] == {"users": 22_363, "items": 12_101}
    assert str(tmp_path) not in json.dumps(record)
    assert record["command"] == "adarec-fast reproduce table1 --data Beauty.txt --seeds 1"
    assert len(record["missing"]) == len(TABLES["table1"].rows) - 1
    assert {one["why"] for one in record["missing"]} == {"not run yet"}

    found = {
        ("SASRec", "original", 1): result("SASRec", 1.02, "def"),
        ("PDRec", "full_ce", 0): result("PDRec", 1.0),
        ("Caser", "original", 0): {"status": "diverged"},
    }
    second = folder_of(tmp_path / "second", found, seeds=2)
    (second / "runs" / "summary.json").write_text("{}")
    before = sorted((second / "runs").rglob("*"))
    assert reproduced.main([str(second), "--table", "table1", "--into", str(into)]) == 0
    assert sorted((second / "runs").rglob("*")) == before
    record = read(into)
    assert [(run["row"], run["loss"], run["seed"]) for run in record["runs"]] == [
        ("SASRec", "original", 0), ("SASRec", "original", 1), ("PDRec", "full_ce", 0)
    ]  # fmt: skip
    assert {(one["row"], one["why"]) for one in record["missing"]} >= {("Caser", "diverged")}
    assert record["command"].endswith("--seeds 2")

    text = report.build("table1", into)
    lines = {tuple(line.split(" | ")[:2]): line for line in text.splitlines()}
    assert lines["| SASRec", "original"] == (
        "| SASRec | original | .0901 | .0910 ± .0013 | .0387 | .0391 ± .0005 | 7, 7 | 2.0 | "
        "reproduced (2 seeds) |"
    )
    assert lines["| PDRec", "full_ce"].endswith("| 7 | 1.0 | no comparable figure |")
    assert lines["| Caser", "original"].endswith("| – | – | diverged; not run yet |")
    assert "some CPU; torch 2.13.0; " in text


def test_what_is_no_such_folder_or_another_setting_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    into = tmp_path / "results"
    into.mkdir()
    assert reproduced.main([str(tmp_path), "--table", "table1", "--into", str(into)]) == 2
    assert "holds no sweep" in capsys.readouterr().err
    assert reproduced.main([str(tmp_path), "--table", "table9", "--into", str(into)]) == 2
    assert "'table9' is not one of" in capsys.readouterr().err
    plain = folder_of(tmp_path / "plain", {})
    assert reproduced.main([str(plain), "--table", "table1", "--into", str(into)]) == 0
    short = folder_of(tmp_path / "short", {}, epochs=8)
    assert reproduced.main([str(short), "--table", "table1", "--into", str(into)]) == 2
    assert "{'epochs': 8}" in capsys.readouterr().err
    assert reproduced.main([str(short), "--table", "table4", "--into", str(into)]) == 0


@pytest.mark.parametrize("name", TABLES)
def test_every_run_of_a_table_finds_its_line(name: str) -> None:
    wanted = Reproduction.create(TABLES[name], ["/data/Beauty.txt"], [0])
    found = [reproduced.line_of(TABLES[name], one) for one in wanted.sweep().combinations]
    assert None not in found
    runs = {json.dumps(row.values) for row in TABLES[name].rows if row.values is not None}
    assert len(runs) == len(found)
