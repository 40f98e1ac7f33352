"""Questions in a catalogue's own ids, and what may come: held to all scores of the catalogue."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import gpu_device

from adarec_fast import ADARec, ConfigError, DataError, InteractionData, Recommender, Split, load
from adarec_fast.data import EvaluationBatch, Vocabulary
from adarec_fast.models.base import SequenceModel
from adarec_fast.models.counting.model import Counting, Popularity
from adarec_fast.models.memory import Memory
from adarec_fast.models.sasrec.model import SASRec
from adarec_fast.ragged import Jagged

ITEMS, USERS = 40, 30
SMALL: dict[str, Any] = {
    "num_items": ITEMS, "hidden_size": 8, "num_layers": 1, "max_length": 5, "backend": "packed",
}  # fmt: skip


class Interests(SASRec):
    """Two vectors a user."""

    def represent(self, values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        user = super().represent(values, offsets)
        return torch.stack([user, user.flip(1)], 1)

    def plan(self) -> None:
        """The encoder's own would give one."""


@pytest.fixture(scope="module")
def data() -> InteractionData:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(3, 9, (USERS,), generator=generator).tolist()
    drawn = torch.randint(1, ITEMS + 1, (sum(sizes),), generator=generator).split(sizes)
    vocabulary = Vocabulary([f"sku-{n}" for n in range(1, ITEMS + 1)], 1)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    users = Vocabulary([f"u{n}" for n in range(USERS)], 0)
    return InteractionData.from_flat(torch.cat(drawn), offsets, vocabulary, users, "small")


def _model(kind: str, data: InteractionData) -> SequenceModel:
    if kind == "popularity":
        model: SequenceModel = Popularity(num_items=ITEMS)
    elif kind == "counting":
        model = Counting(num_items=ITEMS)
    elif kind == "adarec":
        model = ADARec(**SMALL, max_depth=2, seed=1)
    else:
        model = (Interests if kind == "interests" else SASRec)(**SMALL, seed=1)
    if kind in ("popularity", "counting"):
        model.prepare(Split(data))
    if kind == "memory":
        model.memory = Memory.of(*Split(data).inputs("train"), ITEMS, max_length=5)
    with torch.no_grad():  # scores that rounding does not reorder
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape))
    model.item_vocabulary = data.items
    return model.eval()


KINDS = ["adarec", "memory", "interests", "counting", "popularity"]


class Given(NamedTuple):
    model: SequenceModel
    recommender: Recommender
    histories: list[list[int]]
    scores: torch.Tensor


@pytest.fixture(scope="module", params=KINDS)
def given(request: pytest.FixtureRequest, data: InteractionData) -> Given:
    torch.manual_seed(0)
    model = _model(request.param, data)
    histories = [data.sequence(user).tolist() for user in range(9)]
    return Given(model, Recommender(model, batch_size=4), histories, _scores(model, histories))


@torch.no_grad()
def _scores(model: SequenceModel, histories: list[list[int]]) -> torch.Tensor:
    """All of them, one history after the other."""
    rows = []
    for history in histories:
        values = torch.tensor(history[-model.config.max_length :])
        offsets, user = torch.tensor([0, len(values)]), torch.zeros(1, dtype=torch.int64)
        row = model.scores(EvaluationBatch(values, offsets, user, user, values, offsets))
        if model.memory is not None:
            model.memory.add_to(row, values, offsets)
        rows.append(row)
    return torch.cat(rows)


def _by_hand(
    scores: torch.Tensor, k: int, allowed: list[set[int]], left_out: list[set[int]]
) -> list[list[int]]:
    """The k best of those that may come, by sorting all."""
    return [
        sorted(may - gone, key=lambda item, row=row: (-float(row[item]), item))[:k]
        for row, may, gone in zip(scores, allowed, left_out, strict=True)
    ]


EVERY = set(range(1, ITEMS + 1))
FEW = [3, 39, 17, 8, 22, 1]
MANY = list(range(2, ITEMS, 2))


def _rule(size: int) -> torch.Tensor:
    return torch.arange(1, size + 1) % 3 != 0


def _case(name: str, histories: list[list[int]]) -> tuple[dict[str, Any], list[set[int]]]:
    """Arguments, and what they allow."""
    users = len(histories)
    by_rule = {item for item in EVERY if item % 3}
    own = [{(user * 7 + step * 5) % ITEMS + 1 for step in range(12)} for user in range(users)]
    masks = torch.zeros(users, ITEMS, dtype=torch.bool)
    for user, may in enumerate(own):
        masks[user, [item - 1 for item in may]] = True
    return {
        "few": ({"allow": FEW}, [set(FEW)] * users),
        "many": ({"allow": np.array(MANY)}, [set(MANY)] * users),
        "a set": ({"allow": set(MANY)}, [set(MANY)] * users),
        "own": ({"allow": [sorted(may) for may in own]}, own),
        "none": ({"allow": []}, [set()] * users),
        "rule": ({"mask": _rule(ITEMS)}, [by_rule] * users),
        "rule by index": ({"mask": torch.cat([torch.tensor([True]), _rule(ITEMS)]).numpy()},
                          [by_rule] * users),
        "own rules": ({"mask": masks}, own),
        "all together": ({"mask": masks, "allow": MANY, "exclude": FEW},
                         [(may & set(MANY)) - set(FEW) for may in own]),
        "exclude for all": ({"exclude": FEW}, [EVERY - set(FEW)] * users),
    }[name]  # fmt: skip


