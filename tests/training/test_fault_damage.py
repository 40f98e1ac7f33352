"""Damaged and exchanged files of a run: refused by name, or the run is what it was."""

from __future__ import annotations

import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from adarec_fast import ADARec, ConfigError, TrainConfig, synthetic
from adarec_fast.models.pretrained import CheckpointError
from adarec_fast.training import RunFolderError, load_run, metrics_log, train
from adarec_fast.training.run_folder import read_config

DATA = synthetic(num_users=40, num_items=60, num_themes=3, subthemes_per_theme=2, seed=2)
# The same catalogue and users, but other histories.
OTHER = DATA.replace(values=DATA.values.flip(0), labels=None)
MODEL: dict[str, Any] = {
    "hidden_size": 16, "num_layers": 1, "max_depth": 2, "max_length": 10, "backend": "packed",
}  # fmt: skip
CONFIG = TrainConfig.create(epochs=2, batch_size=64, device="cpu", log_every=2, seed=5)
CHECKPOINT = ("model.safetensors", "config.json", "items.json", "manifest.json")
STATE = ("training_state.safetensors", "training_state.json")
READ = (
    *(f"best/{name}" for name in CHECKPOINT),
    *(f"last/{name}" for name in (*CHECKPOINT, *STATE)),
    "config.json", "interactions.safetensors", "users.json", "metrics.jsonl", "environment.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs that differ in one thing each."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics_log, "_summary_writer", lambda *_: None)
        for name, model, config, data in (
            ("run", MODEL, CONFIG, DATA),
            ("seed", {**MODEL, "seed": 1}, CONFIG, DATA),
            ("wider", {**MODEL, "hidden_size": 32}, CONFIG, DATA),
            ("again", MODEL, CONFIG, DATA),
            ("data", MODEL, CONFIG, OTHER),
        ):
            train(model, config, data, folder / name)
    return {path.name: path for path in folder.iterdir()}


