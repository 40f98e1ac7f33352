"""Every launch of a training step and of a request, up to the compiler, on a pretended device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

if os.environ.get("ADAREC_FAST_TESTS_PRETEND_CUDA") != "1":
    pytest.skip("test_cuda_host.py runs this", allow_module_level=True)

from pretend_cuda import CudaError, PretendCuda
from pretend_torch import Bound, pretend_cuda

from adarec_fast import ADARec, Recommender, TrainConfig, synthetic
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.training.captured import CapturedStepper, make_stepper
from adarec_fast.training.statistics import EpochStatistics
from bench.triton_examples import fingerprint, variant_name
from bench.triton_table import read

DATA = synthetic(num_users=60, num_items=300, num_themes=3, subthemes_per_theme=2, seed=2)
CUDA = torch.device("cuda")


@contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def _model(**options: Any) -> ADARec:
    given = {"num_items": 300, "max_depth": 4, "max_length": 50, "hidden_size": 64, **options}
    return ADARec(**given).to(CUDA)


def _one_step(model: ADARec, device: PretendCuda, amp: str = "off") -> None:
    """The first step of a captured stepper, which must read nothing on the host."""
    config = TrainConfig(batch_size=16, amp=amp)
    stepper = make_stepper(model.train(), config, CUDA)
    assert type(stepper) is CapturedStepper
    batches = TrainingBatches(
        *Split(DATA).inputs("train"), supervision=model.config.supervision, batch_size=16,
        max_length=50, seed=0, device=CUDA,
    )  # fmt: skip
    batch = next(batches.epoch(0))
    statistics = EpochStatistics(model.config.num_levels, CUDA)
    device.reads.clear()
    device.uploads.clear()
    stepper.step(batch, 1, statistics)
    assert not device.reads
    assert not device.uploads


def _unknown(launches: list[Bound]) -> set[str]:
    """Kernels that are launched in a form which the table of resources does not have."""
    known = {
        row["source"]
        for rows in read().values()
        for name, row in rows.items()
        if name.endswith("sm_86")
    }
    return {variant_name(one) for one in launches if fingerprint(one) not in known}


@pytest.mark.parametrize("supervision", ["prefix", "all"])
@pytest.mark.parametrize("depth", [4, 8])
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("precision", ["half", "tf32", "ieee"])
def test_what_runs_is_in_the_table(
    size: int, depth: int, supervision: str, precision: str
) -> None:
    """A training step and requests; float32 inference, since a request knows no autocast."""
    with _float32_products(precision), pretend_cuda() as device:
        model = _model(hidden_size=size, max_depth=depth, supervision=supervision)
        _one_step(model, device, "bf16" if precision == "half" else "off")
        assert len(device.launches) > 60
        recommender = Recommender(model)
        for histories in ([[1, 2, 3]], [[1, 2, 3]], [[1, 2, 3]], [[5], [6, 7], list(range(1, 60))]):
            recommender.recommend(histories, k=10)
        recommender.recommend([[1, 2]], k=100, exclude=[[7]])
    assert not _unknown(device.launches)


VARIANTS: list[dict[str, Any]] = [
    {"depth_gradient": "full", "coarse_expert": "transformer", "residual": True},
    {"depth": "fixed"}, {"diffusion": False}, {"moe": False}, {"router": "level"},
    {"lambda_cont": 0.0}, {"num_layers": 0}, {"dropout": 0.0, "attention_dropout": 0.0},
    {"fused_trajectory": True}, {"hidden_size": 50}, {"hidden_size": 256}, {"num_heads": 1},
]  # fmt: skip


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("supervision", ["prefix", "all"])
def test_every_variant_can_be_launched(supervision: str, options: dict[str, Any]) -> None:
    with pretend_cuda(architecture=90) as device:
        model = _model(supervision=supervision, **options)
        _one_step(model, device)
        recommender = Recommender(model)
        for users in (1, 1, 1, 2, 5):
            recommender.recommend([[1, 2, 3 + n] for n in range(users)], k=10)
        model.recommend([[1, 2], [3]], k=7)


def test_a_launch_is_looked_at() -> None:
    from adarec_fast.ops import level_pool

    with pretend_cuda():
        x, offsets = torch.zeros(2, 5, 16, device=CUDA), torch.tensor([0, 2, 5])
        with pytest.raises(CudaError, match="offsets_ptr is on the CPU"):
            level_pool(x, offsets, None, max_length=5)
        with pytest.raises(CudaError, match="the grid"):
            level_pool(
                torch.zeros(70_000, 1, 16, device=CUDA), torch.tensor([0, 1], device=CUDA), None,
                max_length=5,
            )