CASES = ["few", "many", "a set", "own", "none", "rule", "rule by index", "own rules",
         "all together", "exclude for all"]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_comes_is_the_best_of_what_may(given: Given, case: str) -> None:
    model, recommender, histories, scores = given
    options, allowed = _case(case, histories)
    for exclude_seen in (True, False):
        left_out = [set(history) if exclude_seen else set() for history in histories]
        wanted = _by_hand(scores, 6, allowed, left_out)
        rankings = [recommender.recommend(histories, 6, exclude_seen=exclude_seen, **options)]
        found = model.recommend(histories, k=6, exclude_seen=exclude_seen, **options)
        rankings.append(rankings[0]._replace(items=found[0], scores=found[1]))
        for ranking in rankings:
            for row, expected in enumerate(wanted):
                left = torch.isfinite(ranking.scores[row])
                assert ranking.items[row][left].tolist() == expected
                torch.testing.assert_close(
                    ranking.scores[row][left], scores[row][expected], rtol=1e-4, atol=1e-4
                )


def _auto(device: torch.device) -> tuple[SequenceModel, Recommender]:
    model = ADARec(**{**SMALL, "backend": "auto"}, max_depth=2, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape))
    return model.eval(), Recommender(model.to(device))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("case", ["few", "own", "all together"])
def test_kernels_leave_out_what_may_not_come(device: str, case: str) -> None:
    """Histories hold items of the list and others, alone and together."""
    model, recommender = _auto(gpu_device() if device == "cuda" else torch.device(device))
    histories = [[3, 2, 17], [40, 5], [39]] * 3
    options, allowed = _case(case, histories)
    ranking = recommender.recommend(histories, 4, **options)
    scores = _scores(model.cpu(), histories)
    wanted = _by_hand(scores, 4, allowed, [set(history) for history in histories])
    for row, expected in enumerate(wanted):
        left = torch.isfinite(ranking.scores[row])
        assert ranking.items[row][left].tolist() == expected


def test_chunks_do_not_show(
    given: Given, data: InteractionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recommender, histories, _ = given
    options, _ = _case("all together", histories)
    whole = recommender.recommend(histories, 6, **options)
    for module in ("ranking.recommender", "models.recommends"):
        monkeypatch.setattr(f"adarec_fast.{module}.CHUNK_ELEMENTS", 2 * (ITEMS + 1))
    assert torch.equal(recommender.recommend(histories, 6, **options).items, whole.items)
    assert torch.equal(model.recommend(histories, k=6, **options)[0], whole.items)


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
    return Recommender(_model("adarec", data))


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
    model = _model("adarec", data)
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
        ({"mask": _rule(ITEMS)}, by_rule),
    ):  # fmt: skip
        found = recommender.similar_items([5, 3], 4, **options)
        wanted = _by_hand(near[[5, 3]], 4, [allowed] * 2, [{5}, {3}])
        assert found.items.tolist() == wanted
        torch.testing.assert_close(found.scores[0], near[5][wanted[0]])
    own = recommender.similar_items("sku-5", 4)
    assert (own.user, own.items) == ("sku-5", recommender.similar_items(["sku-5"], 4).items[0])
    with pytest.raises(ConfigError, match="Popularity has no vectors"):
        Recommender(_model("popularity", data)).similar_items("sku-5", 4)


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
    whole = _scores(model, [indices])[0]
    for explanation, item in zip(found, (7, 11), strict=True):
        assert explanation.score == pytest.approx(float(whole[item]), abs=1e-4)
        owed = {
            data.items.decode([left])[0]: float(
                whole[item] - _scores(model, [[i for i in indices if i != left]])[0, item]
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
    model = _model("adarec", data)
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


def test_masks_of_a_split_table_are_refused(data: InteractionData) -> None:
    from adarec_fast.distributed.items import ShardedItems

    class Part(ADARec):
        sharded = property(lambda self: object.__new__(ShardedItems))

    model = Part(**SMALL, max_depth=2)
    with pytest.raises(ConfigError, match="allow and mask need the whole item table"):
        model.recommend([[1]], k=3, allow=[2])


def test_packed_histories_and_a_mask(given: Given) -> None:
    _, recommender, histories, _ = given
    values = torch.tensor([item for history in histories for item in history])
    packed = Jagged(values, torch.tensor([0, *map(len, histories)]).cumsum(0))
    found = recommender.recommend(tuple(packed), 4, mask=_rule(ITEMS))
    assert torch.equal(found.items, recommender.recommend(histories, 4, mask=_rule(ITEMS)).items)
