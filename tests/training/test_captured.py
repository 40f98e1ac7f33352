"""Steps at bucketed shapes: the same steps, with and without a CUDA graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adarec_fast import ADARec, TrainConfig, synthetic
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.ops import _library
from adarec_fast.ops._library import collecting
from adarec_fast.training.captured import (
    CapturedStepper,
    capacity,
    in_bucket,
    make_stepper,
    why_not,
)
from adarec_fast.training.optimization import Stepper
from adarec_fast.training.statistics import EpochStatistics

DATA = synthetic(num_users=60, num_items=60, num_themes=3, subthemes_per_theme=2, seed=2)
MODEL: dict[str, Any] = {
    "num_items": 60, "hidden_size": 16, "num_layers": 1, "max_depth": 2, "max_length": 10,
}  # fmt: skip


def _batches(supervision: str, device: str) -> TrainingBatches:
    return TrainingBatches(
        *Split(DATA).inputs("train"), supervision=supervision, batch_size=20, max_length=10,
        seed=0, device=device,
    )  # fmt: skip


def _train(
    kind: type[Stepper], device: str, epochs: int = 1, *, padded: bool, supervision: str = "prefix",
    **options: Any,
) -> tuple[Stepper, EpochStatistics, dict[str, Tensor]]:
    model = ADARec(**MODEL, supervision=supervision, **options).to(device).train()
    stepper = kind(model, TrainConfig(batch_size=20), torch.device(device))
    statistics, number = EpochStatistics(model.diagnostics(), torch.device(device)), 0
    for epoch in range(epochs):
        for batch in _batches(supervision, device).epoch(epoch):
            number += 1
            if padded:
                batch = in_bucket(batch, capacity(batch.item_ids.shape[0]), supervision)
            stepper.step(batch, number, statistics)
    assert statistics.diverged() is None
    return stepper, statistics, {name: p.detach() for name, p in model.named_parameters()}


def test_capacities() -> None:
    buckets = [capacity(tokens) for tokens in range(1, 5000)]
    assert all(tokens <= bucket for tokens, bucket in enumerate(buckets, start=1))
    assert buckets == sorted(buckets)
    assert all(capacity(bucket) == bucket for bucket in buckets)
    waste = [bucket / tokens for tokens, bucket in enumerate(buckets, start=1) if tokens > 256]
    assert max(waste) < 1.25
    # A batch's number of tokens scatters by a few per cent: that is two shapes, or three.
    assert len({capacity(tokens) for tokens in range(1450, 1650)}) <= 2
    assert len(set(buckets)) < 32


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("supervision", "backend"), [("prefix", "auto"), ("prefix", "reference"), ("all", "reference")]
)
def test_an_epoch_in_buckets_is_the_same_epoch(supervision: str, backend: str) -> None:
    options = {"supervision": supervision, "backend": backend, "label_smoothing": 0.1}
    _, plain_sums, plain = _train(Stepper, "cpu", padded=False, **options)
    _, sums, found = _train(Stepper, "cpu", padded=True, **options)
    assert sums.examples == plain_sums.examples
    torch.testing.assert_close(sums.sums, plain_sums.sums, rtol=1e-4, atol=1e-4)
    for name, weight in found.items():
        torch.testing.assert_close(weight, plain[name], rtol=1e-3, atol=1e-4, msg=name)


def test_why_a_step_is_not_captured() -> None:
    model = ADARec(**MODEL)
    assert why_not(model, torch.device("cpu")) == "cpu has no CUDA graphs"
    packed = ADARec(**MODEL, backend="packed")
    assert "plain PyTorch waits" in str(why_not(packed, torch.device("cuda")))
    foreign = ADARec(**MODEL, backbone=torch.nn.GRU(16, 16, batch_first=True))
    assert "backbone" in str(why_not(foreign, torch.device("cuda")))
    assert type(make_stepper(model, TrainConfig(), torch.device("cpu"))) is Stepper


def test_where_triton_runs_steps_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_library._MISSING, "triton", lambda: None)
    for options in ({}, {"supervision": "all"}, {"fused_trajectory": True}):
        assert why_not(ADARec(**MODEL, **options), torch.device("cuda")) is None


@pytest.mark.gpu
@pytest.mark.parametrize("supervision", ["prefix", "all"])
@pytest.mark.parametrize("options", [{}, {"depth_gradient": "full"}, {"depth": "fixed"}], ids=str)
def test_captured_steps_equal_plain_ones(supervision: str, options: dict[str, Any]) -> None:
    reason = why_not(ADARec(**MODEL, supervision=supervision, **options), torch.device("cuda"))
    if reason is not None:
        pytest.skip(reason)
    given = {"epochs": 3, "supervision": supervision, **options}
    if collecting():
        _train(Stepper, "cpu", padded=True, **given)
        return
    _, plain_sums, plain = _train(Stepper, "cuda", padded=True, **given)
    stepper, sums, found = _train(CapturedStepper, "cuda", padded=False, **given)
    assert isinstance(stepper, CapturedStepper)
    assert sum(graph is not None for graph in stepper._graphs.values()) >= 1
    assert sums.examples == plain_sums.examples
    torch.testing.assert_close(sums.sums, plain_sums.sums, rtol=1e-4, atol=1e-4)
    for name, weight in found.items():
        torch.testing.assert_close(weight, plain[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.gpu
def test_a_captured_bad_step_freezes_the_weights() -> None:
    reason = why_not(ADARec(**MODEL), torch.device("cuda"))
    if reason is not None:
        pytest.skip(reason)
    if collecting():
        return  # the kernels of the test before
    stepper, statistics, weights = _train(CapturedStepper, "cuda", epochs=2, padded=False)
    with torch.no_grad():
        stepper.model.level_embedding.weight[0].fill_(float("nan"))
    before = weights["item_embedding.weight"].clone()
    for number, batch in enumerate(_batches("prefix", "cuda").epoch(2), start=100):
        stepper.step(batch, number, statistics)
    diverged = statistics.diverged()
    assert diverged is not None
    assert diverged[0] == 100
    assert torch.equal(stepper.model.item_embedding.weight, before)


@pytest.mark.parametrize(
    "switch", [{"denoiser": "bounded"}, {"start": "backbone"}], ids=lambda one: next(iter(one))
)
def test_switches_without_kernels_are_not_captured(switch: dict[str, str]) -> None:
    """On CUDA packed PyTorch runs them, which waits for the device."""
    name, value = next(iter(switch.items()))
    why = ADARec(num_items=9, hidden_size=8, **switch).why_not_captured()
    assert why is not None
    assert f"{name}={value!r}" in why
    assert ADARec(num_items=9, hidden_size=8).why_not_captured() is None
