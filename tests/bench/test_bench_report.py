"""Targets, records, tables and pictures of the benchmarks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

ROOT = Path(__file__).parents[2]
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
from bench import conftest, records, report, summary  # noqa: E402
from bench.cell import Session  # noqa: E402
from bench.harness import (  # noqa: E402
    COMPILED,
    EAGER,
    PACKED,
)
from bench.workloads import WORKLOADS  # noqa: E402


def _row(variant: str, median: float, **fields: object) -> dict[str, object]:
    return {
        "subject": "training step", "form": "", "workload": "train", "hidden_size": 64,
        "direction": "step", "variant": variant, "peak_memory": 1 << 20,
        "seconds": {"median": median, "min": median, "mean": median, "max": median, "rounds": 3},
        "gflops": 1.0, "gbps": 1.0, "share_of_roofline": 0.5, "share_of_peak_bandwidth": 0.1,
        **fields,
    }  # fmt: skip


def _rows() -> list[dict[str, object]]:
    return [
        _row(EAGER, 2.1, peak_memory=4 << 20),
        _row(COMPILED, 0.9),
        _row("adarec_fast", 0.1, ours=True),
    ]


def test_an_epoch_is_judged_by_its_stretches() -> None:
    fields = {"subject": "Beauty epoch", "direction": "epoch", "stretches": 8, "data": "Beauty"}
    rows = [_row("packed SASRec", 2.0, **fields), _row("adarec_fast", 1.25, ours=True, **fields)]
    (comparison,) = summary.comparisons(rows)
    (judged,) = summary.judge(comparison, "cpu")
    assert str(judged) == "10 of ≤ 10.6 s: met"
    summary.print_tables(rows, {"gflops": 1.0}, "cpu")


def test_targets_are_judged() -> None:
    (comparison,) = summary.comparisons(_rows())
    judged = summary.judge(comparison, "cpu")
    found = {one.target.measure: (round(one.reached, 6), one.met) for one in judged}
    assert found == {
        EAGER: (21.0, True), COMPILED: (9.0, False), "memory": (4.0, False),
        "roofline": (0.5, False),
    }  # fmt: skip


def test_precisions_are_compared_apart(results: Path, tmp_path: Path) -> None:
    rows = [
        *_rows(), _row("adarec_fast", 4e-4, ours=True, precision="tf32"),
        _row("adarec_fast", 9e-4, ours=True, precision="ieee", share_of_roofline=None),
    ]  # fmt: skip
    names = [comparison.name for comparison in summary.comparisons(rows)]
    what = "training step, train, D=64, step"
    assert names == [what, f"{what}, tf32", f"{what}, ieee"]
    record = json.loads(next(p for p in results.iterdir() if "other" not in p.name).read_text())
    record |= {"device": "cuda", "rows": rows, "slug": "card"}
    record["machine"]["gpu"] = "Card 1"
    record["phases"] = {"ops": {"status": "killed: its time was over", "seconds": 3.2}}
    records.write(record, tmp_path)
    text = report.build("targets-cuda", tmp_path)
    assert f"| {what}, tf32 | 0.40 of ≤ 0.8 ms | met |" in text
    assert f"| {what}, ieee | 0.90 of ≤ 0.8 ms | NOT MET |" in text
    assert f"| {what}, ieee | 0.9 ms (adarec_fast) | – | – | – | – |" in report.build(
        "step-cuda", tmp_path
    )
    assert "| ops | killed: its time was over | 3 s |  |" in report.build("phases-cuda", tmp_path)
    assert "Card 1, " in text
    assert "Nothing has been measured on a GPU yet" in report.build("step-cuda", results)


def test_tables_print(capsys: pytest.CaptureFixture[str]) -> None:
    summary.print_tables(_rows(), {"gflops": 1.0, "gbps": 2.0}, "cpu")
    out = capsys.readouterr().out
    assert "21.00x (≥ 20: met)" in out
    assert "9.00x (≥ 10: NOT MET)" in out


def test_a_run_from_the_command_line_saves_its_results(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "pytest", "bench", "--benchmark-only", "-q", "-p", "no:cacheprovider",
        "--op", "score_topk", "--workload", "serve-1", "-k", "not compiled",
        "--benchmark-max-time", "0.01", "--save-results", "--results-dir", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "times of the baselines over ours" in done.stdout
    record = records.newest("cpu", tmp_path)
    assert record is not None
    measured = {row["variant"]: row for row in record["rows"] if "seconds" in row}
    assert {EAGER, PACKED} < set(measured)
    assert sum(row.get("ours", False) for row in measured.values()) == 1
    for row in measured.values():
        assert row["seconds"]["rounds"] >= 5
        assert row["flops"] == 2 * 12_101 * 64
        assert row["gflops"] == pytest.approx(row["flops"] / row["seconds"]["median"] / 1e9, 1e-3)
        assert 0 < row["share_of_peak_flops"] <= row["share_of_roofline"]


def test_an_epoch_beside_peers_is_timed_only_if_asked_for() -> None:
    """Both collections in one process, which imports torch once."""
    both = """
