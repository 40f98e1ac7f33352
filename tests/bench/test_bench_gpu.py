"""`python -m bench.gpu` without a GPU: how its phases are run, killed, recorded and prepared."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
from bench.gpu import cli, record  # noqa: E402
from bench.gpu.phases.counters import read_csv  # noqa: E402
from bench.gpu.phases.tests import files  # noqa: E402
from bench.gpu.plan import GROUPS, PHASES, Phase, chosen, share  # noqa: E402
from bench.gpu.prepare import architecture  # noqa: E402
from bench.gpu.run import Settings, run  # noqa: E402

# Stands for bench.gpu.phase: writes at once what it knows, then does what its name says.
PRETENDED = """
import json, os, subprocess, sys, time
name, path, seconds, settings = sys.argv[1:]
def write(**found):
    with open(path + ".new", "w") as file: json.dump(found, file)
    os.replace(path + ".new", path)
print("output of", name)
if name == "environment":
    write(machine={"gpu": "Pretended 1", "cpu": "c", "cores": 2}, slug="pretended-1",
          versions={"torch": "2", "triton": "3"}, peaks={"gflops": 1.0, "gbps": 2.0})
elif name == "hangs":
    # A grandchild that holds the output open and outlives its parent's end.
    subprocess.Popen(["sleep", "60"])
    write(reached="the first of two")
    time.sleep(60)
elif name == "fails":
    write(rows=[ROW], found=1)
    raise SystemExit("broken")
elif name == "silent":
    pass
else:
    write(rows=[{**ROW, "seconds": {"median": 2.0}}], told=json.loads(settings)["record"])
