"""Questions in a catalogue's own ids: histories, users, frames, similar items, reasons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers_questions import (
    EVERY,
    FEW,
    ITEMS,
    MANY,
    USERS,
    Given,
    all_scores,
    best_by_hand,
    rule,
    small_model,
)

from adarec_fast import ConfigError, DataError, InteractionData, Recommender, load
from adarec_fast.data import Vocabulary


def test_own_ids_are_answered_by_own_ids(given: Given, data: InteractionData) -> None:
    _, recommender, histories, _ = given
    own = [data.items.decode(history) for history in histories]
    ranking = recommender.recommend(histories, 6, allow=FEW)
    names = data.items.decode(FEW)
    found = recommender.recommend(own, 6, allow=names)
    for row, answer in enumerate(found):
        left = torch.isfinite(ranking.scores[row])
        assert answer.items == data.items.decode(ranking.items[row][left])
        assert answer.scores == ranking.scores[row][left].tolist()
        assert answer.diagnostics == {n: t[row].item() for n, t in ranking.diagnostics.items()}
    alone = recommender.recommend(own[0], 6, allow=names)
    assert alone.items == found.items[0]
    assert found.scores[0] == pytest.approx(alone.scores, abs=1e-5)
    assert found[-1] == list(found)[-1] == found[1:][-1]


@pytest.fixture(scope="module")
def recommender(data: InteractionData) -> Recommender:
    torch.manual_seed(0)
    return Recommender(small_model("adarec", data))


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_frames_in_and_frames_out(
    data: InteractionData, recommender: Recommender, kind: str
) -> None:
    make = pytest.importorskip(kind).DataFrame
    users = [name for name, size in zip(data.users.ids, data.lengths.tolist(), strict=True)
             for _ in range(size)]  # fmt: skip
    times = torch.arange(len(users)).tolist()
    frame = make({"user": users, "item": data.items.decode(data.values), "timestamp": times})
    # Backwards: the times say what came first.
    found = recommender.recommend(frame[::-1], 4, exclude=["sku-3"])
    assert type(found) is type(frame)
    assert list(found.columns) == ["user", "item", "score", "rank"]
    wanted = recommender.recommend_users(data, found["user"].to_list()[::4], 4, exclude=["sku-3"])
    assert found["item"].to_list() == [item for row in wanted.items for item in row]
    assert "sku-3" not in found["item"].to_list()
    of_model = recommender.model.recommend(frame, k=4, exclude=["sku-3"])
    assert sorted(of_model["item"].to_list()) == sorted(found["item"].to_list())
    everybody = recommender.recommend_users(frame, k=4, exclude=["sku-3"])
    assert everybody.to_frame(kind)["item"].to_list() == of_model["item"].to_list()


def test_users_of_the_data(data: InteractionData, recommender: Recommender) -> None:
    found = recommender.recommend_users(data, ["u7", "u2"], 5)
    assert found.asked == ["u7", "u2"]
    histories = [data.sequence(user).tolist() for user in (7, 2)]
    ranking = recommender.recommend(histories, 5)
    assert found.items == [data.items.decode(row) for row in ranking.items]
    assert [answer.user for answer in found] == ["u7", "u2"]
    judged = recommender.recommend_users(data, ["u7"], 5, part="test")
    assert judged.items == [recommender.recommend(data.items.decode(histories[0][:-1]), 5).items]
    assert len(recommender.recommend_users(data, k=2)) == USERS
    assert len(recommender.recommend_users(data, [], 2)) == 0
    with pytest.raises(DataError, match="unknown id 'u99'"):
        recommender.recommend_users(data, ["u99"], 5)
    with pytest.raises(ConfigError, match=r"users='u1': give a list"):
        recommender.recommend_users(data, "u1", 5)
    with pytest.raises(ConfigError, match="part='train'"):
        recommender.recommend_users(data, ["u1"], 5, part="train")  # type: ignore[arg-type]


def test_users_that_filters_dropped(recommender: Recommender) -> None:
    data = load({"a": ["sku-1", "sku-2", "sku-3"], "b": ["sku-3"]}, min_length=3)
    assert recommender.recommend_users(data, ["b", "a"], 3).items == (
        recommender.recommend([["sku-3"], ["sku-1", "sku-2", "sku-3"]], 3).items
    )
    with pytest.raises(ConfigError, match="was dropped by min_length=3; leave out part"):
        recommender.recommend_users(data, ["b"], 3, part="test")


def test_data_of_another_catalogue(recommender: Recommender) -> None:
    other = load({"a": ["new", "sku-9", "sku-2"], "b": ["new"], "c": ["sku-2"]}, min_length=1)
    with pytest.raises(DataError, match="item 'new' of user 'a' is not among the 40 items"):
        recommender.recommend_users(other, k=3)
    found = recommender.recommend_users(other, k=3, unknown_items="ignore")
    assert (found.asked, found.ignored) == (["a", "c"], ["new"])
    assert found.items == recommender.recommend([["sku-9", "sku-2"], ["sku-2"]], 3).items


def test_ints_are_indices_unless_they_are_said_to_be_ids(data: InteractionData) -> None:
    model = small_model("adarec", data)
    model.item_vocabulary = Vocabulary([1000 + n for n in range(ITEMS, 0, -1)], 1)
    recommender = Recommender(model)
    ranking = recommender.recommend([[1, 9]], 5, allow=MANY)
    # Index 1 is the item 1040, index 9 is 1032.
    own = [1041 - item for item in MANY]
    for question in ([1040, 1032], np.array([1040, 1032])):
        found = recommender.recommend(question, 5, allow=own, own_ids=True)
        assert found.items == [1041 - item for item in ranking.items[0].tolist()]
    assert recommender.recommend(["1040", "1032"], 5, allow=own).items == found.items
    assert recommender.similar_items(1040, 3, own_ids=True).items == (
        model.item_vocabulary.decode(recommender.similar_items(1, 3).items[0])
    )
    with pytest.raises(DataError, match="unknown id 1 "):
        recommender.recommend([1], 5, own_ids=True)
    with pytest.raises(ConfigError, match="own_ids=1 must be"):
        recommender.recommend([1], 5, own_ids=1)
    model.item_vocabulary = None
    with pytest.raises(ConfigError, match="the model has no item_vocabulary"):
        Recommender(model).recommend([1], 5, own_ids=True)


def test_similar_items_are_those_of_nearest_direction(
    data: InteractionData, recommender: Recommender
) -> None:
    table = recommender.model.table().detach()
    unit = table / table.norm(dim=1, keepdim=True).clamp(min=1e-12)
    near = unit @ unit.T
    by_rule = {item for item in EVERY if item % 3}
    for options, allowed in (
        ({}, EVERY), ({"allow": FEW}, set(FEW)), ({"exclude": FEW}, EVERY - set(FEW)),
        ({"mask": rule(ITEMS)}, by_rule),
    ):  # fmt: skip
        found = recommender.similar_items([5, 3], 4, **options)
        wanted = best_by_hand(near[[5, 3]], 4, [allowed] * 2, [{5}, {3}])
        assert found.items.tolist() == wanted
        torch.testing.assert_close(found.scores[0], near[5][wanted[0]])
    own = recommender.similar_items("sku-5", 4)
    assert (own.user, own.items) == ("sku-5", recommender.similar_items(["sku-5"], 4).items[0])
    with pytest.raises(ConfigError, match="Popularity has no vectors"):
        Recommender(small_model("popularity", data)).similar_items("sku-5", 4)


def test_similar_items_in_chunks(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recommender.similar_items([5, 3, 9], 4, allow=MANY)
    monkeypatch.setattr("adarec_fast.ranking.asking.CHUNK_ELEMENTS", ITEMS + 1)
    assert torch.equal(recommender.similar_items([5, 3, 9], 4, allow=MANY).items, whole.items)


def test_explanations_are_differences_of_scores(given: Given, data: InteractionData) -> None:
    model, recommender, _, _ = given
    history = ["sku-3", "sku-9", "sku-17"]
    found = recommender.explain(history, ["sku-7", "sku-11"])
    indices = data.items.encode(history).tolist()
    whole = all_scores(model, [indices])[0]
    for explanation, item in zip(found, (7, 11), strict=True):
        assert explanation.score == pytest.approx(float(whole[item]), abs=1e-4)
        owed = {
            data.items.decode([left])[0]: float(
                whole[item] - all_scores(model, [[i for i in indices if i != left]])[0, item]
            )
            for left in indices
        }
        assert dict(explanation.reasons) == pytest.approx(owed, abs=1e-4)
        differences = [reason.difference for reason in explanation.reasons]
        assert differences == sorted(differences, reverse=True)
    best = recommender.explain(indices, k=2)
    assert [e.item for e in best] == recommender.recommend([indices], 2).items[0].tolist()


UNKNOWN = r"histories\[0\]\[1\]: unknown id 'zz' \(40 ids are known.*unknown_items='ignore' leaves"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"histories": ["sku-1", "zz"]}, UNKNOWN),
        ({"histories": [["sku-1"], ["sku-1", "zz"]]}, r"histories\[1\]\[1\]: unknown id 'zz'"),
        ({"histories": [["sku-1"], []]}, r"histories\[1\] is empty"),
        ({"histories": "sku-1"}, "histories is a str"),
        ({"allow": ["sku-2", "zz"]}, r"allow\[1\]: unknown id 'zz'"),
        ({"exclude": [["zz"]]}, r"exclude\[0\]\[0\]: unknown id 'zz'"),
        ({"allow": [["sku-1"], ["sku-2"]]}, "allow has 2 lists for 1 users"),
        ({"allow": "sku-1"}, "allow is a str; it must be a list"),
        ({"allow": {"sku-1": True}}, "allow is a dict"),
        ({"mask": [True, False]}, r"mask is torch.bool \[2\]; it must be bool, .*: \[40\] as in"),
        ({"mask": torch.ones(40)}, r"mask is torch.float32 \[40\]"),
        ({"mask": np.ones((2, 40), bool)}, r"mask is torch.bool \[2, 40\].*\[1, either\]"),
        ({"mask": ["a"]}, "mask is a list; it must be bool"),
        ({"unknown_items": "skip"}, "unknown_items='skip' must be 'refuse' or 'ignore'"),
        ({"unknown_items": "ignore", "histories": ["zz"]}, r"histories\[0\] holds no item of the"),
        ({"unknown_items": "ignore", "allow": ["zz"]}, "allow: none of its 1 ids is in the cat"),
        ({"k": 41}, r"k=41 must lie in 1\.\.40"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_questions_are_named(
    recommender: Recommender, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recommender.recommend(**{"histories": ["sku-1"], "k": 3, **options})


def test_unknown_ids_that_are_ignored_are_told(recommender: Recommender) -> None:
    found = recommender.recommend(
        [["sku-1", "zz"]], 3, allow=["sku-2", "yy"], unknown_items="ignore"
    )
    assert found.ignored == ["zz", "yy"]
    assert "2 ids unknown, such as zz" in repr(found)
    with pytest.warns(UserWarning, match="1 ids are not in the catalogue .* such as 'zz'"):
        alone = recommender.recommend(["sku-1", "zz"], 3, unknown_items="ignore")
    assert alone.items == recommender.recommend(["sku-1"], 3).items


def test_a_model_without_a_vocabulary_says_so(data: InteractionData) -> None:
    model = small_model("adarec", data)
    model.item_vocabulary = None
    with pytest.raises(ValueError, match=r"histories\[0\] is 'sku-1', a str"):
        Recommender(model).recommend(["sku-1"], 3)
    with pytest.raises(DataError, match=r"allow\[0\] is 'sku-1', and the model has no item_voc"):
        Recommender(model).recommend([[1]], 3, allow=["sku-1"])
    # The data's own ids do where the catalogue is theirs.
    assert Recommender(model).recommend_users(data, ["u1"], 3)[0].items[0].startswith("sku-")


def test_answers_print_themselves_in_five_lines(
    data: InteractionData, recommender: Recommender
) -> None:
    many = recommender.recommend_users(data, k=20)
    shown = repr(many).splitlines()
    assert len(shown) == 5
    assert shown[0] == "Recommendations: 30 lists of at most 20 items"
    assert shown[1].startswith("  u0: sku-")
    assert shown[-1] == "  and 27 more"
    assert len(repr(recommender.recommend_users(data, ["u1", "u2"], 3)).splitlines()) == 3
    one = many[0]
    assert repr(one).startswith(f"Recommendation(u0: {one.items[0]} {one.scores[0]:.3f}, ")
    assert repr(one).endswith(", and 16 more)")
    assert repr(recommender.recommend(["sku-1"], 3, allow=[])) == (
        "Recommendation(nothing may come)"
    )
    [explanation] = recommender.explain(["sku-1"], ["sku-2"])
    assert repr(explanation).startswith("Explanation(sku-2 ")


def test_frames_of_an_unknown_kind(recommender: Recommender) -> None:
    with pytest.raises(ConfigError, match="kind='spark' must be"):
        recommender.recommend([["sku-1"]], 3).to_frame("spark")  # type: ignore[arg-type]
    assert recommender.recommend([["sku-1"], ["sku-2"]], 1).columns()["user"].tolist() == [0, 1]
