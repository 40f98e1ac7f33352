"""A run that an earlier version saved in the middle of its second epoch, in ``saved_run/``.

It was made before models had a name in their ``config.json`` and before the package had its rooms;
``expected.json`` is what that version said of it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from adarec_fast import Recommender
from adarec_fast.training import load_run, train
from adarec_fast.training.metrics_log import flatten
from adarec_fast.training.run_folder import read_config

SAVED = Path(__file__).parent / "saved_run"
EXPECTED: dict[str, Any] = json.loads((SAVED / "expected.json").read_text(encoding="utf-8"))
TIMES = ("seconds", "valid_seconds", "examples_per_second")


def known(values: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Without MAP, which that version did not tell."""
    return {n: value for n, value in values.items() if "MAP@" not in n or n in expected}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A copy: a resumed run is written to."""
    return Path(shutil.copytree(SAVED, tmp_path / "run"))


def test_loads_and_ranks_as_it_did(saved: Path) -> None:
    run = load_run(saved)
    ranking = Recommender(run.model).recommend([[3, 5, 9], [1]], k=5)
    assert ranking.items.tolist() == EXPECTED["items"]
    assert ranking.depth.tolist() == EXPECTED["depth"]
    for row, expected in zip(ranking.scores.tolist(), EXPECTED["scores"], strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


def test_evaluates_as_it_did(saved: Path) -> None:
    from adarec_fast.ranking.evaluation import evaluate

    run = load_run(saved)
    result = evaluate(run.model, run.split, "test")
    assert result.ranks.tolist() == EXPECTED["ranks"]
    assert known(result.overall, EXPECTED["test"]) == pytest.approx(EXPECTED["test"])
    assert result.depth_share == pytest.approx(EXPECTED["depth_share"])
    assert result.gate == pytest.approx(EXPECTED["gate"], abs=1e-5)
    assert result.nmi == pytest.approx(EXPECTED["nmi"])


def test_resumes_to_the_end_that_it_would_have_had(saved: Path) -> None:
    model_config, train_config, _ = read_config(saved)
    data = load_run(saved).data
    result = train(model_config, train_config, data, saved, resume=True)
    assert result.status == "finished"
    for line, expected in zip(result.history, EXPECTED["resumed"], strict=True):
        untimed = {name: value for name, value in line.items() if name not in TIMES}
        told = known(flatten(untimed), flatten(expected))
        assert told == pytest.approx(flatten(expected), rel=1e-3, abs=1e-6)
