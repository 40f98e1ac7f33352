"""Libraries that an installation brings: used where they fit, else one line and a build."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adarec_fast.ops import _plans, _prebuilt, _wheel, extension

COMPILER = '#!/bin/sh\nwhile [ $# -gt 0 ]; do\n[ "$1" = -o ] && echo built > "$2"\nshift\ndone\n'


class Place:
    """An installation with the library of each target, of small sources, and a manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "prebuilt"
        self.folder.mkdir()
        rows = []
        for target in _plans.targets():
            (self.folder / target.name).write_text(f"brought for {target.name}\n")
            data = (self.folder / target.name).read_bytes()
            rows.append(_prebuilt.row(target, target.name, data))
        self.held: dict[str, Any] = _prebuilt.manifest(rows)
        self.write()

    def write(self) -> None:
        (self.folder / _prebuilt.MANIFEST).write_text(json.dumps(self.held))
        _prebuilt.read.cache_clear()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if not _plans.targets():
        pytest.skip("no library is written for this kind of machine")
    for name in ("ADAREC_FAST_NO_EXT", "ADAREC_FAST_PORTABLE", "ADAREC_FAST_SANITIZE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "csrc/cpu").mkdir(parents=True)
    (tmp_path / "csrc/bindings.cpp").write_text("")
    (tmp_path / "compiler").write_text(COMPILER)
    (tmp_path / "compiler").chmod(0o755)
    monkeypatch.setattr(_plans, "SOURCES", tmp_path / "csrc")
    monkeypatch.setattr(_prebuilt, "FOLDER", tmp_path / "prebuilt")
    monkeypatch.setenv("ADAREC_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(tmp_path / "compiler"))
    yield Place(tmp_path)
    _prebuilt.read.cache_clear()


def _has(monkeypatch: pytest.MonkeyPatch, flags: frozenset[str]) -> None:
    """A processor with these flags and no others."""
    monkeypatch.setattr(_plans, "_processor", lambda: {"flags": " ".join(flags)})


@pytest.mark.parametrize("name", [target.name for target in _plans.targets()])
def test_the_best_that_the_processor_runs(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (needs,) = (target.needs for target in _plans.targets() if target.name == name)
    _has(monkeypatch, needs)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert extension.build() == place.folder / name
    assert capfd.readouterr().err == ""


def test_a_target_that_was_asked_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAREC_FAST_PORTABLE", "generic")
    assert extension.build() == place.folder / "generic"
    monkeypatch.setenv("ADAREC_FAST_PORTABLE", "sse9")
    with pytest.raises(extension.ExtensionError, match="ADAREC_FAST_PORTABLE='sse9' is not one of"):
        extension.build()


def test_a_library_that_the_processor_cannot_run_is_not_loaded(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(_plans.targets()) < 2:
        pytest.skip("one library is for all processors of this kind")
    _has(monkeypatch, _plans.targets()[1].needs)
    monkeypatch.setenv("ADAREC_FAST_PORTABLE", "avx512")
    extension._load.cache_clear()
    with pytest.warns(RuntimeWarning, match="this processor has no avx512bw, .*avx512vl"):
        assert extension.unavailable("cpp") is not None
    extension._load.cache_clear()


def _other_torch(place: Place, patch: pytest.MonkeyPatch) -> None:
    place.held["torch"] = "2.0.0"


def _other_sources(place: Place, patch: pytest.MonkeyPatch) -> None:
    (_plans.SOURCES / "bindings.cpp").write_text("// changed\n")


def _damaged(place: Place, patch: pytest.MonkeyPatch) -> None:
    for row in place.held["libraries"]:
        (place.folder / row["file"]).write_text("half")


def _lost(place: Place, patch: pytest.MonkeyPatch) -> None:
    for row in place.held["libraries"]:
        (place.folder / row["file"]).unlink()


def _none_for_this_one(place: Place, patch: pytest.MonkeyPatch) -> None:
    place.held["libraries"] = [{**place.held["libraries"][0], "target": "sse9"}]


def _later_manifest(place: Place, patch: pytest.MonkeyPatch) -> None:
    place.held["version"] = 99


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        (_other_torch, f"was built for torch 2.0.0, and this is {torch.__version__}"),
        (_other_sources, "was built from other sources or with other flags"),
        (_damaged, "is damaged: "),
        (_lost, "cannot be read: "),
        (_none_for_this_one, "is for sse9, not for "),
        (_later_manifest, "has no manifest of version 1: "),
    ],
)
def test_what_does_not_fit_is_built_and_one_line_says_why(
    place: Place, monkeypatch: pytest.MonkeyPatch, arrange: Any, reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arrange(place, monkeypatch)
    place.write()
    library = extension.build()
    assert library.read_text() == "built\n"
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert f"the extension that this installation brings {reason}" in said


def test_an_installation_that_brings_nothing_builds(place: Place) -> None:
    shutil.rmtree(place.folder)
    _prebuilt.read.cache_clear()
    assert extension.build(verbose=False).read_text() == "built\n"


@pytest.mark.slow
def test_a_wheel_runs_without_a_compiler(tmp_path: Path) -> None:
    """Built for processors that this machine need not have, installed, used with an empty cache."""
    made = _wheel.build_wheel(tmp_path / "dist")
    with zipfile.ZipFile(made) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        held = json.loads(archive.read("adarec_fast/prebuilt/manifest.json"))
        (about,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
        assert f"Tag: {'-'.join(made.stem.split('-')[2:])}\n" in archive.read(about).decode()
        for row in held["libraries"]:
            data = archive.read(f"adarec_fast/prebuilt/{row['file']}")
            assert hashlib.sha256(data).hexdigest() == row["sha256"]
    assert [row["target"] for row in held["libraries"]] == [t.name for t in _plans.targets()]
    assert len(names) == len(set(names))
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target"]
    subprocess.run([*pip, str(target), str(made)], check=True, capture_output=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ADAREC_FAST", "CXX"))}
    done = subprocess.run(
        [sys.executable, "-m", "adarec_fast.cli", "info", "--json"], cwd=tmp_path, text=True,
        capture_output=True, check=True, env={
            **clean, "PYTHONPATH": str(target), "PATH": str(tmp_path / "nothing"),
            "ADAREC_FAST_CACHE": str(tmp_path / "cache"),
        },
    )
    assert "building" not in done.stderr
    facts = json.loads(done.stdout)
    best = _plans.best_target()
    assert best is not None
    library = target / "adarec_fast" / "prebuilt" / f"adarec_fast_cpp-{best.name}.so"
    assert facts["machine"]["C++ extension"] == f"{library} (came with the installation)"
    (op,) = (row for row in facts["ops"] if row["op"] == "encoder_layer")
    assert op["backend"] == "cpp"
    assert not (tmp_path / "cache").exists()
