"""Losses, gradients and weights that explode: training stops, what was good is kept."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import DATA, MODEL, Recorder, config

from adarec_fast import ADARec, LossOutput
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.training import TrainingDiverged, load_run, train
from adarec_fast.training.optimization import Stepper
from adarec_fast.training.statistics import EpochStatistics


def poison(monkeypatch: pytest.MonkeyPatch, step: int, part: str) -> None:
    """Make one part of the loss NaN at one step."""
    original, calls = ADARec.loss, 0

    def loss(self: ADARec, batch: Any) -> LossOutput:
        nonlocal calls
        calls += 1
        output = original(self, batch)
        if calls != step:
            return output
        nan = torch.tensor(math.nan)
        if part == "gradient norm":
            # The square root of 0 has an infinite slope, and 0 times it is NaN.
            zero = (self.item_embedding.weight * 0).sum()
            return output._replace(total=output.total + 0 * zero.sqrt())
        return output._replace(total=output.total + nan, parts={**output.parts, part: nan})

    monkeypatch.setattr(ADARec, "loss", loss)


@pytest.mark.parametrize("part", ["deno", "gradient norm"])
def test_divergence_stops_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    poison(monkeypatch, 6, part)
    recorder = Recorder()
    with pytest.raises(TrainingDiverged, match=r"diverged at step 6 \(epoch 2\)") as caught:
        train(MODEL, config(epochs=9), DATA, tmp_path, reporter=recorder)
    assert part in caught.value.parts
    assert "cont" not in caught.value.parts
    step = recorder.plan.steps_per_epoch  # of the checkpoint that epoch 1 ended with
    assert f"weights of step {step} are kept in {tmp_path / 'last'}" in str(caught.value)
    assert recorder.calls[-1] == "close"
    # The kept checkpoint is good: without the poison, training goes on from it.
    monkeypatch.undo()
    assert train(MODEL, config(epochs=2), DATA, tmp_path, resume=True).status == "finished"


@pytest.mark.parametrize(
    ("rate", "clip", "part"), [(1e30, 5.0, "loss"), (1e39, 5.0, "weights"), (1e30, 0.0, "loss")]
)
def test_an_exploding_run_keeps_what_was_good(
    tmp_path: Path, rate: float, clip: float, part: str
) -> None:
    """Nothing is injected: steps far too large. A checkpoint after every one of them."""
    chosen = config(learning_rate=rate, gradient_clip=clip, checkpoint_every=1, log_every=50)
    messages, kept = [], []
    for resume in (False, True, True):
        with pytest.raises(TrainingDiverged, match=rf"at step \d+ .*{part}.* not finite") as caught:
            train(MODEL, chosen, DATA, tmp_path, resume=resume)
        messages.append(str(caught.value))
        run = load_run(tmp_path, which="last")  # it is whole and finite
        assert "another run, with a lower learning_rate" in messages[-1]
        kept.append((tmp_path / "last" / "model.safetensors").read_bytes())
        assert all(torch.isfinite(tensor).all() for tensor in run.model.state_dict().values())
    # Resuming goes on from the step before, and says the same.
    assert messages[1] == messages[2]
    assert kept[0] == kept[1] == kept[2]
    state = json.loads((tmp_path / "last" / "training_state.json").read_text(encoding="utf-8"))
    assert f"weights of step {state['step']} are kept" in messages[0]


def test_weights_that_overflow_at_the_end_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every loss of the epoch was finite: the update of its last step was not."""
    original = Stepper.step

    def step(self: Stepper, batch: Any, number: int, statistics: EpochStatistics) -> None:
        original(self, batch, number, statistics)
        if number == 4:  # the last one of the first epoch
            with torch.no_grad():
                self.model.item_embedding.weight[3, 1] = math.inf

    monkeypatch.setattr(Stepper, "step", step)
    with pytest.raises(TrainingDiverged, match=r"at step 4 \(epoch 1\): the weights not finite"):
        train(MODEL, config(), DATA, tmp_path)
    assert load_run(tmp_path, which="last").history == []
    assert not (tmp_path / "best").exists()


def test_a_bad_step_freezes_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to read the losses for it: the optimizer skips that step and all that follow."""
    poison(monkeypatch, 3, "cont")
    model = ADARec(num_items=DATA.num_items, **MODEL).train()
    stepper = Stepper(model, config(), torch.device("cpu"))
    statistics = EpochStatistics(model.diagnostics(), torch.device("cpu"))
    split = Split(DATA)
    batches = TrainingBatches(*split.inputs("train"), batch_size=32, max_length=10, seed=0)
    weights = []
    for number, batch in zip(range(1, 6), batches.epoch(0), strict=False):
        stepper.step(batch, number, statistics)
        weights.append(model.item_embedding.weight.detach().clone())
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])
    assert torch.equal(weights[1], weights[4])
    assert statistics.diverged() == (3, ["cont", "total"])
