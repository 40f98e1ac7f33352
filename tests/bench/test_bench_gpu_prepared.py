"""A prepared folder of `python -m bench.gpu`: which kernels go into it, and how they come out."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
from bench.gpu import prepare as preparing  # noqa: E402
from bench.gpu.archive import folders_of, pack, unpack  # noqa: E402
from bench.gpu.plan import Phase, chosen  # noqa: E402
from bench.gpu.prepare import (  # noqa: E402
    DESCRIPTION,
    TOOLS,
    WORKING,
    missing_packages,
    prepare,
    size_of,
    sources,
    versions,
)
from bench.gpu.use import NotPrepared, use  # noqa: E402

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="triton is not installed, or interprets",
)

def _cache(folder: Path) -> Path:
    """A cache as triton writes one, of one kernel and one module."""
    kernel = folder / "KERNEL"
    kernel.mkdir(parents=True)
    files = {name: str(kernel / name) for name in ("k.cubin", "k.json", "k.source")}
    for name in files:
        (kernel / name).write_text(name)
    (kernel / "__grp__k.json").write_text(json.dumps({"child_paths": files}))
    (folder / "MODULE").mkdir()
    (folder / "MODULE" / "launcher.so").write_text("code")
    return folder


def test_a_cache_is_found_under_another_path(tmp_path: Path) -> None:
    archive, there = tmp_path / "kernels.zip", tmp_path / "there"
    pack(_cache(tmp_path / "here"), archive)
    assert unpack(archive, there) == 1
    listed = json.loads((there / "KERNEL" / "__grp__k.json").read_text())["child_paths"]
    assert listed == {n: str(there / "KERNEL" / n) for n in ("k.cubin", "k.json")}
    assert all(Path(path).is_file() for path in listed.values())
    assert (there / "MODULE" / "launcher.so").read_text() == "code"
    assert str(tmp_path) not in zipfile.ZipFile(archive).read("KERNEL/__grp__k.json").decode()


def _prepared(folder: Path, **changes: object) -> Path:
    (folder / "wheels").mkdir(parents=True)
    (folder / "extension").mkdir()
    (folder / "extension" / "library.so").write_text("code")
    with zipfile.ZipFile(folder / "wheels" / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried_for_a_test.py", "VALUE = 7\n")
    (folder / "kernels").mkdir()
    pack(_cache(folder.parent / "cache"), folder / "kernels" / "ops.zip")
    kernels = {"ops": {"kernels": 1, "left_out": 0}}
    about = {"versions": versions(), "sources": sources(), "complete": True, "kernels": kernels,
             **changes}  # fmt: skip
    (folder / DESCRIPTION).write_text(json.dumps(about))
    return folder


def test_a_prepared_folder_takes_effect_in_other_processes(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    environment, complaints = use(_prepared(tmp_path / "folder"), tmp_path / "scratch")
    assert not complaints
    program = "import carried_for_a_test as c, sys; print(c.VALUE, sys.path[-1])"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    # Behind all that the machine has of its own.
    assert done.stdout.split() == ["7", str(tmp_path / "scratch" / "site")]
    assert Path(environment["TRITON_CACHE_DIR"], "KERNEL", "k.cubin").is_file()
    assert Path(environment["ADAREC_FAST_CACHE"], "library.so").is_file()


def test_a_folder_for_another_machine_is_told(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    folder = _prepared(tmp_path / "folder", versions={**versions(), "triton": "0.1"})
    complaints = use(folder, tmp_path / "scratch")[1]
    assert len(complaints) == 2
    assert "was prepared for 0.1" in complaints[0]
    assert "compiled here" in complaints[1]


def test_a_folder_of_other_sources_is_told(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    complaints = use(_prepared(tmp_path / "folder", sources="0"), tmp_path / "scratch")[1]
    assert "other sources" in complaints[0]


def test_kernels_that_had_no_room_are_told(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    kernels = {"ops": {"kernels": 5, "left_out": 0}, "tests": {"kernels": 9, "left_out": 4}}
    complaints = use(_prepared(tmp_path / "folder", kernels=kernels), tmp_path / "scratch")[1]
    assert len(complaints) == 1
    assert complaints[0].startswith("4 kernels had no room")


@pytest.mark.parametrize(("complete", "words"), [(None, "has no prepared.json"), (False, "end")])
def test_a_folder_that_is_not_ready_is_refused(
    complete: bool | None, words: str, tmp_path: Path
) -> None:
    folder = _prepared(tmp_path / "folder", complete=complete)
    if complete is None:
        (folder / DESCRIPTION).unlink()
    with pytest.raises(NotPrepared, match=words):
        use(folder, tmp_path)


def test_tools_come_with_all_that_they_need() -> None:
    """They need not be installed where the folder is filled, which then knows of no needs."""
    names = {line.split("==")[0] for line in missing_packages(TOOLS)}
    assert names == set(TOOLS)


def test_what_a_bare_machine_lacks() -> None:
    wanted = missing_packages(["pydantic", "numpy", "typer"])
    names = {line.split("==")[0] for line in wanted}
    assert {"pydantic", "pydantic-core", "annotated-types", "typing-inspection"} <= names
    assert not names & {"numpy", "torch", "sympy", "typing-extensions"}  # torch brings these
    assert all("==" in line for line in wanted)


# ---------------------------------------------------------------------- filling it


def test_an_archive_takes_what_there_is_room_for(tmp_path: Path) -> None:
    cache = _cache(tmp_path / "cache")
    (cache / "MODULE" / "launcher.so").write_bytes(os.urandom(5000))
    archive = tmp_path / "some.zip"
    assert pack(cache, archive, ["MODULE", "KERNEL"], room=4000) == ["MODULE"]
    assert folders_of(archive) == {"KERNEL"}
    assert archive.stat().st_size < 4000
    assert pack(cache, archive, ["KERNEL", "MODULE"], room=20_000) == []
    assert folders_of(archive) == {"KERNEL", "MODULE"}


PHASES = tuple(Phase(name, 1, name) for name in ("ops", "flows", "tests"))


class _Compiler:
    """Stands for the listing and the compiler: a phase asks for its letters, each a kernel."""

    asks = {"ops": "ab", "flows": "bc", "tests": "cde"}  # noqa: RUF012

    def __init__(self) -> None:
        self.stop_at = ""
        self.compiled: list[str] = []
        self.listed: list[str] = []

    def compile(self, phase: Phase, *_: object) -> list[Any]:
        self.listed.append(phase.name)
        results = []
        for letter in self.asks[phase.name]:
            if letter == self.stop_at:
                raise KeyboardInterrupt
            folder = Path(os.environ["TRITON_CACHE_DIR"]) / letter
            if not folder.exists():
                folder.mkdir()
                (folder / "k.cubin").write_bytes(os.urandom(3000))
                self.compiled.append(letter)
            results.append(SimpleNamespace(kernel=letter, error=None, folders=(letter,)))
        return results


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> _Compiler:
    from bench.gpu import kernels

    made = _Compiler()
    monkeypatch.setattr(kernels, "compile_phase", made.compile)
    monkeypatch.setattr(preparing, "fetch_wheels", lambda _: [])
    monkeypatch.setattr(preparing, "build_extensions", lambda *_: [])
    for name in ("TRITON_CACHE_DIR", "TRITON_STORE_BINARY_ONLY"):
        monkeypatch.setenv(name, "")  # set by what is tested, and brought back
    return made


@needs_triton
def test_a_killed_preparation_goes_on_where_it_was(tmp_path: Path, compiler: _Compiler) -> None:
    compiler.stop_at = "d"
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "p", "sm_90", PHASES)
    assert compiler.compiled == ["a", "b", "c"]
    (tmp_path / "scratch").mkdir()
    with pytest.raises(NotPrepared):
        use(tmp_path / "p", tmp_path / "scratch")
    # Of the phase that was killed too, what was ready is.
    (tmp_path / "p" / WORKING / "e").mkdir()
    (tmp_path / "p" / WORKING / "e" / "k.cubin").write_text("e")
    compiler.stop_at, compiler.listed = "", []
    prepare(tmp_path / "p", "sm_90", PHASES)
    assert compiler.compiled == ["a", "b", "c", "d"]
    assert compiler.listed == ["tests"]
    archives = {path.stem: folders_of(path) for path in (tmp_path / "p" / "kernels").iterdir()}
    assert archives == {"ops": {"a", "b"}, "flows": {"c"}, "tests": {"d", "e"}}
    assert not (tmp_path / "p" / WORKING).exists()
    kept = tmp_path / "p" / "kernels" / "ops.zip"
    before = kept.stat().st_mtime_ns
    prepare(tmp_path / "p", "sm_90", PHASES)
    assert kept.stat().st_mtime_ns == before
    assert len(compiler.compiled) == 4


@needs_triton
def test_other_sources_are_listed_anew_and_the_same_kernels_found(
    tmp_path: Path, compiler: _Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path / "p", "sm_90", PHASES)
    monkeypatch.setattr(preparing, "sources", lambda: "others")
    compiler.asks = {**compiler.asks, "flows": "bx"}
    compiler.compiled.clear()
    prepare(tmp_path / "p", "sm_90", PHASES)
    assert compiler.compiled == ["x"]
    archives = {path.stem: folders_of(path) for path in (tmp_path / "p" / "kernels").iterdir()}
    assert archives == {"ops": {"a", "b"}, "flows": {"x"}, "tests": {"c", "d", "e"}}


@needs_triton
def test_what_has_no_room_is_left_out_and_told(
    tmp_path: Path, compiler: _Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = 16_000 / 2**20
    prepare(tmp_path / "p", "sm_90", PHASES, limit=limit)
    assert size_of(tmp_path / "p") <= limit * 2**20 + 1000  # the description grows at the end
    about = json.loads((tmp_path / "p" / DESCRIPTION).read_text())
    left = {name: phase["left_out"] for name, phase in about["kernels"].items()}
    assert left == {"ops": 0, "flows": 0, "tests": 1}
    assert "tests: 1 of 3 kernels are left out" in capsys.readouterr().out
    prepare(tmp_path / "p", "sm_90", PHASES)  # without a limit all of it
    about = json.loads((tmp_path / "p" / DESCRIPTION).read_text())
    assert about["kernels"]["tests"]["left_out"] == 0


# ---------------------------------------------------------------------- what the tests ask for

# Each kind of test that could once not be listed: its backend saves for the backward pass what
# packed PyTorch does not, compares itself with fakes, captures a graph, steps a whole model.
LISTED = (
    "tests/ops/test_level_infonce.py::TestLevelInfoNCE::test_extreme_batches",
    "tests/ops/test_level_infonce.py::TestLevelInfoNCE::test_opcheck",
    "tests/ops/test_linear_cross_entropy.py::TestLinearCrossEntropy::"
    "test_fakes_agree_with_real_results",
    "tests/ranking/test_recommender.py::test_a_replayed_request_has_the_same_answers",
    "tests/training/test_captured.py::test_captured_steps_equal_plain_ones[{}-prefix]",
)
LISTING = """
import json, sys
from adarec_fast.kernels._prewarm import Collected
from bench.gpu.kernels import collect_tests
found, failing = Collected(90), sys.argv[1]
collect_tests(found, sys.argv[2:])
try:
    collect_tests(Collected(90), [failing])
    said = "nothing"
