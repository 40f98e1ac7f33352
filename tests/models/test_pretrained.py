"""Saving and loading models: whole or not at all, and nothing foreign gets in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adarec_fast import ADARec, CheckpointError
from adarec_fast.data import Vocabulary
from adarec_fast.models import pretrained


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = ADARec(num_items=5, hidden_size=8, num_layers=1, max_depth=2, max_length=6)
    model.item_vocabulary = Vocabulary(["a", "b", "c", "d", "e"], first=1)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    return folder


def test_round_trip(saved: Path) -> None:
    model = ADARec.from_pretrained(saved)
    assert not model.training
    assert model.item_vocabulary is not None
    assert model.item_vocabulary.decode([1, 5]) == ["a", "e"]
    again = saved.with_name("again")
    model.save_pretrained(again)
    for name in (pretrained.WEIGHTS, pretrained.CONFIG, pretrained.ITEMS):
        assert (again / name).read_bytes() == (saved / name).read_bytes()
    assert sorted(p.name for p in saved.parent.iterdir()) == ["again", "model"]


def test_saving_again_replaces_the_folder(saved: Path) -> None:
    other = ADARec(num_items=7, hidden_size=8, num_layers=0)
    other.save_pretrained(saved)
    assert ADARec.from_pretrained(saved).config.num_items == 7
    assert not (saved / pretrained.ITEMS).exists()


def test_names_are_the_same_whatever_the_backend(saved: Path) -> None:
    names = {
        frozenset(ADARec.from_pretrained(saved, backend=backend).state_dict())
        for backend in ("auto", "reference", "packed")
    }
    assert len(names) == 1
    assert ADARec.from_pretrained(saved, backend="packed").config.backend == "packed"


def test_foreign_encoder_round_trip(tmp_path: Path) -> None:
    def encoder() -> nn.Module:
        return nn.GRU(8, 8, batch_first=True)

    model = ADARec(num_items=5, hidden_size=8, backbone=encoder()).eval()
    model.save_pretrained(tmp_path / "m")
    again = ADARec.from_pretrained(tmp_path / "m", backbone=encoder())
    history = torch.tensor([[1, 2, 3]])
    assert torch.equal(again(history).user, model(history).user)
    with pytest.raises(CheckpointError, match="is missing"):
        ADARec.from_pretrained(tmp_path / "m")


def test_a_failing_disk_leaves_the_old_model(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (saved / pretrained.WEIGHTS).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        ADARec(num_items=9).save_pretrained(saved)
    assert (saved / pretrained.WEIGHTS).read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ADARec.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(saved: Path, keep: int) -> None:
    path = saved / pretrained.WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        ADARec.from_pretrained(saved)


def test_tampered_weights(saved: Path) -> None:
    path = saved / pretrained.WEIGHTS
    state = load_file(path)
    poisoned = {**state, "denoiser.w1": state["denoiser.w1"] * float("nan")}
    save_file(poisoned, path)
    with pytest.raises(CheckpointError, match=r"denoiser\.w1 holds NaN"):
        ADARec.from_pretrained(saved)
    save_file({k: v for k, v in state.items() if k != "denoiser.b2"}, path)
    with pytest.raises(CheckpointError, match=r"denoiser\.b2 is missing"):
        ADARec.from_pretrained(saved)
    save_file({**state, "extra": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="unknown tensors extra"):
        ADARec.from_pretrained(saved)
    save_file({**state, "denoiser.b2": torch.zeros(9)}, path)
    with pytest.raises(CheckpointError, match=r"denoiser\.b2 is torch\.float32 \[9\]"):
        ADARec.from_pretrained(saved)


def test_huge_header_is_refused_without_allocating(saved: Path) -> None:
    path = saved / pretrained.WEIGHTS
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        ADARec.from_pretrained(saved)


def test_another_catalogue(saved: Path) -> None:
    path = saved / pretrained.ITEMS
    path.write_text(json.dumps(Vocabulary(["a", "b"], first=1).to_json()))
    with pytest.raises(CheckpointError, match="names 2 items; the model has 5"):
        ADARec.from_pretrained(saved)


def test_bad_configuration(saved: Path) -> None:
    path = saved / pretrained.CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "hidden_sise": 3}))
    with pytest.raises(CheckpointError, match="did you mean 'hidden_size'"):
        ADARec.from_pretrained(saved)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="does not parse"):
        ADARec.from_pretrained(saved)
