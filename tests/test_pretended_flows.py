"""Captured steps and requests with their values, on a pretended device."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

if os.environ.get("ADAREC_FAST_TESTS_PRETEND_CUDA") != "1":
    pytest.skip("test_cuda_host.py runs this", allow_module_level=True)

from pretend_cuda import CudaError, OnCuda
from pretend_torch import pretend_cuda

from adarec_fast import ADARec, Recommender, TrainConfig, synthetic
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.training.captured import CapturedStepper, capacity, in_bucket
from adarec_fast.training.optimization import Stepper
from adarec_fast.training.statistics import EpochStatistics

DATA = synthetic(num_users=60, num_items=60, num_themes=3, subthemes_per_theme=2, seed=2)
MODEL: dict[str, Any] = {
    "num_items": 60, "hidden_size": 16, "num_layers": 1, "max_depth": 2, "max_length": 10,
}  # fmt: skip


def _values(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: t.inner.clone() for k, t in tensors.items() if isinstance(t, OnCuda)}


def _train(kind: type[Stepper], supervision: str, options: dict[str, Any]) -> dict[str, Tensor]:
    """Weights, Adam's state and statistics after some steps, the last perhaps of a new shape."""
    with pretend_cuda(values=True) as device:
        place = torch.device("cuda")
        model = ADARec(**{**MODEL, **options}, supervision=supervision).to(place).train()
        stepper = kind(model, TrainConfig(batch_size=8, gradient_clip=1.0), place)
        batches = TrainingBatches(
            *Split(DATA).inputs("train"), supervision=supervision, batch_size=8, max_length=10,
            seed=0, device=place,
        )  # fmt: skip
        statistics = EpochStatistics(model.config.num_levels, place)
        chosen = [*batches.epoch(0)][:4] + [*batches.epoch(0)][-1:]
        device.reads.clear()
        for number, batch in enumerate(chosen, start=1):
            if kind is Stepper:
                batch = in_bucket(batch, capacity(batch.item_ids.shape[0]), supervision)
            stepper.step(batch, number, statistics)
        assert not device.reads
        shapes = {(b.offsets.shape[0], capacity(b.item_ids.shape[0])) for b in chosen}
        replayed = len(chosen) - len(shapes) if kind is CapturedStepper else 0
        assert sum(graph.replays for graph in device.graphs) == replayed
        assert statistics.diverged() is None
        assert statistics.examples == sum(batch.offsets.shape[0] - 1 for batch in chosen)
        state = {**model.state_dict(), **stepper.state_tensors(), "sums": statistics.sums}
        return _values(state)


@pytest.mark.parametrize("supervision", ["prefix", "all"])
@pytest.mark.parametrize(
    "options", [{}, {"depth_gradient": "full"}, {"depth": "fixed"}, {"moe": False}], ids=str
)
def test_captured_steps_are_the_plain_ones(supervision: str, options: dict[str, Any]) -> None:
    plain = _train(Stepper, supervision, options)
    captured = _train(CapturedStepper, supervision, options)
    assert plain.keys() == captured.keys()
    assert not [name for name, value in plain.items() if not torch.equal(value, captured[name])]


@pytest.mark.parametrize("index", [0, 1])
def test_replayed_requests_are_the_models(index: int) -> None:
    """Also where the model is on another device than the current one."""
    with pretend_cuda(values=True, index=index) as device:
        model = ADARec(**MODEL).to(f"cuda:{index}")
        recommender = Recommender(model)
        for repetition in range(4):
            for users in (1, 3):
                histories = [[1 + n, 2 + repetition, 3] for n in range(users)]
                found = recommender.recommend(histories, k=9)
                items, scores = model.recommend(histories, k=9)
                assert found.items.tolist() == items.tolist()
                torch.testing.assert_close(found.scores.cpu(), scores.cpu())
        assert [graph.replays for graph in device.graphs] == [3, 3]


def test_the_device_refuses_what_cuda_does() -> None:
    with pretend_cuda(values=True):
        x = torch.ones(3, device="cuda")
        with pytest.raises(CudaError, match="mixes cuda with tensors on the CPU"):
            x + torch.ones(3)
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(CudaError, match="waits for the device"), torch.cuda.graph(graph):
            float(x.sum())
        late = torch.ones(3, device="cuda")
        with torch.cuda.stream(torch.cuda.Stream()), pytest.raises(CudaError, match="two streams"):
            late.add_(1)