ROW_END = None
""".replace("ROW_END = None\n", "")
ROW = {
    "subject": "s", "form": "", "workload": "train", "hidden_size": 64, "direction": "step",
    "variant": "v", "precision": "ieee", "seconds": {"median": 1.0}, "gflops": float("nan"),
}  # fmt: skip


@pytest.fixture
def pretended(tmp_path: Path) -> dict[str, str]:
    """The environment of processes that find the stand-in."""
    folder = tmp_path / "modules"
    folder.mkdir()
    text = PRETENDED.replace("ROW", repr({k: v for k, v in ROW.items() if k != "gflops"}))
    (folder / "pretended_phase.py").write_text(text)
    return {**os.environ, "PYTHONPATH": str(folder)}


def _run(
    tmp_path: Path, environment: dict[str, str], names: list[str], budget: float = 60.0,
    merge: bool = False,
) -> record.Record:  # fmt: skip
    phases = [Phase(name, 10, name) for name in names]
    return run(
        phases, budget, tmp_path / "results", Settings(str(tmp_path / "out"), ""), command="c",
        environment=environment, module="pretended_phase", merge=merge,
    )  # fmt: skip


def test_what_hangs_is_killed_with_its_children_and_has_told_what_it_knew(
    tmp_path: Path, pretended: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    names = ["environment", "hangs", "fails", "silent", "works"]
    found = _run(tmp_path, pretended, names, budget=26.0)
    assert time.monotonic() - started < 20.0
    status = {name: phase["status"] for name, phase in found["phases"].items()}
    assert status == {
        "environment": "done", "hangs": "killed: its time was over", "fails": "failed (1)",
        "silent": "done", "works": "done",
    }  # fmt: skip
    assert found["phases"]["hangs"]["reached"] == "the first of two"
    assert found["phases"]["fails"]["output"][-1] == "broken"
    left = subprocess.run(["pgrep", "-fx", "sleep 60"], capture_output=True, text=True, check=False)
    assert not left.stdout.strip()
    path = tmp_path / "results" / f"pretended-1-{found['date'][:10]}.json"
    assert json.loads(path.read_text())["phases"].keys() == found["phases"].keys()
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half written beside
    # The row of the phase that failed is replaced by that of the one that worked.
    assert [row["seconds"]["median"] for row in found["rows"]] == [2.0]
    assert found["phases"]["works"]["told"] == str(path)
    printed = capsys.readouterr().out.splitlines()
    first = next(n for n, line in enumerate(printed) if line.startswith("Pretended 1"))
    table = printed[first:]
    assert [line.split()[0] for line in table[1:6]] == names
    assert "output of works" in "\n".join(printed)


def test_the_file_grows_after_every_phase_and_a_second_run_merges(
    tmp_path: Path, pretended: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    _run(tmp_path, pretended, ["environment", "works"])
    (path,) = (tmp_path / "results").iterdir()
    first = json.loads(path.read_text())
    _run(tmp_path, pretended, ["environment", "fails"], merge=True)
    both = json.loads(path.read_text())
    assert list(both["phases"]) == ["environment", "works", "fails"]
    assert both["command"] == "c; c"
    assert [row["seconds"]["median"] for row in both["rows"]] == [1.0]  # the newer one
    _run(tmp_path, pretended, ["environment", "silent"])
    assert list(json.loads(path.read_text())["phases"]) == ["environment", "silent"]
    first["versions"]["triton"] = "another"
    path.write_text(json.dumps(first))
    _run(tmp_path, pretended, ["environment", "silent"], merge=True)
    assert "replaced, not merged: it is of triton another" in capsys.readouterr().out
    assert list(json.loads(path.read_text())["phases"]) == ["environment", "silent"]


def test_what_came_before_the_phases_counts(
    tmp_path: Path, pretended: dict[str, str]
) -> None:
    found = run(
        [Phase("works", 10, "works")], 60.0, tmp_path / "results",
        Settings(str(tmp_path / "out"), ""), command="c", environment=pretended,
        module="pretended_phase", started=time.monotonic() - 59.0,
    )  # fmt: skip
    assert found["phases"]["works"]["status"] == "no time left"


def test_without_an_environment_there_is_still_a_file(
    tmp_path: Path, pretended: dict[str, str]
) -> None:
    _run(tmp_path, pretended, ["fails"])
    (path,) = (tmp_path / "results").iterdir()
    assert path.name.startswith("cuda-unknown-")
    assert json.loads(path.read_text())["rows"][0]["subject"] == "s"


def test_shares_of_the_time() -> None:
    a, b, c = (Phase(name, weight, "") for name, weight in (("a", 10), ("b", 20), ("c", 10)))
    assert share(a, [b, c], 40.0) == 10.0
    assert share(b, [c], 39.0) == 26.0  # what a did not need goes to those behind it
    assert share(c, [], 1000.0) == 20.0  # but no more than twice its own
    assert share(c, [b], 4.0) is None
    assert sum(phase.weight for phase in chosen("first")) <= 440
    assert {p.name for p in chosen("first,second")} == set(GROUPS["all"])
    assert [p.name for p in chosen(" profile, ops ,")] == ["ops", "profile"]  # in order of value
    for phase in PHASES:
        assert (ROOT / "bench" / "gpu" / "phases" / f"{phase.name}.py").is_file()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--phases", "opps"], "--phases: 'opps' is unknown; choose from all, first, second"),
        (["--phases", ","], "names none"),
        (["--prepare", "x"], "--prepare and --arch go together"),
        (["--budget", "0"], "--budget 0 must be more than 0 seconds"),
        (["--data", "/nowhere"], "--data /nowhere is no file"),
        (["--limit", "-1"], "--limit -1 must be more than 0 MiB"),
        (["--jobs", "0"], "--jobs 0 must be at least 1"),
        (["--rehearse"], "--use DIR --rehearse"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert complaint in capsys.readouterr().err


def test_an_architecture_has_a_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert architecture("sm_90") == 90
    assert cli.main(["--prepare", str(tmp_path / "p"), "--arch", "hopper"]) == 1
    assert "'hopper' is no architecture; give e.g. sm_86" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert cli.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


# ---------------------------------------------------------------------- tests and counters


TESTS = """
import pytest
def test_later(): pass
def test_captured(): assert 1 == 2, "the reason"
@pytest.mark.skip(reason="no")
def test_sizes(): pass
"""


@pytest.mark.parametrize("extra", [[], ["-n", "2"]], ids=["alone", "workers"])
def test_outcomes_are_written_as_they_come(extra: list[str], tmp_path: Path) -> None:
    if extra:
        pytest.importorskip("xdist")
    (tmp_path / "test_one.py").write_text(TESTS)
    outcomes = tmp_path / "outcomes.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "bench.gpu.outcomes", "--outcomes",
         str(outcomes), "-p", "no:cacheprovider", *extra, "test_one.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    rows = [json.loads(line) for line in outcomes.read_text().splitlines()]
    assert len(rows) == 3, done.stdout
    by_name = {row["test"].split("::")[1]: row for row in rows}
    assert {n: r["outcome"] for n, r in by_name.items()} == {
        "test_captured": "failed", "test_sizes": "skipped", "test_later": "passed",
    }  # fmt: skip
    assert "the reason" in by_name["test_captured"]["why"]
    if not extra:  # the most telling first
        assert rows[0]["test"].endswith("::test_captured")


def test_nsights_csv_is_read() -> None:
    text = (
        '==PROF== Connected\n"ID","Section Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","Occupancy","Achieved Occupancy","%","41.5"\n"0","Speed","","",""\n'
    )
    assert read_csv(text) == {"Occupancy: Achieved Occupancy": "41.5 %"}
    assert read_csv("==ERROR== ERR_NVGPUCTRPERM") == {}


def test_files_with_gpu_tests_import_what_a_bare_machine_has() -> None:
    """One that cannot be imported would end the phase before its first test."""
    ours = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    known = {"adarec_fast", "bench", "hypothesis", "kernels", "numpy", "pytest", "torch", "triton"}
    known |= ours | set(sys.stdlib_module_names)
    found = files()
    assert {"tests/ops/test_score_topk.py", "tests/training/test_captured.py"} <= set(found)
    for name in found:
        for node in ast.parse((ROOT / name).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                wanted = {alias.name for alias in node.names}
            else:
                wanted = {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
            assert {module.split(".")[0] for module in wanted} <= known, name
