"""Kernels that are compiled before they are asked for, without a device."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("an interpreted kernel is not compiled", allow_module_level=True)

from adarec_fast.config import TrainConfig
from adarec_fast.kernels import _heuristics, _prewarm
from adarec_fast.kernels._heuristics import choosing
from adarec_fast.kernels._prewarm import Collected, Compiled, collecting, compile_all
from adarec_fast.models.adarec.config import ADARecConfig
from adarec_fast.ops import OPS, _library, choose, dropout, extension, linear_cross_entropy
from adarec_fast.rng import STREAM_EMBEDDING, as_seed
from adarec_fast.training import CompilationFailed, PlainReporter, RichReporter
from adarec_fast.training.exercise import exercise
from adarec_fast.training.prewarm import prewarm

CPU = torch.device("cpu")
CONFIG = ADARecConfig.create(num_items=30, hidden_size=16, max_depth=2, num_layers=1)


def test_a_run_asks_for_every_kernel_that_has_tiles() -> None:
    seen = set()
    with collecting(86) as collected, choosing(lambda key, fixed: seen.add(key.kernel) or fixed):
        exercise(CONFIG, TrainConfig(batch_size=2), CPU, supervisions=("prefix", "all"))
    # The fused trajectory is opt-in, and many users are more than these.
    elsewhere = {"fused_trajectory", "gru_scan_many", "gru_scan_backward_many"}
    assert seen == {kernel for kernel, _, _ in _heuristics._TABLE} - elsewhere
    assert len(collected.launches) > 40


def test_while_collecting_ops_choose_as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "unavailable", lambda backend: "not in this test")
    before = {name: choose(name, "auto", "cpu") for name in OPS}
    with collecting(90):
        for name, op in OPS.items():
            assert choose(name, "auto", "cpu") == ("triton" if "triton" in op.cuda else "packed")
    assert {name: choose(name, "auto", "cpu") for name in OPS} == before


def _drop(size: int) -> None:
    dropout(torch.ones(4, size), p=0.5, seed=as_seed(1), stream=STREAM_EMBEDDING)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_what_is_collected_is_compiled_once(cache: Path) -> None:
    with collecting(86) as collected:
        for size in (16, 16, 32, 33):
            _drop(size)
    assert len(collected.launches) == 3  # D is a constant of the kernel
    told: list[Compiled] = []
    first = compile_all(collected, jobs=2, elsewhere=True, done=told.append)
    assert [result for result in first if result.error] == []
    assert not any(r.found for r in first if r.kernel != "host code")
    assert sorted(told) == sorted(first)
    assert len(first) == len(collected.launches) + 1
    cubins = {path: path.stat().st_mtime_ns for path in cache.rglob("*.cubin")}
    assert len(cubins) == len(collected.launches)
    assert all(result.found for result in compile_all(collected, jobs=1, elsewhere=True))
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.cubin")} == cubins


def test_a_kernel_that_does_not_compile_is_told_and_spoils_no_other(cache: Path) -> None:
    with collecting(86) as collected:
        _drop(16)
    (key, launch), = collected.launches.items()
    broken = launch._replace(arguments={**launch.arguments, "BLOCK": 3})
    collected.launches[(*key, "broken")] = broken
    results = compile_all(collected, jobs=2, elsewhere=True)
    errors = [result.error for result in results if result.error]
    assert len(errors) == 1
    assert "power of" in errors[0]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As much of a device as is asked before anything is compiled."""
    monkeypatch.setenv("ADAREC_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(_library._MISSING, "triton", lambda: None)
    card = SimpleNamespace(major=8, minor=6, multi_processor_count=82)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)


def _pretend_to_compile(
    monkeypatch: pytest.MonkeyPatch, errors: dict[str, str] | None = None
) -> list[int]:
    """What would be compiled, in calls of ``compile_all``."""
    calls = []

    def compiled(collected: Collected, *, done: Callable[[Compiled], object], **_: object) -> Any:
        calls.append(len(collected.launches))
        names = [launch.kernel.__name__ for launch in collected.launches.values()]
        results = [Compiled(n, 0.1, (errors or {}).get(n)) for n in ("host code", *names)]
        for result in results:
            done(result)
        return results

    monkeypatch.setattr(_prewarm, "compile_all", compiled)
    return calls


@pytest.mark.usefixtures("cuda")
def test_a_first_training_compiles_its_kernels_and_a_second_finds_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = _pretend_to_compile(monkeypatch)
    told: list[tuple[int, int]] = []
    settings, device = TrainConfig(batch_size=2), torch.device("cuda")
    assert prewarm(CONFIG, settings, device, lambda *step: told.append(step))
    total = calls[0] + 1
    assert told == [(ready, total) for ready in range(total + 1)]
    assert not prewarm(CONFIG, settings, device, lambda *step: told.append(step))
    other = CONFIG.replace(hidden_size=32)
    assert prewarm(other, settings, device, lambda *_: None)
    assert len(calls) == 2
    assert len(told) == total + 1
    assert not prewarm(CONFIG, settings, CPU, lambda *_: None)
    plain = CONFIG.replace(backend="packed")
    assert not prewarm(plain, settings, device, lambda *_: None)


@pytest.mark.usefixtures("cuda")
def test_a_kernel_that_does_not_compile_ends_a_training_before_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = _pretend_to_compile(monkeypatch, {"scan_kernel": "ptxas is broken"})
    for _ in range(2):  # and leaves no word that they are ready
        with pytest.raises(CompilationFailed, match="scan_kernel the first: ptxas is broken"):
            prewarm(CONFIG, TrainConfig(batch_size=2), torch.device("cuda"), lambda *_: None)
    assert len(calls) == 2


def test_reporters_show_compilation(capsys: pytest.CaptureFixture[str]) -> None:
    for reporter in (PlainReporter(), RichReporter(Console(force_terminal=True, width=80))):
        for ready in range(4):
            reporter.compiling(ready, 3)
        out = capsys.readouterr().out
        assert out.count("compiling 3 kernels for this device, once") == 1


def test_results_are_zero_while_collecting() -> None:
    hidden, weight = torch.ones(3, 16, requires_grad=True), torch.ones(5, 16, requires_grad=True)
    with collecting(86):
        loss = linear_cross_entropy(hidden, weight, torch.tensor([1, 2, 0]))
        loss.backward()
    assert torch.isfinite(hidden.grad).all()
