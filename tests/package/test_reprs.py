"""What is printed at a prompt: data, recommenders, runs and results in at most five lines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers_cli import MODEL, TRAIN

import adarec_fast as af
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.training import Run, TrainResult, load_run, train


@pytest.fixture(scope="module")
def data() -> af.InteractionData:
    return af.synthetic(num_users=50, num_items=40)


@pytest.fixture(scope="module")
def trained(
    data: af.InteractionData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainResult, Run]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = train(MODEL, af.TrainConfig.create(**TRAIN), data, folder)
    return result, load_run(folder)


def test_data_can_be_counted_and_looked_into(data: af.InteractionData) -> None:
    assert len(data) == 50
    assert data[3] == data.items.decode(data.sequence(3))
    assert data[-1] == data[49]
    assert data[:2] == [data[0], data[1]]
    assert [len(history) for history in data] == data.lengths.tolist()
    with pytest.raises(IndexError):
        data[50]


def test_everything_prints_itself_in_five_lines(
    data: af.InteractionData, trained: tuple[TrainResult, Run], tmp_path: Path
) -> None:
    result, run = trained
    split = af.Split(data)
    batches = af.TrainingBatches(*split.inputs("train"), batch_size=16, max_length=10, seed=0)
    model = af.ADARec(num_items=40, hidden_size=8, num_layers=1, max_depth=2, backend="packed")
    few = af.load({"ann": ["a", "b", "c"], "bob": ["x" * 500]})
    output = model(torch.tensor([[1, 2]]), return_hierarchy=True)
    shown = {
        repr(data): "InteractionData 'synthetic': 50 users, 40 items, 512 interactions",
        repr(few): "\n  filters dropped 1 users and 1 items",
        repr(split): "Split of 'synthetic', leave-one-out: 50 users, 40 items, ",
        repr(batches): "batches of 16 an epoch, on cpu",
        repr(af.Recommender(run.model)): "Recommender of ADARec: 40 items by their own ids, the",
        repr(af.Recommender(model).recommend([[1, 2]] * 9, 20)): "Ranking: 9 users, 20 items",
        repr(model.loss(next(batches.epoch(0)))): "LossOutput(total ",
        repr(output): "ADARecOutput(user float32 [1, 8], depth int64 [1], hierarchy Hierarchy(lev",
        repr(result): ": finished after 1 epoch, ",
        repr(run): "(best): ADARec, ",
        repr(evaluate(run.model, run.split, intents=False)): "\n  all: HR@20 0.",
    }
    assert "\n  trained for 1 epoch on 'synthetic'" in repr(run)
    for text, part in shown.items():
        assert part in text
        assert len(text.splitlines()) <= 5, text
        assert max(map(len, text.splitlines())) < 200, text


def test_an_empty_data_set_and_a_run_without_a_validation_can_be_printed(
    data: af.InteractionData,
) -> None:
    nobody = data.replace(
        values=data.values[:0], offsets=data.offsets[:1], labels=None,
        users=data.users.take(torch.zeros(0, dtype=torch.int64).numpy()),
    )
    assert repr(nobody) == "InteractionData 'synthetic': 0 users, 40 items, 0 interactions"
    begun = TrainResult(Path("run"), "stopped", 0, 3, None, None, 1.0, [])
    assert repr(begun).endswith("no validation yet")
