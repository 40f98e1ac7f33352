"""What is shipped: sdist and wheel hold real files, install elsewhere and run from anywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import adarec_fast

ROOT = Path(__file__).resolve().parents[2]
TEST_COMMAND = 'pip install -e ".[test]" && pytest'


def run(
    *command: str | Path, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run to the end; a failure shows all that was printed."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ADAREC_FAST"))}
    # Building the extension takes long; what it needs is checked to be in the wheel.
    clean |= {"OMP_NUM_THREADS": "1", "ADAREC_FAST_NO_EXT": "1"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def build(kind: str, source: Path, target: Path) -> Path:
    """Call setuptools' PEP 517 hook: what pip does, without a download."""
    target.mkdir()
    hook = f"from setuptools import build_meta as b; b.build_{kind}({str(target)!r})"
    run(sys.executable, "-c", hook, cwd=source)
    (made,) = target.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of a copy of the tree, since a build leaves files behind."""
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    litter = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for name in ("adarec_fast", "kernels", "csrc"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=litter)
    assert (source / "adarec_fast" / "kernels").is_symlink()
    return build("sdist", source, folder / "dist")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the unpacked sdist, as an installer does."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build("wheel", source, folder / "dist")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; its dependencies are read from this environment."""
    environment = tmp_path_factory.mktemp("installed") / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment.parent)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--quiet", "install"]
    run(*pip, "--no-deps", "--no-index", wheel, cwd=environment.parent)
    (packages,) = environment.glob("lib/python*/site-packages")
    # A folder named in a .pth file comes after the wheel, and its own .pth files, such as that
    # of an editable install, are not read.
    here = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "dependencies.pth").write_text("\n".join(here) + "\n")
    return environment


def shipped_sources() -> set[str]:
    """Paths that must be in the package, as seen through its two symlinks."""
    package = ROOT / "adarec_fast"
    files = {"adarec_fast/py.typed"}
    for folder, patterns in ((package, ["*.py"]), (ROOT / "kernels", ["*.py"])):
        base = "adarec_fast" if folder == package else "adarec_fast/kernels"
        for pattern in patterns:
            files |= {f"{base}/{p.relative_to(folder).as_posix()}" for p in folder.rglob(pattern)}
    for path in (package / "docs").rglob("*"):  # pages, their pictures, tutorials
        if path.is_file() and "__pycache__" not in path.parts:
            files.add(f"adarec_fast/docs/{path.relative_to(package / 'docs').as_posix()}")
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file() and path.suffix in {".cpp", ".h", ".hpp", ".cu", ".cuh"}:
            files.add(f"adarec_fast/csrc/{path.relative_to(ROOT / 'csrc').as_posix()}")
    return files


def test_wheel_holds_every_source_as_a_real_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        for name in shipped_sources():
            assert name in infos, f"{name} is not in the wheel"
            source = ROOT / name
            assert archive.read(name) == source.read_bytes()
    symlink = 0o120000
    assert not [name for name, i in infos.items() if i.external_attr >> 16 & 0o170000 == symlink]
    # Another project owns the top-level name `kernels`.
    tops = {name.split("/")[0] for name in infos}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"adarec_fast"}
    assert not [n for n in infos if "__pycache__" in n or n.endswith(".so")]
    assert any(name.endswith("licenses/LICENSE") for name in infos)


