"""What `bench.gpu --prepare` compiles is all that the run asks for, on a pretended device.

The list of kernels is made on CPU tensors (``bench.gpu.kernels``); here what the phases run does so
on a device, with captured steps and requests, and every launch must be in the list.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import pytest
import torch

if os.environ.get("ADAREC_FAST_TESTS_PRETEND_CUDA") != "1":
    pytest.skip("test_cuda_host.py runs this", allow_module_level=True)

from pretend_cuda import PretendCuda
from pretend_torch import pretend_cuda

from adarec_fast import Recommender, TrainConfig
from adarec_fast.kernels._prewarm import compiled_as
from adarec_fast.training.captured import CapturedStepper
from adarec_fast.training.statistics import EpochStatistics
from bench.gpu.kernels import collect
from bench.gpu.phases import accuracy
from bench.gpu.plan import chosen
from bench.gpu.work import PRECISIONS, computing, model
from bench.workloads import histories

CUDA = torch.device("cuda")


@functools.cache
def _prepared(phase: str, architecture: int) -> frozenset[Any]:
    return frozenset(collect(chosen(phase), architecture, lambda _: None).launches)


def _missing(device: PretendCuda, phase: str) -> list[str]:
    """Asked for and not prepared; to be called when the device is left."""
    prepared = _prepared(phase, device.architecture)
    return sorted({
        f"{bound.kernel.__name__} {bound.arguments} {bound.options}"
        for bound in device.launches if compiled_as(bound) not in prepared
    })  # fmt: skip


@pytest.mark.parametrize(
    ("supervision", "precision"),
    [*(("prefix", precision) for precision in PRECISIONS), ("all", "tf32"),
     *(pytest.param("all", p, marks=pytest.mark.slow) for p in PRECISIONS if p != "tf32")],
)
def test_captured_steps(supervision: str, precision: str) -> None:
    with pretend_cuda(architecture=90) as device:
        stepper = CapturedStepper(
            model(64, supervision, precision, "cuda").train(), TrainConfig(), CUDA
        )
        statistics = EpochStatistics(stepper.model.diagnostics(), CUDA)
        for number in (1, 2, 3):
            for whole in histories("train", 2, every_position=supervision == "all"):
                stepper.step(whole.to("cuda").as_batch(), number, statistics)
    assert len(device.launches) > 60
    assert _missing(device, "flows") == []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_requests(precision: str) -> None:
    with pretend_cuda(architecture=90) as device:
        recommender = Recommender(model(64, "prefix", precision, "cuda").eval())
        batch = histories("serve-1024")[0]
        for users in (1, 3, 300):
            asked = batch.part(0, users)
            for _ in range(3):
                recommender.recommend((asked.item_ids, asked.offsets), 20)
    assert len(device.launches) > 20
    assert _missing(device, "flows") == []


def test_ops() -> None:
    with pretend_cuda(architecture=90) as device:
        for case in accuracy._cases(64, "cuda"):
            for precision in ("ieee", "bf16"):
                for drawn in dict.fromkeys((False, case.stochastic and case.training)):
                    with computing(precision, "cuda"):
                        case.run("triton", torch.float32, drawn)
    assert _missing(device, "accuracy") == []