class Subject:
    """A run to be damaged, and what reading it whole gives."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir
        self.saved = {name: (run_dir / name).read_bytes() for name in READ}
        self.whole = self._read()

    def _read(self) -> list[Any]:
        """Everything that a user of the run relies on, by all ways in."""
        result: list[Any] = []
        for which in ("best", "last"):
            run = load_run(self.path, which=which)  # type: ignore[arg-type]
            result += [tensor.tolist() for tensor in run.model.state_dict().values()]
            result += [run.model.config, run.data.values.tolist(), run.data.users, run.data.items]
            assert run.data.labels is not None
            result += [run.data.name, *(t.tolist() for t in vars(run.data.labels).values())]
        model_config, config, about = read_config(self.path)
        # As `adarec-fast train --resume` does, with the settings that it finds; a finished run has
        # no step left to do.
        if config.epochs <= CONFIG.epochs:
            train(model_config, config, DATA, self.path, resume=True, data_source=about["source"])
            result += [(self.path / "last" / "model.safetensors").read_bytes()]
        return result

    def restore(self) -> None:
        for name, content in self.saved.items():
            (self.path / name).write_bytes(content)

    def outcome(self, name: str) -> str:
        """``"refused"`` or ``"same"``, after asserting that it is one of the two."""
        problem = ""
        try:
            values = self._read()
        except (CheckpointError, RunFolderError) as error:
            problem = str(error)
        except ConfigError as error:  # a device's name is free to change, and known to nobody
            problem = f"{self.path}: {error}"
            assert "device=" in problem, problem
        finally:
            self.restore()
        if problem:
            assert str(self.path) in problem, problem
            return "refused"
        expected = self.whole if len(values) == len(self.whole) else self.whole[:-1]
        assert values == expected, f"{name}: a wrong run was read"
        return "same"


@pytest.fixture
def subject(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(metrics_log, "_summary_writer", lambda *_: None)
    shutil.copytree(runs["run"], tmp_path / "run")
    return Subject(tmp_path / "run")


def damage(subject: Subject, name: str, times: int, seed: int) -> dict[str, int]:
    """Flip bytes, cut, lengthen and blank a file at random places."""
    generator = random.Random(f"{name} {seed}")
    whole, path = subject.saved[name], subject.path / name
    counts = {"refused": 0, "same": 0}
    for number in range(times):
        content = bytearray(whole)
        place = generator.randrange(len(whole))
        kind = number % 4
        if kind in (0, 1):
            content[place] ^= 1 << generator.randrange(8)
        elif kind == 2:
            del content[place:]
        else:
            end = min(len(whole), place + generator.choice([1, 8, 512]))
            content[place:end] = bytes(end - place)
        path.write_bytes(content)
        counts[subject.outcome(name)] += 1
    return counts


@pytest.mark.parametrize("name", READ)
def test_damaged_files(subject: Subject, name: str) -> None:
    counts = damage(subject, name, times=6, seed=0)
    # A flip of a time or of a figure in a log is no fault of the run's.
    if name.startswith(("best/", "last/")) and not name.endswith("manifest.json"):
        assert counts["same"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_files_damaged_often(subject: Subject, name: str) -> None:
    print(name, damage(subject, name, times=200, seed=1))


@pytest.mark.parametrize("name", READ)
def test_missing_and_empty_files(subject: Subject, name: str) -> None:
    optional = ("environment.json",)
    (subject.path / name).unlink()
    assert subject.outcome(name) == ("same" if name in optional else "refused")
    (subject.path / name).write_bytes(b"")
    assert subject.outcome(name) == "refused"


@pytest.mark.parametrize("other", ["seed", "wider", "again", "data"])
def test_files_of_another_run(subject: Subject, runs: dict[str, Path], other: str) -> None:
    """Each file alone. Equal files are no exchange."""
    for name in READ:
        content = (runs[other] / name).read_bytes()
        (subject.path / name).write_bytes(content)
        outcome = subject.outcome(name)
        # Of the same data, or a log.
        same = name == "interactions.safetensors" and other != "data"
        same = same or name in ("metrics.jsonl", "environment.json")
        assert outcome == "refused" or same or content == subject.saved[name], name


@pytest.mark.parametrize("other", ["seed", "wider", "again", "data"])
@pytest.mark.parametrize("which", ["best", "last"])
def test_checkpoints_of_another_run(
    subject: Subject, runs: dict[str, Path], other: str, which: str
) -> None:
    """A whole checkpoint, which is in itself without fault."""
    shutil.rmtree(subject.path / which)
    shutil.copytree(runs[other] / which, subject.path / which)
    pattern = rf"{re.escape(str(subject.path / which))}: (a checkpoint of another run|of another)"
    with pytest.raises(CheckpointError, match=pattern):
        load_run(subject.path, which=which)  # type: ignore[arg-type]
    if which == "last":
        with pytest.raises(CheckpointError, match=pattern):
            train(MODEL, CONFIG, DATA, subject.path, resume=True)


def test_data_of_another_run(subject: Subject, runs: dict[str, Path]) -> None:
    """Interactions and users agree with each other and with the catalogue, but not with the run."""
    for name in ("interactions.safetensors", "users.json"):
        shutil.copy(runs["data"] / name, subject.path / name)
    with pytest.raises(CheckpointError, match=r"interactions.safetensors: not the data that this"):
        load_run(subject.path)


def test_best_and_last_exchanged(subject: Subject) -> None:
    for one, two in (("best", "aside"), ("last", "best"), ("aside", "last")):
        (subject.path / one).rename(subject.path / two)
    for which, says in (("best", "last"), ("last", "best")):
        with pytest.raises(CheckpointError, match=rf"{which}: not its own content: .*'{says}'"):
            load_run(subject.path, which=which)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="last: not its own content"):
        train(MODEL, CONFIG, DATA, subject.path, resume=True)


def test_settings_that_were_altered(subject: Subject) -> None:
    path = subject.path / "config.json"
    text = path.read_text(encoding="utf-8")
    for old, new in (
        ('"learning_rate": 0.001', '"learning_rate": 0.002'),
        ('"dropout": 0.5', '"dropout": 0.4'),
        ('"seed": 5', '"seed": 4'),
    ):
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
        model_config, config, _ = read_config(subject.path)
        with pytest.raises(CheckpointError, match=r"config.json: altered: these are not the"):
            train(model_config, config, DATA, subject.path, resume=True)
        with pytest.raises(CheckpointError, match=r"config.json: altered: these are not the"):
            load_run(subject.path)
    path.write_text(text.replace('"epochs": 2', '"epochs": 3'), encoding="utf-8")
    assert load_run(subject.path).train_config.epochs == 3  # what may change may be changed


def test_a_file_beside_the_manifest(subject: Subject) -> None:
    shutil.copy(subject.path / "users.json", subject.path / "last" / "users.json")
    with pytest.raises(CheckpointError, match=r"last/users.json: not of this checkpoint"):
        load_run(subject.path, which="last")


def test_folders_and_links_in_place_of_files(subject: Subject) -> None:
    for name in ("last/model.safetensors", "config.json", "last/manifest.json"):
        path = subject.path / name
        path.unlink()
        path.mkdir()
        with pytest.raises((CheckpointError, RunFolderError), match=re.escape(name)):
            load_run(subject.path, which="last")
        path.rmdir()
        path.symlink_to(path.name)
        with pytest.raises((CheckpointError, RunFolderError), match=re.escape(name)):
            load_run(subject.path, which="last")
        path.unlink()
        subject.restore()


@pytest.mark.parametrize("name", CHECKPOINT[:3])
def test_damaged_models(runs: dict[str, Path], tmp_path: Path, name: str) -> None:
    """A model's folder has no checksums: it parses and fits, or it is refused."""
    folder = tmp_path / "model"
    shutil.copytree(runs["run"] / "best", folder)
    whole, generator = (folder / name).read_bytes(), random.Random(name)
    for number in range(60):
        content = bytearray(whole)
        place = generator.randrange(min(len(whole), 3000))
        if number % 2:
            content[place] ^= 1 << generator.randrange(8)
        else:
            del content[place:]
        (folder / name).write_bytes(content)
        problem = ""
        try:
            ADARec.from_pretrained(folder)
        except CheckpointError as error:
            problem = str(error)
        assert number % 2 or str(folder) in problem


def test_truncated_at_every_length(runs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", "items.json"):
        folder = tmp_path / name
        shutil.copytree(runs["run"] / "best", folder)
        whole = (folder / name).read_bytes()
        step = max(1, len(whole) // 50)
        for length in range(0, len(whole) - 1, step):
            os.truncate(folder / name, 0)
            (folder / name).write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=re.escape(str(folder))):
                ADARec.from_pretrained(folder)
