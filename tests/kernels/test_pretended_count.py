"""How many kernels one captured training step starts, on a pretended device."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import pytest
import torch

if os.environ.get("ADAREC_FAST_TESTS_PRETEND_CUDA") != "1":
    pytest.skip("test_cuda_host.py runs this", allow_module_level=True)

from pretend_torch import pretend_cuda

from adarec_fast import TrainConfig
from adarec_fast.training.captured import CapturedStepper
from adarec_fast.training.statistics import EpochStatistics
from bench.gpu.work import model
from bench.workloads import histories

MOST = 120
ROOT = Path(__file__).parents[2]
TOLD = re.compile(r"(?:step is|graph of) (\d+) kernels(?: \((\d+) with)?")
PAGES = ("README.md", "adarec_fast/docs/gpu.md", "adarec_fast/docs/performance.md",
         "bench/README.md")  # fmt: skip
CUDA = torch.device("cuda")


# Of torch's ops on CUDA those that add with atomics, in another order each time
# (`torch.use_deterministic_algorithms` lists them), and what scans in an order of its own.
ATOMIC = re.compile(
    r"index_add|scatter_add|scatter_reduce|index_put|put_|embedding.*backward|bincount|histc|cumsum"
)


@functools.cache
def launches(supervision: str) -> dict[str, int]:
    """By name, of the step that ``bench`` times: D = 64, T = 8, two layers, dropout."""
    with pretend_cuda(architecture=90) as device:
        made = model(64, supervision, "tf32", "cuda").train()
        stepper = CapturedStepper(made, TrainConfig(), CUDA)
        statistics = EpochStatistics(stepper.model.diagnostics(), CUDA)
        batch = histories("train", every_position=supervision == "all")[0].to("cuda").as_batch()
        for number in (1, 2):
            stepper.step(batch, number, statistics)
        (graph,) = device.graphs
        return graph.launches


@pytest.mark.parametrize("supervision", ["prefix", "all"])
def test_a_captured_step_is_few_launches(supervision: str) -> None:
    found = launches(supervision)
    table = "\n".join(f"{n:4d} {name}" for name, n in sorted(found.items(), key=lambda x: -x[1]))
    print(f"{sum(found.values())} launches of a step, {supervision}:\n{table}")
    assert sum(found.values()) <= MOST, table
    place = ["prefix", "all"].index(supervision)
    for name in PAGES[place:]:  # the first tells only of one
        told = TOLD.search((ROOT / name).read_text(encoding="utf-8"))
        assert told is not None, name
        assert told[1 + place] == str(sum(found.values())), name


@pytest.mark.parametrize("supervision", ["prefix", "all"])
def test_a_step_adds_in_one_order(supervision: str) -> None:
    """So that it has the same bits again: torch's kernels and ours sum nothing by atomics."""
    assert not [name for name in launches(supervision) if ATOMIC.search(name)]
    for path in (ROOT / "kernels").glob("*.py"):
        used = re.findall(r"tl\.atomic_\w+\(.*", path.read_text(encoding="utf-8"))
        # A count of programs that are done.
        assert [use for use in used if not use.startswith("tl.atomic_add(done_ptr, 1,")] == []


def test_the_count_knows_lists_and_memory() -> None:
    with pretend_cuda() as device:
        x = [torch.ones(3, device="cuda") for _ in range(111)]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            torch.empty_like(x[0])
            torch._foreach_mul_(x, 2.0)
            x[0].view(3, 1) + 1
        assert graph.launches == {"_foreach_mul_": 2, "add": 1}
        assert device.graphs == [graph]
