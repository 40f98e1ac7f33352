"""What the program has set in torch for all changes nothing: default dtype and device, gradients
off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import DATA, config, outcome
from torch import nn

from adarec_fast import ADARec, Recommender, Split, load
from adarec_fast.models.pretrained import CheckpointError
from adarec_fast.models.registry import build, config_type
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.ranking.frames import recommendation_frame
from adarec_fast.training import load_run, train

TINY: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "max_length": 10}
MODELS: dict[str, dict[str, Any]] = {
    "ours": {**TINY, "max_depth": 2, "memory": "transitions", "local_path": 2},
    "reference": {
        **TINY, "max_depth": 2, "backend": "reference", "supervision": "all",
        "coarse_expert": "transformer", "transition_smoothing": 0.1,
    },
    "sasrec": {**TINY, "model": "sasrec"},
    "counting": {"model": "counting"},
}  # fmt: skip


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=str)
def default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    yield request.param
    torch.set_default_dtype(torch.float32)


def results(folder: Path, fields: dict[str, Any]) -> list[Any]:
    train(fields, config(epochs=1), DATA, folder)
    run = load_run(folder)
    ranking = Recommender(run.model).recommend([[1, 2, 3], [4] * 20], 5)
    metrics = evaluate(run.model, run.split, "test").overall
    scores = ranking.scores.dtype, ranking.scores.tolist()
    return [outcome(folder), ranking.items.tolist(), scores, metrics]


@pytest.mark.parametrize("name", MODELS)
def test_training_and_ranking_are_the_same(
    name: str, default: torch.dtype, tmp_path: Path
) -> None:
    expected = results(tmp_path / "plain", MODELS[name])
    torch.set_default_dtype(default)
    assert results(tmp_path / "other", MODELS[name]) == expected


def test_the_default_device_changes_nothing(tmp_path: Path) -> None:
    expected = results(tmp_path / "plain", MODELS["ours"])
    frame = recommendation_frame(load_run(tmp_path / "plain").model, DATA, k=2)
    torch.set_default_device("meta")
    try:
        assert results(tmp_path / "other", MODELS["ours"]) == expected
        assert recommendation_frame(load_run(tmp_path / "other").model, DATA, k=2).equals(frame)
        data = load([[1, 2, 3, 4], [2, 3, 1]])
        assert data.values.tolist() == [1, 2, 3, 4, 2, 3, 1]
        # A model is made where the program wants it, and there it says what it cannot do.
        model = ADARec(num_items=30, max_depth=2, **TINY)
        assert model.device.type == "meta"
        with pytest.raises(ValueError, match=r"on the meta device, where tensors hold no values"):
            model.recommend([[1, 2]], k=2)
    finally:
        torch.set_default_device(None)


def test_models_of_other_packages_are_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(build(config_type("popularity").create(num_items=3)).__class__):  # type: ignore[misc]
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.layer = nn.Linear(2, 2)

    monkeypatch.setattr("adarec_fast.models.registry.model_type", lambda _: Other)
    torch.set_default_dtype(torch.float64)
    try:
        model = build(config_type("popularity").create(num_items=DATA.num_items))
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.prepare(Split(DATA))


def test_what_could_not_be_read_back_is_not_saved(tmp_path: Path) -> None:
    model = ADARec(num_items=30, max_depth=2, **TINY)
    for other in (model.double(), model.bfloat16()):
        with pytest.raises(CheckpointError, match=r"is torch\.\w+, and a saved model is float32; "):
            other.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    model.float().save_pretrained(tmp_path / "model")


@pytest.mark.parametrize("switched", [torch.no_grad, torch.inference_mode])
def test_gradients_that_are_switched_off(switched: Any, tmp_path: Path) -> None:
    train(MODELS["sasrec"], config(epochs=1), DATA, tmp_path / "plain")
    with switched():
        train(MODELS["sasrec"], config(epochs=1), DATA, tmp_path / "other")
    assert outcome(tmp_path / "other") == outcome(tmp_path / "plain")