import sys, pytest
plain = ["bench", "--collect-only", "-q", "-p", "no:cacheprovider", "-n", "0"]
for asked in ([], ["--op", "epoch"]):
    assert pytest.main([*plain, *asked]) == 0
    print("-- next --", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", both], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    unasked, asked, rest = done.stdout.split("-- next --\n")
    assert not rest
    for told, wanted in ((unasked, False), (asked, True)):
        assert "test_epoch[train-64-epoch-adarec_fast]" in told
        assert ("test_epoch[beside_SASRec-train-64-epoch-adarec_fast]" in told) is wanted
        assert ("test_bench_step.py" in told) is not wanted


def test_unknown_names_are_refused() -> None:
    given = SimpleNamespace(getoption=lambda name: "train, huge")
    with pytest.raises(pytest.UsageError, match="--workload: 'huge' is unknown; choose from train"):
        conftest.chosen(given, "workload", list(WORKLOADS))
    given.getoption = lambda name: "large"
    assert conftest.chosen(given, "workload", list(WORKLOADS)) == ["large"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    session = Session("cpu", _rows(), {"gflops": 50.0, "gbps": 20.0})
    folder = tmp_path / "results"
    path = records.write(records.make(session, ["pytest", "bench/"]), folder)
    assert [p.name for p in folder.iterdir()] == [path.name]
    (folder / "other.json").write_text("[1]")  # of another tool
    return folder


def test_records_name_machine_versions_and_command(results: Path) -> None:
    record = records.newest("cpu", results)
    assert record is not None
    assert record["command"] == "pytest bench/"
    assert record["versions"]["torch"] == torch.__version__
    assert record["machine"]["cores"] >= 1
    assert records.newest("cuda", results) is None
    (results / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json: not valid JSON"):
        records.newest("cpu", results)


def test_a_later_run_of_the_day_keeps_what_it_did_not_measure(tmp_path: Path) -> None:
    def record(command: str, torch: str, *subjects: str) -> dict[str, object]:
        rows = [
            {"subject": name, "form": "", "workload": "train", "hidden_size": 64,
             "direction": "forward", "variant": command, "gflops": 5.0, "gbps": 1.0}
            for name in subjects
        ]  # fmt: skip
        return {
            "kind": records.KIND, "device": "cpu", "slug": "toy", "date": "2026-01-02 03:04 UTC",
            "command": command, "versions": {"torch": torch},
            "peaks": {"gflops": 20.0 if command == "one" else 10.0, "gbps": 10.0},
            "machine": {"cpu": "toy", "cores": 2}, "rows": rows,
        }  # fmt: skip

    first, second = record("one", "2.13", "a", "b"), record("two", "2.13", "b", "c")
    assert records.joined(first, tmp_path) == first
    records.write(first, tmp_path)
    both = records.joined(second, tmp_path)
    assert [(row["subject"], row["variant"]) for row in both["rows"]] == [
        ("a", "one"), ("b", "two"), ("c", "two"),
    ]
    assert both["command"] == "one; two"
    assert both["peaks"] == {"gflops": 20.0, "gbps": 10.0}
    assert {row["share_of_peak_flops"] for row in both["rows"]} == {0.25}
    other = record("three", "2.14", "c")
    assert records.joined(other, tmp_path) == other


def test_the_pages_show_the_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {page.relative_to(report.ROOT).as_posix() for page in report.pages()}
    assert {"README.md", "bench/README.md", "adarec_fast/docs/choosing-a-model.md"} <= shown
    assert report.main(["--check"]) == 0, capsys.readouterr().out


def test_every_table_stands_on_a_page() -> None:
    marked = {
        name for page in report.pages()
        for name in re.findall(r"<!-- bench:([\w-]+) -->", page.read_text(encoding="utf-8"))
    }  # fmt: skip
    assert marked >= {*report.tables.TABLES, "targets-cpu", "speed-cpu", "step-cpu", "ops-cpu"}
    assert marked >= {"step-cuda", "predicted-train", "predicted-large"}


def test_instruction_sets_stand_side_by_side(results: Path) -> None:
    record = records.newest("cpu", results)
    assert record is not None
    for name, day, median in (("AVX2", "02", 0.2), ("AVX-512", "01", 0.05)):
        rows = [_row(PACKED, 4 * median), _row("adarec_fast", median, ours=True)]
        machine = {**record["machine"], "instructions": name}
        date = f"2999-01-{day} 00:00 UTC"
        records.write({**record, "machine": machine, "date": date, "rows": rows}, results)
    text = report.build("speed-cpu", results)
    assert text.startswith("| what | AVX2: ours |")
    assert "| training step, train, D=64, step | 200 ms | 4.0x | 50% | 50 ms | 4.0x | 50% |" in text
    assert "AVX-512, peaks 50 GFLOP/s and 20 GB/s, caches hot" in text
    assert report.build("targets-cpu", results).count("medians.") >= 2


@pytest.mark.parametrize("missing", ["instructions", "peaks", "caches"])
def test_a_record_must_say_what_its_times_depend_on(results: Path, missing: str) -> None:
    record = records.newest("cpu", results)
    assert record is not None
    del (record["machine"] if missing == "instructions" else record)[missing]
    records.write({**record, "date": "2999-01-01 00:00 UTC"}, results)
    with pytest.raises(ValueError, match=rf"2999-01-01\.json: no '{missing}'"):
        report.build("step-cpu", results)


def test_the_picture_follows_the_record(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "speed.svg"
    assert report.draw(path, results, check=True) == 1
    assert not path.exists()
    assert report.draw(path, results, check=False) == 0
    assert report.draw(path, results, check=True) == 0
    drawn = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    shapes = [child.tag.rpartition("}")[2] for child in drawn]
    assert shapes.count("rect") > 1
    path.write_text("<svg/>")
    assert report.draw(path, results, check=True) == 1


def test_report_rebuilds_and_checks(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- bench:targets-cpu -->\nold\n<!-- /bench:targets-cpu -->\nz\n")
    assert report.run(readme, results, check=True) == 1
    assert "old" in readme.read_text()
    assert report.run(readme, results, check=False) == 0
    text = readme.read_text()
    assert "old" not in text
    assert text.startswith("a\n<!-- bench:targets-cpu -->\n")
    assert text.endswith("<!-- /bench:targets-cpu -->\nz\n")
    assert "21.0x" in text
    assert report.run(readme, results, check=True) == 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<!-- bench:nonsense -->\n<!-- /bench:nonsense -->", "nonsense"),
        ("<!-- bench:step-cpu -->\n", "step-cpu"),
        ("<!-- bench:step-rocm -->\n<!-- /bench:step-rocm -->", "choose from targets-cpu"),
    ],
)
def test_report_names_what_is_wrong(
    results: Path, tmp_path: Path, text: str, complaint: str
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(report.ReportError, match=complaint):
        report.run(readme, results, check=False)


def test_report_without_markers_does_nothing(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("plain\n")
    assert report.run(readme, results, check=True) == 0
    assert "nothing to rebuild" in capsys.readouterr().out


def test_rounding_keeps_five_digits() -> None:
    assert json.dumps(records.rounded({"a": [1.23456789e-5, 3]})) == '{"a": [1.2346e-05, 3]}'
