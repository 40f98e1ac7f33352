"""Why an item was recommended."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from adarec_fast import ADARec, InteractionData, Recommender, Split, ragged
from adarec_fast.cli.recommend import recommend_for
from adarec_fast.data import Vocabulary, synthetic
from adarec_fast.models.base import SequenceModel
from adarec_fast.models.memory import Memory
from adarec_fast.models.sasrec.model import SASRec
from adarec_fast.ranking import reasons
from adarec_fast.ranking.reasons import score_differences


@pytest.fixture(scope="module")
def data() -> InteractionData:
    return synthetic(num_users=60, num_items=40, num_themes=2, subthemes_per_theme=2)


@pytest.fixture(params=["adarec", "sasrec", "sasrec with a memory"])
def model(request: pytest.FixtureRequest, data: InteractionData) -> SequenceModel:
    kind = ADARec if request.param == "adarec" else SASRec
    found = kind(num_items=data.num_items, hidden_size=16, num_layers=1, max_length=5)
    if request.param.endswith("memory"):
        values, offsets = Split(data).inputs("train")
        found.memory = Memory.of(values, offsets, data.num_items, max_length=5)
    return found


def score(model: SequenceModel, history: list[int], item: int) -> float:
    """By the ranking of the whole catalogue."""
    items, scores, *_ = Recommender(model).recommend(
        [history], model.config.num_items, exclude_seen=False
    )
    return float(scores[0][items[0] == item])


def test_differences_are_those_of_rankings(model: SequenceModel) -> None:
    # One item twice, and more than the model reads.
    history = [3, 9, 3, 17, 25, 4, 11]
    found = score_differences(model, history, [7, 11])
    assert found.shape == (2, 7)
    for row, item in enumerate((7, 11)):
        for place in range(7):
            left = history[:place] + history[place + 1 :]
            expected = score(model, history, item) - score(model, left, item)
            assert float(found[row, place]) == pytest.approx(expected, abs=2e-5)
    # Of the last five items each of the others is not read, with or without the other one.
    assert not found[:, :2].any()
    assert found[:, 2:].any(0).all()


def test_a_history_of_one_item_owes_it_all(model: SequenceModel) -> None:
    (found,) = score_differences(model, [3], [7]).tolist()
    assert found == pytest.approx([score(model, [3], 7)], abs=2e-5)


def test_nothing_left_to_tell_of(model: SequenceModel) -> None:
    assert score_differences(model, [3, 9, 3], []).shape == (0, 3)
    items = Vocabulary(range(1, 41), first=1)
    (answer,) = recommend_for(model, items, [None], [[*range(1, 41)]], 4, why=True)
    assert answer.to_json()["items"] == []
    assert Recommender(model).explain([*range(1, 41)]) == []


def test_what_is_not_read_is_not_left_out(
    model: SequenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model answers as many histories as it reads items, however long they are."""
    history = [1 + 7 * place % 40 for place in range(200)]
    asked = 0

    def counting(model: SequenceModel, histories: ragged.Jagged) -> torch.Tensor:
        nonlocal asked
        asked += histories.offsets.shape[0] - 1
        return scores(model, histories)

    scores = reasons._scores
    monkeypatch.setattr(reasons, "_scores", counting)
    found = score_differences(model, history, [7, 11])
    assert asked == 6
    assert found.shape == (2, 200)
    torch.testing.assert_close(found[:, -6:], score_differences(model, history[-6:], [7, 11]))
    assert not found[:, :-5].any()
    with pytest.raises(ValueError, match="item id 41 is outside"):
        score_differences(model, [41, *history], [7])


def test_chunks_do_not_show(model: SequenceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    history = [3, 9, 17, 25, 4]
    whole = score_differences(model, history, [7, 11])
    monkeypatch.setattr("adarec_fast.ranking.reasons._CHUNK_SCORES", 2 * 41)
    torch.testing.assert_close(score_differences(model, history, [7, 11]), whole)


@pytest.mark.parametrize(
    ("history", "items", "message"),
    [
        ([], [7], "history is empty"),
        ([3, 99], [7], r"item id 99 is outside the catalogue, 1\.\.40"),
        ([3], [0], r"item id 0 is outside the catalogue, 1\.\.40"),
    ],
)
def test_bad_input(
    model: SequenceModel, history: list[int], items: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score_differences(model, history, items)


def test_they_are_sorted_by_what_is_owed(model: SequenceModel) -> None:
    items = Vocabulary(range(1, 41), first=1)
    (answer,) = recommend_for(model, items, [None], [[3, 9, 17]], 4, why=True)
    for entry in answer.to_json()["items"]:
        assert sorted(reason["item"] for reason in entry["why"]) == [3, 9, 17]
        owed = [reason["difference"] for reason in entry["why"]]
        assert all(first >= second for first, second in pairwise(owed))
