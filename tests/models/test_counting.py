"""Systems that count: by hand, against dense tables, and by the commands of every model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from adarec_fast import Recommender, TrainConfig, synthetic
from adarec_fast.cli import app
from adarec_fast.data import EvaluationBatches, InteractionData, Split, Vocabulary, load
from adarec_fast.models.counting.model import Counting, MarkovChain, Popularity
from adarec_fast.models.pretrained import load as load_model
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.training import load_run, train

BEAUTY = Path(os.environ.get("ADAREC_FAST_DATA", ".")) / "Beauty.txt"


def split_of(histories: list[list[int]], num_items: int) -> Split:
    values = torch.tensor([item for history in histories for item in history])
    offsets = torch.tensor([0] + [len(history) for history in histories]).cumsum(0)
    items = Vocabulary(np.arange(1, num_items + 1), first=1)
    users = Vocabulary(np.arange(len(histories)), first=0)
    return Split(InteractionData.from_flat(values, offsets, items, users, "by hand"))


def fitted(kind: type, split: Split, **options: object) -> Popularity | Counting:
    model = kind(num_items=split.num_items, **options)
    model.prepare(split)
    return model


def scores_of(model: Popularity | Counting, split: Split, part: str = "test") -> torch.Tensor:
    """Without the column of padding."""
    batches = EvaluationBatches(split, part, batch_size=split.num_users, max_length=100)
    return model.scores(next(iter(batches)))[:, 1:]


# Training halves: [1 2 1 2 3], [2 1], [3].
HAND = split_of([[1, 2, 1, 2, 3, 5, 2], [2, 1, 5, 1], [3, 4, 3]], num_items=5)


def test_popularity_counts_training_items_only() -> None:
    assert scores_of(fitted(Popularity, HAND), HAND).tolist() == [[3, 3, 2, 0, 0]] * 3


def test_markov_chain_by_hand() -> None:
    # Validation reads out at the training halves' ends: 3, 1, 3. Transitions: 1→2 twice,
    # 2→1 twice, 2→3 once; none across two users, none from 3. Popularity over 4 is added.
    chain = fitted(MarkovChain, HAND)
    popularity = [3 / 4, 3 / 4, 2 / 4, 0, 0]
    expected = [popularity, [3 / 4, 2 + 3 / 4, 2 / 4, 0, 0], popularity]
    assert scores_of(chain, HAND, "valid").tolist() == expected
    # Test reads out at 5, 5 and 4, that no training history has.
    assert scores_of(chain, HAND, "test").tolist() == [popularity] * 3


HISTORIES = st.lists(
    st.lists(st.integers(1, 6), min_size=3, max_size=9), min_size=1, max_size=8
)


@settings(deadline=None, max_examples=25)
@given(HISTORIES)
def test_markov_chain_agrees_with_a_dense_table(histories: list[list[int]]) -> None:
    split = split_of(histories, num_items=6)
    transitions, popularity = np.zeros((7, 7)), np.zeros(7)
    for history in histories:
        training = history[:-2]
        np.add.at(popularity, training, 1)
        np.add.at(transitions, (training[:-1], training[1:]), 1)
    last = [history[-2] for history in histories]
    expected = transitions[last] + popularity / (popularity.max() + 1)
    found = scores_of(fitted(MarkovChain, split), split)
    np.testing.assert_allclose(found.numpy(), expected[:, 1:], rtol=1e-6)


@settings(deadline=None, max_examples=25)
@given(HISTORIES, st.integers(1, 4), st.sampled_from([0.0, 0.5]), st.sampled_from([0.0, 0.8, 1.0]))
def test_counting_agrees_with_a_dense_table(
    histories: list[list[int]], window: int, backward: float, decay: float
) -> None:
    split = split_of(histories, num_items=6)
    counts, popularity = np.zeros((7, 7)), np.zeros(7)
    for history in histories:
        training = history[:-2]
        np.add.at(popularity, training, 1)
        for place, item in enumerate(training):
            for distance, other in enumerate(training[place + 1 : place + 1 + window], start=1):
                counts[item, other] += 1 / distance + (distance == 1)
                counts[other, item] += backward / distance
    sums = counts.sum(1, keepdims=True)
    scaled = counts / np.where(sums > 0, sums, 1) ** 0.5 / np.maximum(popularity, 1) ** 0.3
    expected = np.stack([
        sum(decay**back * scaled[item] for back, item in enumerate(history[-2::-1]))
        for history in histories
    ])  # fmt: skip
    model = fitted(Counting, split, window=window, backward=backward, decay=decay, prior=0.0)
    np.testing.assert_allclose(
        scores_of(model, split).numpy(), expected[:, 1:], rtol=1e-5, atol=1e-7
    )


def test_of_a_row_the_largest_entries_are_kept() -> None:
    whole, few = fitted(Counting, HAND), fitted(Counting, HAND, neighbours=1)
    assert few.neighbours.shape == (6, 1)
    assert torch.equal(few.neighbours, whole.neighbours[:, :1])
    assert torch.equal(few.weights, whole.weights[:, :1])
    assert (whole.weights[:, :-1] >= whole.weights[:, 1:]).all()


def test_they_are_ranked_like_models() -> None:
    split = split_of([[1, 2, 3, 4, 5], [2, 3, 4, 1, 5], [5, 2, 3, 6, 4]], num_items=6)
    chain = evaluate(fitted(MarkovChain, split), split, "valid", ks=(1,), batch_size=2)
    # After 3: 3→4 in user 1's training half; users 0 and 2 end in 3, and 4 is user 0's target.
    # User 1 ends in 4, which nothing follows: back to popularity, 1 before 5.
    assert chain.name == "MarkovChain"
    assert chain.ranks.tolist() == [1, 1, 3]
    assert evaluate(fitted(Popularity, split), split, "valid").diagnostics == {}


@pytest.mark.parametrize("system", ["counting", "markov", "popularity"])
def test_fitted_recommended_and_resumed(system: str, tmp_path: Path) -> None:
    data = synthetic(num_users=40, num_items=50, num_themes=3, subthemes_per_theme=2, seed=2)
    settings = TrainConfig(device="cpu")
    result = train({"model": system}, settings, data, tmp_path / "run")
    assert (result.status, result.epochs, result.steps) == ("finished", 1, 0)
    run = load_run(tmp_path / "run")
    assert run.model.config.system == system
    direct = load_model(tmp_path / "run" / "best")
    requests = [[1, 2, 3], [7], [5, 6]]
    found = Recommender(run.model).recommend(requests, k=5)
    assert torch.equal(found.items, Recommender(direct).recommend(requests, k=5).items)
    for row, history in zip(found.items.tolist(), requests, strict=True):
        assert not set(row) & set(history)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    again = train({"model": system}, settings, data, tmp_path / "run", resume=True)
    assert again.status == "finished"
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert evaluate(run.model, run.split).overall["NDCG@20"] > 0


def test_from_the_command_line(tmp_path: Path) -> None:
    data, folder = tmp_path / "few.txt", str(tmp_path / "run")
    data.write_text("".join(f"{u} {u} {u % 7 + 1} {u % 5 + 1} {u % 3 + 1}\n" for u in range(1, 31)))

    def invoke(*words: str) -> str:
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, done.output
        return done.stdout

    shown = invoke(
        "train", "--model", "counting", "--data", str(data), "--run-dir", folder, "--window", "3"
    )
    assert "fitted" in shown
    assert "loss" not in shown
    results = json.loads(invoke("evaluate", folder, "--json"))["results"]
    assert [result["name"] for result in results] == ["Counting", "popularity", "markov chain"]
    answer = json.loads(invoke("recommend", folder, "--user", "3", "--k", "4", "--format", "json"))
    assert "depth" not in json.dumps(answer)
    assert load_run(folder).model_config.window == 3
    written = invoke("plot", folder, "--out", str(tmp_path / "pictures"), "--only", "metrics")
    assert "metrics.png" in written
    for words, said in (
        (["export", folder, "--format", "ann"], "an export needs vectors, as adarec, sasrec or"),
        (["plot", folder, "--only", "losses"], "losses: Counting is fitted and has none"),
        (["plot", folder, "--only", "tsne"], "tsne: Counting has no vectors of users"),
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code in (1, 2), done.output
        assert said in " ".join(done.output.split())


@pytest.mark.skipif(not BEAUTY.exists(), reason="ADAREC_FAST_DATA names no folder with Beauty.txt")
def test_on_beauty() -> None:
    split = Split(load(BEAUTY))
    result = evaluate(fitted(Popularity, split), split)
    assert result.overall["HR@20"] == pytest.approx(0.0203, abs=1e-4)
    chain, counting = (evaluate(fitted(kind, split), split) for kind in (MarkovChain, Counting))
    assert chain.overall["HR@20"] == pytest.approx(0.0822, abs=2e-4)
    assert counting.overall["NDCG@20"] == pytest.approx(0.0555, abs=2e-4)
