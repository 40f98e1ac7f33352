"""Captured steps and requests with their values, on a pretended device."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

if os.environ.get("ADAREC_FAST_TESTS_PRETEND_CUDA") != "1":
    pytest.skip("test_cuda_host.py runs this", allow_module_level=True)

from pretend_memory import CudaError, OnCuda
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
        # A rate that is another in every step, of which a replay must know.
        config = TrainConfig(
            batch_size=8, gradient_clip=1.0, learning_rate_schedule="cosine", warmup_steps=2
        )
        stepper = kind(model, config, place, total_steps=5)
        batches = TrainingBatches(
            *Split(DATA).inputs("train"), supervision=supervision, batch_size=8, max_length=10,
            seed=0, device=place,
        )  # fmt: skip
        assert not stepper.optimizer.state_dict()["state"]
        stepper.load_state_tensors({}, "nowhere")  # which gives the optimizer copies
        statistics = EpochStatistics(model.diagnostics(), place)
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
        rate = stepper.optimizer.param_groups[0]["lr"]
        assert float(rate.inner) == pytest.approx(stepper.learning_rate.at(4))
        state = {**model.state_dict(), **stepper.state_tensors(), "sums": statistics.sums}
        return _values(state)


@pytest.mark.parametrize("supervision", ["prefix", "all"])
@pytest.mark.parametrize(
    "options",
    [{}, {"depth_gradient": "full"}, {"depth": "fixed"}, {"moe": False, "label_smoothing": 0.1}],
    ids=str,
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


def test_a_replayed_request_is_one_upload_that_nobody_waits_for() -> None:
    with pretend_cuda(values=True) as device:
        recommender = Recommender(ADARec(**MODEL).to("cuda"))
        kept = []
        for repetition in range(6):
            device.reads.clear()
            device.uploads.clear()
            before = len(device.graphs[0].notes) if device.graphs else 0
            histories = [[1 + repetition, 2, 3], [5] * 12]  # the second is longer than 10 items
            found = recommender.recommend(histories, k=9, exclude=[[7], []])
            assert not device.reads
            assert not device.uploads
            assert not before or len(device.graphs[0].notes) == before
            kept.append((histories, found))
        assert device.graphs[0].replays == 5
        # Later requests leave results alone.
        for histories, found in kept:
            again = recommender.recommend(histories, k=9, exclude=[[7], []])
            assert found.items.tolist() == again.items.tolist()
            assert 7 not in found.items[0].tolist()


def test_histories_on_the_device_are_taken() -> None:
    with pretend_cuda(values=True):
        recommender = Recommender(ADARec(**MODEL).to("cuda"))
        values, offsets = torch.tensor([3, 1, 4, 1, 5, 9]), torch.tensor([0, 2, 3, 6])
        for _ in range(3):
            found = recommender.recommend((values.to("cuda"), offsets.to("cuda")), k=9)
            listed = recommender.recommend([[3, 1], [4], [1, 5, 9]], k=9)
            assert found.items.tolist() == listed.items.tolist()


def test_pinned_memory_is_not_written_under_a_copy() -> None:
    with pretend_cuda(values=True) as device:
        pinned = torch.empty(4, dtype=torch.int64, pin_memory=True)
        target = torch.zeros(4, dtype=torch.int64, device="cuda")
        target.copy_(pinned.fill_(3), non_blocking=True)
        with pytest.raises(CudaError, match="pinned memory is written before it was read"):
            pinned[1:].fill_(4)
        event = torch.cuda.Event()
        event.record()
        with pytest.raises(CudaError, match="pinned memory"):
            pinned.add_(1)
        event.synchronize()
        pinned.add_(1)
        assert not device.uploads
        target.copy_(pinned)  # waited for, as one from any memory
        assert len(device.uploads) == 1


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
