"""The learning rate's schedule: its values, where they reach, and what resuming makes of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from helpers_training import DATA, MODEL, config, outcome

from adarec_fast import ConfigError, TrainConfig
from adarec_fast.models.pretrained import CheckpointError
from adarec_fast.training import train
from adarec_fast.training.optimization import Stepper
from adarec_fast.training.schedule import LearningRate

SCHEDULE: dict[str, Any] = {
    "learning_rate": 0.01, "learning_rate_schedule": "cosine", "warmup_steps": 5,
}  # fmt: skip


def _rates(total: int | None, steps: int, **options: Any) -> list[float]:
    rate = LearningRate(TrainConfig.create(learning_rate=0.1, **options), total)
    return [rate.at(step) for step in range(steps)]


def test_the_rates_of_bert4rec() -> None:
    """1e-4, 100 steps of warm-up and 400,000 in all, as its public code has them."""
    config = TrainConfig(
        learning_rate=1e-4, warmup_steps=100, learning_rate_schedule="linear"
    )
    rate = LearningRate(config, 400_000)
    assert rate.at(49) == pytest.approx(5e-5 * (1 - 49 / 400_000))
    assert rate.at(200_000) == pytest.approx(5e-5)
    assert rate.at(400_000) == 0.0


def test_values_by_hand() -> None:
    assert _rates(None, 3) == [0.1, 0.1, 0.1]
    assert _rates(None, 6, warmup_steps=4) == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    cosine = _rates(4, 4, learning_rate_schedule="cosine")
    root = math.sqrt(0.5)
    assert cosine == pytest.approx([0.1, 0.05 * (1 + root), 0.05, 0.05 * (1 - root)])
    both = _rates(4, 4, learning_rate_schedule="cosine", warmup_steps=2)
    assert both == pytest.approx([0.05, *cosine[1:]])
    line = _rates(4, 4, learning_rate_schedule="linear")
    assert line == pytest.approx([0.1, 0.075, 0.05, 0.025])
    for schedule in ("cosine", "linear"):
        with pytest.raises(ValueError, match=f"total_steps=None: .*{schedule}"):
            LearningRate(TrainConfig.create(learning_rate_schedule=schedule))
    with pytest.raises(ConfigError, match="warmup_steps=-1"):
        TrainConfig.create(warmup_steps=-1)
    with pytest.raises(ConfigError, match="learning_rate_schedule='line'"):
        TrainConfig.create(learning_rate_schedule="line")
    linear = _rates(4, 4, learning_rate_schedule="linear", warmup_steps=2)
    assert linear == pytest.approx([0.05, 0.075, 0.05, 0.025])


def test_every_step_has_its_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    update = Stepper.update

    def noted(self: Stepper, *arguments: Any) -> None:
        seen.append(float(self.optimizer.param_groups[0]["lr"]))
        update(self, *arguments)

    monkeypatch.setattr(Stepper, "update", noted)
    result = train(MODEL, config(**SCHEDULE), DATA, tmp_path)
    total = result.steps
    assert seen == [
        0.01 * min(1.0, (step + 1) / 5) * 0.5 * (1 + math.cos(math.pi * step / total))
        for step in range(total)
    ]
    half = total // 2
    logged = [line["learning_rate"] for line in result.history]
    assert logged == [seen[half - 1], seen[total - 1]]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_stopping_anywhere_and_resuming_changes_nothing(schedule: str, tmp_path: Path) -> None:
    chosen = config(**{**SCHEDULE, "learning_rate_schedule": schedule}, batch_size=90)
    whole = train(MODEL, chosen, DATA, tmp_path / "whole")
    for resume in (False, *[True] * (whole.steps - 1)):
        result = train(MODEL, chosen, DATA, tmp_path / "parts", resume=resume, stop_after_steps=1)
    assert result.steps == whole.steps > 4
    train(MODEL, chosen, DATA, tmp_path / "parts", resume=True)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_epochs_are_fixed_where_the_rate_ends_with_them(tmp_path: Path) -> None:
    train(MODEL, config(**SCHEDULE), DATA, tmp_path / "cosine", stop_after_steps=1)
    with pytest.raises(
        CheckpointError,
        match=r"train\.epochs is 2 there and 3 now, and its falling learning rate ends there",
    ):
        train(MODEL, config(epochs=3, **SCHEDULE), DATA, tmp_path / "cosine", resume=True)
    linear = config(**{**SCHEDULE, "learning_rate_schedule": "linear"})
    train(MODEL, linear, DATA, tmp_path / "linear", stop_after_steps=1)
    with pytest.raises(CheckpointError, match="3 now, and its falling learning rate"):
        train(MODEL, linear.replace(epochs=3), DATA, tmp_path / "linear", resume=True)
    # The file alone, which is what the command line reads, cannot be changed either.
    path = tmp_path / "cosine" / "config.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"epochs": 2', '"epochs": 3'), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json: altered"):
        train(MODEL, config(epochs=3, **SCHEDULE), DATA, tmp_path / "cosine", resume=True)
    train(MODEL, config(warmup_steps=3), DATA, tmp_path / "risen", stop_after_steps=1)
    with pytest.raises(CheckpointError, match="warmup_steps is 3 there and 0 now"):
        train(MODEL, config(), DATA, tmp_path / "risen", resume=True)


def test_a_rise_alone_leaves_the_epochs_free(tmp_path: Path) -> None:
    # Over the end of the first epoch.
    options = {"warmup_steps": 6}
    train(MODEL, config(epochs=2, **options), DATA, tmp_path / "whole")
    train(MODEL, config(epochs=1, **options), DATA, tmp_path / "parts")
    train(MODEL, config(epochs=2, **options), DATA, tmp_path / "parts", resume=True)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_early_stopping_is_as_before(tmp_path: Path) -> None:
    chosen = config(**{**SCHEDULE, "learning_rate": 1e-12}, epochs=50, patience=2)
    result = train(MODEL, chosen, DATA, tmp_path)
    assert (result.status, result.epochs) == ("early-stopped", 3)
    assert result.history[-1]["learning_rate"] > 0.98e-12


def test_a_model_of_no_parameter_has_none(tmp_path: Path) -> None:
    result = train({"model": "popularity"}, config(**SCHEDULE), DATA, tmp_path)
    assert "learning_rate" not in result.history[0]
