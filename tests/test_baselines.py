"""Popularity and the first-order Markov chain."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adarec_fast.data import EvaluationBatches, InteractionData, Split, Vocabulary, load
from adarec_fast.models.counting import MarkovChain, Popularity
from adarec_fast.ranking.evaluation import Scorer, evaluate

BEAUTY = Path(os.environ.get("ADAREC_FAST_DATA", ".")) / "Beauty.txt"


def split_of(histories: list[list[int]], num_items: int) -> Split:
    values = torch.tensor([item for history in histories for item in history])
    offsets = torch.tensor([0] + [len(history) for history in histories]).cumsum(0)
    items = Vocabulary(np.arange(1, num_items + 1), first=1)
    users = Vocabulary(np.arange(len(histories)), first=0)
    return Split(InteractionData.from_flat(values, offsets, items, users, "by hand"))


def scores_of(scorer: Scorer, split: Split, part: str = "test") -> torch.Tensor:
    batches = EvaluationBatches(split, part, batch_size=split.num_users, max_length=100)
    return scorer.scores(next(iter(batches)))


# Training halves: [1 2 1 2 3], [2 1], [3].
HAND = split_of([[1, 2, 1, 2, 3, 5, 2], [2, 1, 5, 1], [3, 4, 3]], num_items=5)


def test_popularity_counts_training_items_only() -> None:
    scores = scores_of(Popularity(HAND), HAND)
    assert scores.tolist() == [[0, 3, 3, 2, 0, 0]] * 3


def test_markov_chain_by_hand() -> None:
    # Validation reads out at the training halves' ends: 3, 1, 3. Transitions: 1→2 twice,
    # 2→1 twice, 2→3 once; none across two users, none from 3. Popularity over 4 is added.
    scores = scores_of(MarkovChain(HAND), HAND, "valid")
    popularity = [0, 3 / 4, 3 / 4, 2 / 4, 0, 0]
    assert scores.tolist() == [popularity, [0, 3 / 4, 2 + 3 / 4, 2 / 4, 0, 0], popularity]
    # Test reads out at 5, 5 and 4, that no training history has.
    assert scores_of(MarkovChain(HAND), HAND, "test").tolist() == [popularity] * 3


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.integers(1, 6), min_size=3, max_size=9), min_size=1, max_size=8))
def test_markov_chain_agrees_with_a_dense_table(histories: list[list[int]]) -> None:
    split = split_of(histories, num_items=6)
    transitions, popularity = np.zeros((7, 7)), np.zeros(7)
    for history in histories:
        training = history[:-2]
        np.add.at(popularity, training, 1)
        np.add.at(transitions, (training[:-1], training[1:]), 1)
    last = [history[-2] for history in histories]
    expected = transitions[last] + popularity / (popularity.max() + 1)
    np.testing.assert_array_equal(scores_of(MarkovChain(split), split).numpy(), expected)


def test_baselines_are_ranked_like_models() -> None:
    split = split_of([[1, 2, 3, 4, 5], [2, 3, 4, 1, 5], [5, 2, 3, 6, 4]], num_items=6)
    chain = evaluate(MarkovChain(split), split, "valid", ks=(1,), batch_size=2)
    # After 3: 3→4 in user 1's training half; users 0 and 2 end in 3, and 4 is user 0's target.
    # User 1 ends in 4, which nothing follows: back to popularity, 1 before 5.
    assert chain.name == "markov chain"
    assert chain.ranks.tolist() == [1, 1, 3]
    assert evaluate(Popularity(split), split, "valid").mean_depth is None


@pytest.mark.skipif(not BEAUTY.exists(), reason="ADAREC_FAST_DATA names no folder with Beauty.txt")
def test_popularity_on_beauty() -> None:
    split = Split(load(BEAUTY))
    result = evaluate(Popularity(split), split)
    assert result.overall["HR@20"] == pytest.approx(0.0203, abs=1e-4)
    assert evaluate(MarkovChain(split), split).overall["HR@20"] == pytest.approx(0.0822, abs=1e-4)
