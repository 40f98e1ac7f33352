"""Why CUDA is not used: each reason is told from the others, with what would help."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch

from adarec_fast import ADARecConfig, TrainConfig, synthetic
from adarec_fast.config import ConfigError
from adarec_fast.ops import _driver, _library, _triton
from adarec_fast.ops._driver import Card, cards, why_no_cuda, why_no_launcher
from adarec_fast.training import train
from adarec_fast.training.loop import resolve_device

SMI = '#!/bin/sh\n[ "$1" = "--query-gpu=name,driver_version" ] || exit 9\n{line}\n'


class Machine:
    """A machine with a card, or without, and torch built for a CUDA, or not."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.version, "hip", None)
        patch.setattr(_driver, "_PROC", folder / "proc")
        patch.setattr(_driver, "_DEVICES", folder)
        patch.setenv("PATH", str(folder))
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        patch.delenv("CC", raising=False)

    def torch_for(self, cuda: str | None) -> Machine:
        self.patch.setattr(torch.version, "cuda", cuda)
        return self

    def card(self, driver: str, name: str = "NVIDIA GeForce RTX 3090") -> Machine:
        return self.program("nvidia-smi", SMI.format(line=f"echo '{name}, {driver}'"))

    def program(self, name: str, text: str = "#!/bin/sh\n") -> Machine:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return self


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_driver_that_is_too_old_is_told_with_the_index_that_suits(machine: Machine) -> None:
    machine.torch_for("13.0").card("535.183.01")
    reason = why_no_cuda() or ""
    assert "NVIDIA GeForce RTX 3090 has driver 535.183.01" in reason
    assert "CUDA 13.0, which needs driver 580 or newer" in reason
    assert "--index-url https://download.pytorch.org/whl/cu126" in reason


@pytest.mark.parametrize(
    ("driver", "index"),
    [("580.65", "cu130"), ("570.1", "cu126"), ("470.2", "cu118"), ("?", "cu118")],
)
def test_the_index_for_a_cpu_build(machine: Machine, driver: str, index: str) -> None:
    machine.torch_for(None).card(driver)
    reason = why_no_cuda() or ""
    assert "is a CPU build, though there is NVIDIA GeForce RTX 3090" in reason
    assert reason.endswith(f"/whl/{index}")


def test_no_card(machine: Machine) -> None:
    assert why_no_cuda() == "torch is a CPU build, and no NVIDIA card is visible" or (
        torch.version.cuda is not None
    )
    machine.torch_for("13.0")
    assert "no NVIDIA card or driver is visible" in (why_no_cuda() or "")
    assert cards() == []


def test_a_card_that_is_hidden_or_cannot_be_opened(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.torch_for("12.8").card("570.1")
    assert "there is no /dev/nvidia0" in (why_no_cuda() or "")
    (machine.folder / "nvidia0").touch()
    assert "shows the driver's own error" in (why_no_cuda() or "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES='' hides NVIDIA GeForce RTX 3090" in (why_no_cuda() or "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert why_no_cuda() is None


def test_cards_without_nvidia_smi(machine: Machine) -> None:
    machine.folder.joinpath("proc").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
    )
    assert cards() == [Card("an NVIDIA card", "535.183.01")]
    machine.program("nvidia-smi", "#!/bin/sh\nexit 1\n")  # no answer: the kernel's word remains
    assert cards() == [Card("an NVIDIA card", "535.183.01")]


def test_what_a_launch_needs_beside_the_card(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "there is no gcc or clang" in (why_no_launcher() or "")
    monkeypatch.setenv("CC", "icx")
    assert "CC='icx' is not a program" in (why_no_launcher() or "")
    monkeypatch.delenv("CC")
    machine.program("gcc")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path / "include")})
    assert "apt install python3-dev" in (why_no_launcher() or "")
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    assert why_no_launcher() is None


def test_without_a_compiler_the_kernels_fall_back_with_a_word(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    _triton.missing.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="plain PyTorch runs instead: there is no gcc"):
            choice = _library.explain("level_pool", "auto", "cuda")
    finally:
        _triton.missing.cache_clear()
    assert choice.backend == "packed"
    assert "install gcc" in choice.reason


def test_training_on_a_cpu_beside_a_card_says_why(machine: Machine, tmp_path: Path) -> None:
    machine.torch_for("13.0").card("535.1")
    data = synthetic(num_users=20, num_items=20, num_themes=2, subthemes_per_theme=2)
    model = ADARecConfig.create(
        num_items=20, hidden_size=8, num_layers=1, max_depth=1, max_length=5, backend="reference"
    )
    with pytest.warns(RuntimeWarning, match="training on the CPU: .*needs driver 580"):
        train(model, TrainConfig(epochs=1, batch_size=64), data, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"device='cuda' is not usable here: .*needs driver 580"):
        resolve_device("cuda")