except RuntimeError as error:
    said = str(error)
# Hypothesis draws none of the numbers that stand in a module of this machine.
import helpers, module_of_a_machine
from hypothesis import given, settings, strategies as st
drawn = set()
@settings(max_examples=300, database=None, derandomize=True)
@given(st.integers(0, 10**9))
def draw(number): drawn.add(number)
draw()
names = sorted({launch.kernel.__module__.rpartition(".")[2] + launch.kernel.__name__
                for launch in found.launches.values()})
print(json.dumps({"kernels": names, "said": said,
                  "local": sorted(drawn & set(module_of_a_machine.NUMBERS))}))
"""
FAILING = """
import pytest
@pytest.mark.gpu
def test_that_does_not_pass(): assert False
"""


@needs_triton
def test_what_the_gpu_tests_ask_for_can_be_listed(tmp_path: Path) -> None:
    (tmp_path / "test_failing.py").write_text(FAILING)
    numbers = ", ".join(str(123_456_000 + n) for n in range(200))
    (tmp_path / "module_of_a_machine.py").write_text(f"NUMBERS = [{numbers}]\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    environment.pop("HYPOTHESIS_PROFILE", None)
    done = subprocess.run(
        [sys.executable, "-c", LISTING, str(tmp_path / "test_failing.py"),
         *(str(ROOT / name) for name in LISTED)],
        capture_output=True, text=True, check=False, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name in ("level_infonce_backward_kernel", "linear_cross_entropy_backward_kernel",
                 "score_topk_select_kernel", "adam_adam_kernel"):  # fmt: skip
        assert name in found["kernels"]
    assert "test_that_does_not_pass" in found["said"]  # never left out without a word
    assert found["local"] == []


@needs_triton
def test_a_phase_that_cannot_be_listed_ends_the_preparation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bench.gpu import kernels

    def broken(*_: object) -> bool:
        raise ValueError("broken")

    monkeypatch.setattr(kernels, "collect_phase", broken)
    with pytest.raises(RuntimeError, match="phase ops could not be listed"):
        kernels.compile_phase(PHASES[0], 90)
    monkeypatch.setattr(kernels, "collect_phase", lambda *_: False)
    assert kernels.compile_phase(PHASES[0], 90) is None


def test_every_phase_that_launches_kernels_can_be_listed() -> None:
    silent = {"environment", "tests"}  # it launches none of ours; they are run themselves
    for phase in chosen("all"):
        module = importlib.import_module(f"bench.gpu.phases.{phase.name}")
        assert hasattr(module, "kernels") == (phase.name not in silent), phase.name
