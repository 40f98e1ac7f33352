"""Every launch of a training step and of a request, up to the compiler, on a pretended device."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

if os.environ.get("ADAREC_FAST_TESTS_PRETEND_CUDA") != "1":
    pytest.skip("test_cuda_host.py runs this", allow_module_level=True)

from pretend_cuda import PretendCuda
from pretend_launches import check_launch
from pretend_memory import CudaError
from pretend_torch import Bound, pretend_cuda

from adarec_fast import ADARec, Recommender, TrainConfig, synthetic
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.training.captured import CapturedStepper, make_stepper
from adarec_fast.training.statistics import EpochStatistics
from bench.triton_examples import fingerprint, variant_name
from bench.triton_table import read

DATA = synthetic(num_users=60, num_items=300, num_themes=3, subthemes_per_theme=2, seed=2)
CUDA = torch.device("cuda")


def _model(**options: Any) -> ADARec:
    given = {"num_items": 300, "max_depth": 4, "max_length": 50, "hidden_size": 64, **options}
    return ADARec(**given).to(CUDA)


def _one_step(model: ADARec, device: PretendCuda) -> None:
    """The first step of a captured stepper, which must read nothing on the host."""
    config = TrainConfig(batch_size=16)
    stepper = make_stepper(model.train(), config, CUDA)
    assert type(stepper) is CapturedStepper
    batches = TrainingBatches(
        *Split(DATA).inputs("train"), supervision=model.config.supervision, batch_size=16,
        max_length=50, seed=0, device=CUDA,
    )  # fmt: skip
    batch = next(batches.epoch(0))
    statistics = EpochStatistics(model.diagnostics(), CUDA)
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


SIZES = [(64, 8, "prefix"), (64, 8, "all"), (64, 4, "all"), (128, 4, "prefix")]
IN_BRIEF = {(0, "bf16"), (0, "tf32"), (0, "ieee"), (1, "tf32"), (2, "bf16"), (3, "ieee")}


@pytest.mark.parametrize(
    ("size", "depth", "supervision", "precision"),
    [
        pytest.param(
            *given, precision, marks=[] if (number, precision) in IN_BRIEF else [pytest.mark.slow]
        )
        for number, given in enumerate(SIZES)
        for precision in ("bf16", "tf32", "ieee")
    ],
)
def test_what_runs_is_in_the_table(
    size: int, depth: int, supervision: str, precision: str
) -> None:
    """A training step and requests."""
    with pretend_cuda() as device:
        model = _model(
            hidden_size=size, max_depth=depth, supervision=supervision, precision=precision
        )
        _one_step(model, device)
        assert len(device.launches) > 60
        recommender = Recommender(model)
        for histories in ([[1, 2, 3]], [[1, 2, 3]], [[1, 2, 3]], [[5], [6, 7], list(range(1, 60))]):
            recommender.recommend(histories, k=10)
        recommender.recommend([[1, 2]], k=100, exclude=[[7]])
    assert sorted(_unknown(device.launches)) == []


VARIANTS: list[dict[str, Any]] = [
    {"depth_gradient": "full", "coarse_expert": "transformer", "residual": True},
    {"depth": "fixed"}, {"diffusion": False}, {"moe": False}, {"router": "level"},
    {"lambda_cont": 0.0}, {"num_layers": 0}, {"dropout": 0.0, "attention_dropout": 0.0},
    {"fused_trajectory": True}, {"hidden_size": 50}, {"hidden_size": 256}, {"num_heads": 1},
    {"local_path": 3},
]  # fmt: skip


@pytest.mark.parametrize(
    ("supervision", "options"),
    # Every variant in one of the two here, in the other in a long sweep.
    [
        pytest.param(supervision, options, marks=[pytest.mark.slow] * ((number + turn) % 2))
        for number, options in enumerate(VARIANTS)
        for turn, supervision in enumerate(("prefix", "all"))
    ],
    ids=str,
)
def test_every_variant_can_be_launched(supervision: str, options: dict[str, Any]) -> None:
    with pretend_cuda(architecture=90) as device:
        model = _model(supervision=supervision, **options)
        _one_step(model, device)
        recommender = Recommender(model)
        for users in (1, 1, 1, 2, 5):
            recommender.recommend([[1, 2, 3 + n] for n in range(users)], k=10)
        model.recommend([[1, 2], [3]], k=7)


@pytest.mark.parametrize("precision", ["bf16", "tf32", "ieee"])
def test_products_are_those_that_were_chosen(precision: str) -> None:
    """Forward and backward; what compares users and what ranks stays float32."""
    with pretend_cuda(architecture=90) as device:
        model = _model(precision=precision)
        _one_step(model, device)
        Recommender(model).recommend([[1, 2, 3]], k=10)
    said = {"bf16": "ieee", "tf32": "tf32_rn", "ieee": "ieee"}[precision]
    seen: dict[str, set[tuple[str, str]]] = {}
    for one in device.launches:
        if "PRECISION" in one.arguments:
            operand = str(one.arguments.get("OPERAND", "fp32"))
            seen.setdefault(one.kernel.__module__.rpartition(".")[2], set()).add(
                (operand, one.arguments["PRECISION"])
            )
    operand = "bf16" if precision == "bf16" else "fp32"
    for name in ("_mlp", "_sublayers_backward", "_linear_weights", "hda_trajectory"):
        assert seen[name] == {(operand, said)}, name
    for name in ("level_infonce", "score_topk"):
        assert {said for _, said in seen[name]} == {said}, name


def test_a_launch_is_looked_at() -> None:
    from adarec_fast.kernels.level_pool import _forward_kernel
    from adarec_fast.ops import level_pool

    with pretend_cuda():
        x, offsets = torch.zeros(2, 5, 16, device=CUDA), torch.tensor([0, 2, 5])
        with pytest.raises(CudaError, match="offsets_ptr is on the CPU"):
            level_pool(x, offsets, None, max_length=5)
    with pytest.raises(CudaError, match="the grid"):
        check_launch(_forward_kernel, (1, 70_000), {})