def test_an_editable_install_is_a_path_that_type_checkers_follow(
    sdist: Path, tmp_path: Path
) -> None:
    """Of an import hook, which setuptools else makes, mypy and pyright see nothing."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    with zipfile.ZipFile(build("editable", source, tmp_path / "dist")) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith(".pth")]
        assert not [name for name in archive.namelist() if name.endswith(".py")]
        (root,) = archive.read(path).decode().split()
    assert Path(root).resolve() == source.resolve()
    assert (source / "adarec_fast" / "py.typed").exists()


def test_sdist_holds_every_source_as_a_real_file(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = {m.name.split("/", 1)[1]: m for m in archive.getmembers() if "/" in m.name}
    for name in shipped_sources() | {"pyproject.toml", "README.md", "LICENSE"}:
        assert name in members, f"{name} is not in the sdist"
        assert members[name].isreg()
    assert not [m for m in members if m.split("/")[0] in {"kernels", "csrc", "tests"}]


def test_installed_wheel_imports_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    script = (
        "import adarec_fast, adarec_fast.kernels, pathlib\n"
        "package = pathlib.Path(adarec_fast.__file__).parent\n"
        "assert not (package / 'kernels').is_symlink() and (package / 'csrc').is_dir()\n"
        "print(package)"
    )
    done = run(installed / "bin" / "python", "-c", script, cwd=tmp_path)
    assert Path(done.stdout.strip()).is_relative_to(installed)


def test_installed_wheel_trains_and_recommends(installed: Path, tmp_path: Path) -> None:
    adarec = installed / "bin" / "adarec-fast"
    data = tmp_path / "tiny.txt"
    run(adarec, "data", "synth", data, "--users", "60", "--items", "40", cwd=tmp_path)
    small = ["--epochs", "1", "--hidden-size", "16", "--batch-size", "64", "--max-depth", "2"]
    run(adarec, "train", "--data", data, "--run-dir", "run", *small, cwd=tmp_path)
    user = data.read_text().split()[0]
    done = run(
        adarec, "recommend", "run", "--user", user, "--k", "3", "--format", "json", cwd=tmp_path
    )
    (answer,) = json.loads(done.stdout)
    assert len(answer["items"]) == 3


def test_installed_wheel_reports_its_backends(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "bin" / "adarec-fast", "info", "--json", cwd=tmp_path)
    facts = json.loads(done.stdout)
    assert facts["versions"]["adarec_fast"]
    assert {row["op"] for row in facts["ops"]} >= {"hda_trajectory", "moe_aggregate"}


def test_import_needs_neither_triton_nor_a_compiler_and_is_quick(tmp_path: Path) -> None:
    script = """
import importlib.abc, sys, time
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
sys.meta_path.insert(0, Blocked())
import torch
before = time.process_time()
import adarec_fast
adarec_fast.ADARec
print(time.process_time() - before)
assert not [name for name in sys.modules if name.partition(".")[0] == "triton"]
assert "adarec_fast.kernels" not in sys.modules
assert "polars" not in sys.modules and "typer" not in sys.modules
"""
    done = run(sys.executable, "-c", script, cwd=tmp_path, PATH="", PYTHONPATH=str(ROOT))
    assert float(done.stdout) < 3.0


def test_a_first_recommendation_does_not_wait_for_dynamo() -> None:
    script = """
import sys
import adarec_fast
model = adarec_fast.ADARec(num_items=9, backend="packed")
adarec_fast.Recommender(model).recommend([[1, 2]], k=3)
assert "torch._dynamo" not in sys.modules
"""
    run(sys.executable, "-c", script, PYTHONPATH=str(ROOT))


def test_the_command_line_starts_without_torch() -> None:
    script = """
import sys
from adarec_fast.cli import app
for words in (["--help"], ["train", "--help"], ["data", "inspect", "-h"], ["--version"]):
    print("--", words)
    try:
        app(words)
    except SystemExit as end:
        assert not end.code, words
    assert "adarec_fast.config" in sys.modules
    assert "torch" not in sys.modules and "numpy" not in sys.modules, words
"""
    done = run(sys.executable, "-c", script, PYTHONPATH=str(ROOT))
    shown = done.stdout.split("-- [")
    assert len(shown) == 5
    assert all("Usage:" in page for page in shown[1:4])
    assert shown[4] == f"'--version']\nadarec-fast {adarec_fast.__version__}\n"


def test_public_names_and_submodules_load_on_first_use() -> None:
    for name in adarec_fast.__all__:
        assert getattr(adarec_fast, name).__name__ == name
        assert name in dir(adarec_fast)
    script = "import adarec_fast; adarec_fast.ranking; adarec_fast.ops.score_topk"
    run(sys.executable, "-c", script, PYTHONPATH=str(ROOT))
    run(sys.executable, "-c", "from adarec_fast import *; Split, ADARec", PYTHONPATH=str(ROOT))
    for missing in ("ADARek", "_Split", "nothing_here"):
        with pytest.raises(AttributeError, match=f"has no attribute '{missing}'"):
            getattr(adarec_fast, missing)


def test_continuous_integration_runs_the_readme_command() -> None:
    assert TEST_COMMAND in (ROOT / "README.md").read_text().splitlines()
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert script[-2:] == [TEST_COMMAND, 'wait "$types"']
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
