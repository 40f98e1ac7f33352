"""Outputs go through links, into pipes and devices; new files have the umask's mode; locks."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from adarec_fast import ADARec, TrainConfig, synthetic
from adarec_fast.cli import app
from adarec_fast.data import InteractionData, write_csv
from adarec_fast.experiments import Sweep, run_sweep
from adarec_fast.files import locked, replacing
from adarec_fast.models.pretrained import load
from adarec_fast.training import RunFolderError, load_run, train
from adarec_fast.training import run_folder as run_folders
from adarec_fast.training.checkpoint import write_atomically

TINY: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "max_depth": 2, "max_length": 10}


@pytest.fixture(scope="module")
def data() -> InteractionData:
    return synthetic(num_users=30, num_items=40, num_themes=2, subthemes_per_theme=2, seed=4)


@pytest.fixture(scope="module")
def run(data: InteractionData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "run"
    train(TINY, TrainConfig(epochs=1, batch_size=64, device="cpu"), data, folder)
    return folder


@pytest.fixture(params=[0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def put(path: Path, content: bytes) -> None:
    with replacing(path) as fresh:
        fresh.write_bytes(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- what a name may be


def test_links_stay_links(tmp_path: Path) -> None:
    far = tmp_path / "far"
    far.mkdir()
    (far / "target").write_bytes(b"old")
    (tmp_path / "second").symlink_to("far/target")
    (tmp_path / "first").symlink_to(tmp_path / "second")
    put(tmp_path / "first", b"new")
    assert (far / "target").read_bytes() == b"new"
    (tmp_path / "dangling").symlink_to("far/made")
    put(tmp_path / "dangling", b"made")
    assert (far / "made").read_bytes() == b"made"
    assert all((tmp_path / name).is_symlink() for name in ("first", "second", "dangling"))
    assert names(far) == ["made", "target"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links") as caught:
        put(tmp_path / "loop", b"")
    assert caught.value.errno == errno.ELOOP
    assert names(tmp_path) == ["dangling", "far", "first", "loop", "second"]


def test_further_names_and_modes_are_kept(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"old")
    other.hardlink_to(one)
    put(one, b"new")
    assert other.read_bytes() == b"new"
    secret = tmp_path / "secret"
    secret.write_bytes(b"old")
    secret.chmod(0o600)
    put(secret, b"new")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    with pytest.raises(IsADirectoryError):
        put(tmp_path, b"")
    put(tmp_path / ("n" * 255), b"a long name")
    assert names(tmp_path) == ["n" * 255, "one", "other", "secret"]


def test_pipes_get_the_content_and_stay(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for name in ("pipe", "link"):
        reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
        reader.start()
        put(tmp_path / name, b"x" * 100_000)
        reader.join(10)
    assert read == [b"x" * 100_000] * 2
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["link", "pipe"]


def test_devices_and_descriptors(tmp_path: Path) -> None:
    put(Path("/dev/null"), b"gone")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(OSError, match="No space left"):
        put(Path("/dev/full"), b"too much")
    appended = tmp_path / "appended"
    appended.write_bytes(b"before\n")
    with appended.open("ab") as file:
        put(Path(f"/dev/fd/{file.fileno()}"), b"one\n")
        (tmp_path / "link").symlink_to(f"/proc/self/fd/{file.fileno()}")
        put(tmp_path / "link", b"two\n")
    assert appended.read_bytes() == b"before\none\ntwo\n"


def test_a_mounted_file_is_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(os, "replace", busy)
    put(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_a_folder_that_is_not_there_is_told_by_the_name_asked_for(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "to")
    for name in ("nowhere/file", "link"):
        place = tmp_path / ("nowhere/to" if name == "link" else name)
        with pytest.raises(FileNotFoundError, match=re.escape(f"'{place}'")), (
            replacing(tmp_path / name)
        ):
            pass


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    (tmp_path / "link").symlink_to(path)

    def fail(fresh: Path) -> None:
        fresh.write_bytes(b"half")
        raise KeyError

    with pytest.raises(KeyError), replacing(tmp_path / "link") as fresh:
        fail(fresh)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file", "link"]


WRITERS: dict[str, Callable[[Path, InteractionData], None]] = {
    "small files": lambda path, _: write_atomically(path, "new"),
    "data": lambda path, data: write_csv(data, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_writers_follow_links(writer: str, data: InteractionData, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    WRITERS[writer](link, data)
    assert link.is_symlink()
    assert target.read_text() != "old"


def test_recommendations_and_pictures_go_through_links_and_pipes(
    run: Path, data: InteractionData, tmp_path: Path
) -> None:
    def adarec(*words: object) -> None:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output

    target, link, pipe = tmp_path / "target.csv", tmp_path / "link.csv", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    os.mkfifo(pipe)
    ask = ("recommend", run, "--user", data.users.ids[0], "--k", 2, "--format")
    adarec(*ask, "csv", "--out", link)
    assert link.is_symlink()
    expected = target.read_bytes()
    assert len(expected.splitlines()) == 3
    read = list[bytes]()
    for form in ("csv", "parquet"):
        reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
        reader.start()
        adarec(*ask, form, "--out", pipe)
        reader.join(10)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert read[0] == expected
    assert read[1].startswith(b"PAR1")
    assert read[1].endswith(b"PAR1")
    with (tmp_path / "collected").open("wb") as file:
        file.write(b"before\n")
        file.flush()
        descriptor = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            adarec(*ask, "csv", "--out", "/dev/stdout")
        finally:
            os.dup2(descriptor, 1)
            os.close(descriptor)
    assert (tmp_path / "collected").read_bytes() == b"before\n" + expected
    pytest.importorskip("matplotlib")
    (tmp_path / "losses.svg").symlink_to("picture")
    adarec("plot", run, "--only", "losses", "--format", "svg", "--out", tmp_path)
    assert (tmp_path / "losses.svg").is_symlink()
    assert b"<svg" in (tmp_path / "picture").read_bytes()


def test_models_and_checkpoints_may_be_links(data: InteractionData, tmp_path: Path) -> None:
    model = ADARec(num_items=data.num_items, **TINY)
    disk = tmp_path / "disk"
    model.save_pretrained(disk / "model")
    (tmp_path / "link").symlink_to(disk / "model")
    with torch.no_grad():
        model.item_embedding.weight += 1  # type: ignore[operator]
    model.save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    again = load(disk / "model").state_dict()["item_embedding.weight"]
    assert torch.equal(again, model.state_dict()["item_embedding.weight"])
    assert names(disk) == ["model"]
    folder = tmp_path / "run"
    config = TrainConfig(epochs=2, batch_size=64, device="cpu")
    train(TINY, config, data, folder, stop_after_steps=1)
    (folder / "last").rename(disk / "last")
    (folder / "last").symlink_to(disk / "last")
    assert train(TINY, config, data, folder, resume=True).status == "finished"
    assert (folder / "last").is_symlink()
    assert names(disk) == ["last", "model"]
    assert load_run(folder, which="last").which == "last"


# ---------------------------------------------------------------- modes


def test_everything_has_the_mode_of_the_umask(
    umask: int, data: InteractionData, tmp_path: Path
) -> None:
    folder = tmp_path / "all"
    config = TrainConfig(epochs=1, batch_size=64, device="cpu")
    train({**TINY, "memory": "transitions"}, config, data, folder / "run")
    load_run(folder / "run").model.save_pretrained(folder / "model")  # type: ignore[operator]
    write_csv(data, folder / "data.csv")
    made = list(folder.rglob("*"))
    assert len(made) > 12
    for path in made:
        right = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == right, path


# ---------------------------------------------------------------- locks


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_only_a_lock_that_is_held_means_busy(
    no_locks: None, data: InteractionData, tmp_path: Path
) -> None:
    with pytest.raises(RunFolderError, match=r"cannot be locked .*No locks available; choose"):
        train(TINY, TrainConfig(epochs=1, device="cpu"), data, tmp_path / "run")
    with pytest.raises(OSError, match="cannot be locked: No locks available"), locked(
        tmp_path / "lock"
    ):
        pass


def test_a_sweep_that_cannot_lock_or_trains_nothing_fails(
    data: InteractionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(data, tmp_path / "data.csv")
    folder = tmp_path / "sweep"
    words = [
        "sweep", "--sweep-dir", folder, "--data", tmp_path / "data.csv", "--hidden-size", 16,
        "--max-depth", 2, "--num-layers", 1, "--epochs", 1, "--grid", "seed=0",
    ]  # fmt: skip

    def sweep() -> tuple[int, str]:
        done = CliRunner().invoke(app, [str(word) for word in words])
        return done.exit_code, done.output

    with monkeypatch.context() as patch:
        real = fcntl.flock

        def flock(file: Any, operation: int) -> None:
            if operation & fcntl.LOCK_NB:
                raise OSError(errno.ENOLCK, "No locks available")
            real(file, operation)

        patch.setattr(fcntl, "flock", flock)
        code, shown = sweep()
    assert code == 2, shown
    assert "No locks available" in shown
    with run_folders.locked(folder / ".locks" / "seed=0"):
        code, shown = sweep()
        assert code == 1, shown
        assert "nothing was trained: other processes are at all that is left" in shown
        outcomes = run_sweep(Sweep.load(folder), folder)
        assert [outcome.status for outcome in outcomes] == ["busy"]
    assert sweep()[0] == 0
    assert sweep()[0] == 0  # all of it is finished: nothing is left to train
