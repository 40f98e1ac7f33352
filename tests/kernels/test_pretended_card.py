"""The page for a card in one's machine (`adarec_fast/docs/gpu.md`), command by command, on a device
that is pretended: what runs is what the page says, on small data and with compilers left out."""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

if os.environ.get("ADAREC_FAST_TESTS_PRETEND_CUDA") != "1":
    pytest.skip("test_cuda_host.py runs this", allow_module_level=True)

from pretend_torch import pretend_cuda
from torch.autograd.profiler_util import FunctionEvent
from typer.testing import CliRunner

from adarec_fast import synthetic
from adarec_fast.cli import app
from adarec_fast.kernels import _prewarm
from adarec_fast.kernels._prewarm import Collected, Compiled
from adarec_fast.ops import extension
from adarec_fast.training import prewarm
from bench import model_case, profile
from bench.gpu import cli as gpu_cli
from bench.workloads import histories

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "adarec_fast" / "docs" / "gpu.md").read_text(encoding="utf-8")
_DEVICE_TYPE = torch.autograd.DeviceType


def commands() -> list[str]:
    """The page's, in order."""
    blocks = re.findall(r"```sh needs=gpu\n(.*?)```", PAGE, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


class Profiler:
    """torch's, on a CPU, with a kernel for each innermost op: what a card's would add."""

    def __init__(self, **_: Any) -> None:
        self._own = _PROFILE(activities=[torch.profiler.ProfilerActivity.CPU])

    def __enter__(self) -> Profiler:
        self._own.__enter__()
        return self

    def __exit__(self, *given: Any) -> None:
        self._own.__exit__(*given)

    def export_chrome_trace(self, path: str) -> None:
        self._own.export_chrome_trace(path)

    def events(self) -> list[Any]:
        found = list(self._own.events())
        kernels = []
        for event in found:
            if not event.cpu_children:
                start, end = event.time_range.start, event.time_range.end
                event.append_kernel("kernel", 0, end - start)
                kernels.append(FunctionEvent(
                    event.id, "kernel", 0, start, end, device_type=_DEVICE_TYPE.CUDA,
                ))  # fmt: skip
        return found + kernels


_PROFILE = torch.profiler.profile


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small data, no compiler, an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADAREC_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "adarec_fast.data.configured.synthetic",
        lambda: synthetic(num_users=40, num_items=60, num_themes=2, subthemes_per_theme=2),
    )
    monkeypatch.setattr(
        model_case, "histories",
        lambda name, count=1, **given: tuple(
            batch.part(0, 6) for batch in histories(name, count, **given)
        ),
    )  # fmt: skip
    monkeypatch.setattr(
        profile, "measure_peaks", lambda _: {"gflops": 3e4, "gflops_tf32": 3e4, "gbps": 800.0}
    )
    monkeypatch.setattr(torch.profiler, "profile", Profiler)
    # As few steps as show what is printed: the device is pretended in Python.
    monkeypatch.setattr(profile, "_BATCHES", {"train": 1})
    monkeypatch.setattr(profile, "_WARM", 1)
    monkeypatch.setattr(profile, "wall", lambda step, *_: (step(), 1e-3)[1])
    parse = profile._arguments

    def one_step(arguments: list[str]) -> Any:
        options = parse(arguments)
        options.steps = 1
        return options

    monkeypatch.setattr(profile, "_arguments", one_step)
    # Two of the commands profile the same steps; what they print of it differs.
    monkeypatch.setattr(profile, "profile", functools.cache(profile.profile))
    monkeypatch.setattr(extension, "build", lambda backend, **_: Path(f"{backend}.so"))

    def compiled(collected: Any, *, done: Callable[[Compiled], object], **_: Any) -> list[Compiled]:
        results = [Compiled("kernel", 0.1) for _ in range(len(collected.launches) + 1)]
        for result in results:
            done(result)
        return results

    monkeypatch.setattr(_prewarm, "compile_all", compiled)
    # Kernels are collected on the CPU's own tensors, which test_prewarm.py does.
    monkeypatch.setattr(prewarm, "collect_run", lambda *_, **__: Collected(86))


def _run(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    program, *arguments = shlex.split(line)
    if program == "pip":
        assert arguments == ["install", "-e", ".[viz]"]  # CI installs that among others
        return ""
    if program == "adarec-fast":
        result = CliRunner().invoke(app, arguments)
        if result.exception is not None and result.exit_code == 1:
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output
    assert (program, arguments[0]) == ("python", "-m"), line
    module, arguments = arguments[1], arguments[2:]
    if module == "bench.profile":
        assert profile.main(arguments) == 0
        return capsys.readouterr().out
    assert module == "bench.gpu", line
    told: dict[str, Any] = {}

    def run(phases: Any, budget: float, *_: Any, **given: Any) -> dict[str, Any]:
        told.update(given, phases=phases, budget=budget)
        return {"phases": {phase.name: {"status": "done"} for phase in phases}}

    monkeypatch.setattr(gpu_cli, "run", run)
    monkeypatch.setattr(gpu_cli, "_no_device", lambda _: None)
    assert gpu_cli.main(arguments) == 0
    assert told["budget"] == 600
    assert told["merge"]
    return ""


@pytest.mark.usefixtures("small")
def test_the_page_from_top_to_bottom(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: dict[str, str] = {}
    with pretend_cuda(values=True):
        for line in commands():
            said[line] = _run(line, monkeypatch, capsys)
    outputs = list(said.values())
    assert len(outputs) == 7
    info, build, train, profiled, nsight = outputs[1:6]
    assert "cuda:0: Pretended, sm_86" in info
    assert "cpp.so" in build
    assert "compiling" in train
    assert "on cuda" in train
    assert "NDCG@20" in train
    assert "the five largest costs" in profiled
    assert "\n5. " in profiled
    written = {path.name for path in Path("runs/profile").iterdir()}
    assert written == {"trace.json", "roofline.png", "profile.json"}
    # The commands that the page shows are those that are printed, but for names and folders.
    shown = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    for tool in ("nsys profile", "ncu"):
        wanted = next(t for t in shown[1].replace("\\\n", " ").splitlines() if t.startswith(tool))
        printed = next(line for line in nsight.splitlines() if line.startswith(tool))
        options = {word for word in shlex.split(wanted) if word.startswith("--")}
        assert options <= set(shlex.split(printed))
