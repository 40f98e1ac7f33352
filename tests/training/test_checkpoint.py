"""Checkpoints are whole or not there: deaths, full disks, damage."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers_disk import mounted
from safetensors.torch import load_file, save_file

from adarec_fast import files
from adarec_fast.models.pretrained import CheckpointError
from adarec_fast.training import checkpoint
from adarec_fast.training.checkpoint import (
    MANIFEST,
    STATE_TENSORS,
    STATE_VALUES,
    find_checkpoint,
    read_state,
    recover,
    save_checkpoint,
    verify_checkpoint,
    write_atomically,
    write_state,
)


def save_number(run_dir: Path, number: int, size: int = 4) -> None:
    """A checkpoint whose every file says ``number``."""

    def fill(folder: Path) -> None:
        write_state(folder, {"x": torch.full((size,), float(number))}, {"number": number})

    save_checkpoint(run_dir, "last", fill, {"step": number})


def number_of(folder: Path) -> int:
    """The number, after checking that the checkpoint is whole and of one piece."""
    manifest = verify_checkpoint(folder)
    tensors, values = read_state(folder)
    assert manifest["step"] == values["number"] == int(tensors["x"][0])
    return values["number"]


def test_round_trip(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, "last") is None
    for number in (1, 2):
        save_number(tmp_path, number)
        assert number_of(tmp_path / "last") == number
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def die_in_call(run_dir: Path, number: int, call: int) -> bool:
    """Save in a child process that is gone at its ``call``-th system call; whether it was."""
    child = os.fork()
    if child == 0:
        left = call

        def dying(function):  # type: ignore[no-untyped-def]
            def wrapper(*args, **kwargs):  # type: ignore[no-untyped-def]
                nonlocal left
                left -= 1
                if left == 0:
                    os._exit(137)
                return function(*args, **kwargs)

            return wrapper

        code = 1
        try:
            for name in ("rename", "fsync", "open", "mkdir", "rmdir", "unlink", "write"):
                setattr(os, name, dying(getattr(os, name)))
            checkpoint.save_file = dying(checkpoint.save_file)
            Path.write_text = dying(Path.write_text)  # type: ignore[method-assign]
            save_number(run_dir, number)
            code = 0
        finally:
            os._exit(code)  # neither pytest's clean-up nor its output belongs to the child
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 137)
    return code == 137


def test_death_at_every_system_call_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    first_save = tmp_path / "first"
    for call in range(1, 100):
        run_dir = tmp_path / f"run{call}"
        run_dir.mkdir()
        shutil.rmtree(first_save, ignore_errors=True)
        first_save.mkdir()
        # A first save: nothing, or all of it.
        if not die_in_call(first_save, 1, call):
            assert number_of(first_save / "last") == 1
        found = find_checkpoint(first_save, "last")
        assert found is None or number_of(found) == 1
        # A second one: the previous, or the new one; the same after recovery; then one can save.
        save_number(run_dir, 1)
        died = die_in_call(run_dir, 2, call)
        found = find_checkpoint(run_dir, "last")
        assert found is not None
        assert number_of(found) in (1, 2)
        if not died:
            break
        recover(run_dir, "last")
        assert [path.name for path in run_dir.iterdir()] == ["last"]
        assert number_of(run_dir / "last") in (1, 2)
        save_number(run_dir, 3)
        assert number_of(run_dir / "last") == 3
    assert not died
    assert call > 10  # it died at many points, the renames among them


def test_between_the_renames(tmp_path: Path) -> None:
    save_number(tmp_path, 1)
    (tmp_path / "last").rename(tmp_path / "last.old")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    save_number(elsewhere, 2)
    (elsewhere / "last").rename(tmp_path / "last.new")
    found = find_checkpoint(tmp_path, "last")
    assert found is not None
    assert number_of(found) == 1
    recover(tmp_path, "last")
    assert number_of(tmp_path / "last") == 2
    assert not (tmp_path / "last.old").exists()


@pytest.mark.parametrize("name", [STATE_TENSORS, STATE_VALUES])
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    save_number(tmp_path, 1)
    path = tmp_path / "last" / name
    whole = path.read_bytes()
    damages = {
        "truncated": whole[:-1],
        "altered": whole[:-1] + bytes([whole[-1] ^ 1]),
        "empty": b"",
    }
    for data in damages.values():
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"{name}: truncated or altered"):
            verify_checkpoint(tmp_path / "last")
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: no such file, though manifest.json"):
        verify_checkpoint(tmp_path / "last")


def test_damaged_manifest(tmp_path: Path) -> None:
    save_number(tmp_path, 1)
    path = tmp_path / "last" / MANIFEST
    path.write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"manifest.json: does not parse as JSON"):
        verify_checkpoint(tmp_path / "last")
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(CheckpointError, match="holds a list"):
        verify_checkpoint(tmp_path / "last")
    path.write_text(json.dumps({"format": 99}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="format 99 is not 1"):
        verify_checkpoint(tmp_path / "last")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"manifest.json: no such file"):
        verify_checkpoint(tmp_path / "last")


def test_state_that_does_not_parse_or_is_not_finite(tmp_path: Path) -> None:
    write_state(tmp_path, {"x": torch.ones(4)}, {})
    path = tmp_path / STATE_TENSORS
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_state(tmp_path)
    # What a pickle begins with is no safetensors header.
    path.write_bytes(b"\x80\x02}q\x00." + whole)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_state(tmp_path)
    save_file({"x": torch.tensor([1.0, float("nan")])}, path)
    with pytest.raises(CheckpointError, match="x holds NaN or infinity"):
        read_state(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        read_state(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    yield from mounted(tmp_path / "disk", "256k")


def test_full_disk(small_disk: Path) -> None:
    save_number(small_disk, 1, size=10_000)
    with pytest.raises(CheckpointError, match=r"the disk is full .* free some space") as caught:
        save_number(small_disk, 2, size=60_000)
    assert str(small_disk) in str(caught.value)
    assert number_of(small_disk / "last") == 1
    assert [path.name for path in small_disk.iterdir()] == ["last"]
    save_number(small_disk, 3, size=10_000)
    assert number_of(small_disk / "last") == 3


@pytest.mark.parametrize("failing", ["save_file", "flush_to_disk"])
def test_disk_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    save_number(tmp_path, 1)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "file"))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, failing, refuse)
        with pytest.raises(CheckpointError, match=r"file: the disk is full"):
            save_number(tmp_path, 2)
    assert number_of(tmp_path / "last") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_small_files_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "one")

    def refuse(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(files, "flush_to_disk", refuse)
        with pytest.raises(CheckpointError, match=r"file: cannot be written: .*Input/output"):
            write_atomically(path, "two")
    assert path.read_text(encoding="utf-8") == "one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_no_pickle_in_the_tensors(tmp_path: Path) -> None:
    save_number(tmp_path, 5)
    assert load_file(tmp_path / "last" / STATE_TENSORS)["x"].tolist() == [5.0] * 4
    assert {path.suffix for path in (tmp_path / "last").iterdir()} == {".json", ".safetensors"}
