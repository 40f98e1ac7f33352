"""A disk that fills up while training: the last checkpoint stays, and nothing half written."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_disk import mounted
from typer.testing import CliRunner

from adarec_fast import TrainConfig, synthetic
from adarec_fast.cli import app
from adarec_fast.data import write_csv
from adarec_fast.models import pretrained
from adarec_fast.models.pretrained import CheckpointError
from adarec_fast.training import RunFolderError, checkpoint, load_run, metrics_log, train
from adarec_fast.training.checkpoint import (
    find_checkpoint,
    read_state,
    save_checkpoint,
    verify_checkpoint,
    write_atomically,
    write_state,
)

DATA = synthetic(num_users=40, num_items=60, num_themes=3, subthemes_per_theme=2, seed=2)
MODEL: dict[str, Any] = {
    "hidden_size": 16, "num_layers": 1, "max_depth": 2, "max_length": 10, "backend": "packed",
}  # fmt: skip
CONFIG = TrainConfig.create(epochs=2, batch_size=64, device="cpu", checkpoint_every=2, log_every=2)


@pytest.fixture(autouse=True)
def no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writer starts a thread, and costs most of the time of so short a run."""
    monkeypatch.setattr(metrics_log, "_summary_writer", lambda *_: None)


@contextlib.contextmanager
def full_from(call: int, recovers: bool = False) -> Iterator[list[int]]:
    """A disk that is full at the ``call``-th call that changes it, and from then on unless it
    recovers; the first content to be refused is half written. Yields the count of calls."""
    count = [0]

    def failing(function: Any, what: Any = None) -> Any:
        def wrapper(*args: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == call or (count[0] > call and not recovers):
                if what is not None:
                    what(*args)
                path = args[-1] if what is torn_tensors else args[0]
                named = [] if isinstance(path, int) else [str(path)]  # fsync knows no name
                raise OSError(errno.ENOSPC, "No space left on device", *named)
            return function(*args, **options)

        return wrapper

    write = Path.write_bytes

    def torn_tensors(tensors: Any, path: Path) -> None:
        write(Path(path), b"half of it")

    def torn_content(path: Path, content: Any, *_: Any) -> None:
        write(path, b"half of it")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace", "mkdir", "fsync"):
            patch.setattr(os, name, failing(getattr(os, name)))
        for name in ("write_text", "write_bytes"):
            patch.setattr(Path, name, failing(getattr(Path, name), torn_content))
        for module in (checkpoint, pretrained):
            patch.setattr(module, "save_file", failing(module.save_file, torn_tensors))
        yield count


def save(run_dir: Path, number: int) -> None:
    def fill(folder: Path) -> None:
        write_state(folder, {"x": torch.full((4,), float(number))}, {"number": number})

    save_checkpoint(run_dir, "last", fill, {}, size=3 << 20)


def number_in(run_dir: Path) -> int:
    folder = find_checkpoint(run_dir, "last")
    assert folder is not None
    verify_checkpoint(folder)
    return int(read_state(folder)[1]["number"])


@pytest.mark.parametrize("recovers", [False, True])
def test_full_at_every_call_of_a_save(tmp_path: Path, recovers: bool) -> None:
    for call in range(1, 100):
        run_dir = tmp_path / str(call)
        run_dir.mkdir()
        save(run_dir, 1)
        with full_from(call, recovers) as count:
            try:
                save(run_dir, 2)
            except CheckpointError as error:
                message = str(error)
            else:
                break
        # Where the renames back are refused too, the new checkpoint may stay, whole.
        assert number_in(run_dir) in ((1,) if recovers else (1, 2)), call
        if recovers:
            assert [path.name for path in run_dir.iterdir()] == ["last"], call
            assert re.search(
                r"the disk is full \(3\.0 MiB are to be written, [\d.]+ MiB are left .*"
                rf"{re.escape(str(run_dir))}\)",
                message,
            ), message
        save(run_dir, 3)
        assert number_in(run_dir) == 3
        assert [path.name for path in run_dir.iterdir()] == ["last"]
    assert count[0] == call - 1 > 8


def test_full_at_every_call_of_a_first_save(tmp_path: Path) -> None:
    for call in range(1, 100):
        run_dir = tmp_path / str(call)
        run_dir.mkdir()
        try:
            with full_from(call, recovers=True):
                save(run_dir, 1)
        except CheckpointError:
            assert list(run_dir.iterdir()) == [], call
        else:
            break
    assert call > 8


def test_full_at_every_call_of_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one", encoding="utf-8")
    for call in (1, 2, 3):
        with (
            full_from(call, recovers=True),
            pytest.raises(CheckpointError, match=r"file.*the disk is full \(0\.0 MiB are to be"),
        ):
            write_atomically(path, "two")
        assert path.read_text(encoding="utf-8") == "one"
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def outcome(run_dir: Path) -> list[bytes]:
    names = ("last/model.safetensors", "best/model.safetensors", "last/training_state.safetensors")
    return [(run_dir / name).read_bytes() for name in names]


def refused(run_dir: Path, **options: Any) -> bool:
    """Train; whether a full disk ended it, as it should: said so, and left what was there whole."""
    try:
        train(MODEL, CONFIG, DATA, run_dir, **options)
    except (CheckpointError, RunFolderError) as error:
        message = str(error)
    else:
        return False
    assert "the disk is full" in message or "No space left" in message
    assert str(run_dir) in message
    for name in ("last", "best"):
        folder = find_checkpoint(run_dir, name)
        assert folder is None or verify_checkpoint(folder)
    return True


def survives(run_dir: Path, call: int, whole: list[bytes]) -> bool:
    """Train on a disk that is full from some call on, then on one with room; whether it failed."""
    with full_from(call):
        failed = refused(run_dir, resume=True)
    train(MODEL, CONFIG, DATA, run_dir, resume=True)
    assert outcome(run_dir) == whole, call
    assert not [path for path in run_dir.rglob("*") if path.suffix in (".new", ".old")]
    return failed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(MODEL, CONFIG, DATA, folder)
    return outcome(folder)


@pytest.mark.parametrize("call", [1, 3, 9, 17, 30, 45, 77, 131, 163])
def test_full_while_training(tmp_path: Path, whole: list[bytes], call: int) -> None:
    assert survives(tmp_path / "run", call, whole)


@pytest.mark.slow
def test_full_at_every_call_of_a_training(tmp_path: Path, whole: list[bytes]) -> None:
    call = 1
    while survives(tmp_path / str(call), call, whole):
        call += 1
    print(f"full at each of {call - 1} calls")
    assert call > 163


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    yield from mounted(tmp_path / "disk", "2m")


def test_a_small_disk_fills_up(small_disk: Path, whole: list[bytes]) -> None:
    """No injected error: the kernel's own, at eleven degrees of fullness."""
    ballast, failures = small_disk / "ballast", 0
    for kib in range(0, 110, 10):
        run_dir = small_disk / f"run{kib}"
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        ballast.write_bytes(bytes(free - (kib << 10)))
        if refused(run_dir):
            failures += 1
            assert not list(run_dir.glob("*.new"))
        ballast.unlink()
        train(MODEL, CONFIG, DATA, run_dir, resume=True)
        assert outcome(run_dir) == whole
        subprocess.run(["rm", "-r", str(run_dir)], check=True)
    assert failures >= 5


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    write_csv(DATA, tmp_path / "data.csv")
    run_dir = str(tmp_path / "run")
    tiny = ["--hidden-size", "16", "--backend", "packed", "--epochs", "1", "--num-layers", "1"]
    with full_from(40):
        shown = CliRunner().invoke(
            app, ["train", "--data", str(tmp_path / "data.csv"), "--run-dir", run_dir, *tiny]
        )
    assert shown.exit_code == 2, shown.output
    assert "the disk is full" in shown.stderr
    assert "Traceback" not in shown.output
    assert load_run(run_dir, which="last").history == []
