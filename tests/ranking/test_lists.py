"""What lists are beside right: against the formulae that RecTools and RecBole publish, and against
sums over every pair and item."""

from __future__ import annotations

import doctest
import itertools
from types import ModuleType

import numpy as np
import pytest
import torch
from test_evaluation import DATA, SPLIT, TableScorer, data_of, random_table, tiny_model
from torch import Tensor

from adarec_fast import load
from adarec_fast.data import Split
from adarec_fast.data.extend import followed
from adarec_fast.ranking import comparison, lists
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.ranking.lists import MEASURES, ListMeasures, gini
from adarec_fast.ranking.segments import by_history, by_popularity


def measures_of(
    lists: list[list[int]], histories: list[list[int]], items: int, k: int,
    vectors: Tensor | None = None,
) -> tuple[dict[str, float], ListMeasures]:  # fmt: skip
    values = torch.tensor([item for history in histories for item in history])
    offsets = torch.tensor([0, *itertools.accumulate(map(len, histories))])
    found = ListMeasures([k], values, offsets, items, vectors)
    longest = max(map(len, lists))
    for row in lists:  # a chunk each
        found.add(torch.tensor([row + [0] * (longest - len(row))]))
    return found.read(), found


def by_user(measures: ListMeasures, name: str, users: int) -> list[float]:
    return [measures.read(torch.arange(users) == user)[name] for user in range(users)]


def test_novelty_is_that_of_rectools() -> None:
    # The example in the docstring of rectools.metrics.MeanInvUserFreq; items 2 and 3 are one
    # user's, or nobody's, which counts alike.
    lists, seen = [[3], [2, 3], [1, 2]], [[1, 2], [1], [1]]
    for k, expected in ((1, [1.5849625, 1.5849625, 0]), (3, [1.5849625, 1.5849625, 0.79248125])):
        means, measures = measures_of(lists, seen, 3, k)
        assert by_user(measures, f"Novelty@{k}", 3) == pytest.approx(expected)
        assert means[f"Novelty@{k}"] == pytest.approx(sum(expected) / 3)
    # A user's second purchase of an item makes no second user.
    twice, _ = measures_of(lists, [[1, 2, 1], [1, 1], [1]], 3, 3)
    assert twice["Novelty@3"] == pytest.approx(means["Novelty@3"])


def test_popularity_is_that_of_rectools() -> None:
    # The example in the docstring of rectools.metrics.AvgRecPopularity.
    lists, seen = [[1, 2], [3, 1, 2], [3, 2]], [[1, 2], [1, 3], [1, 2]]
    for k, expected in ((1, [3.0, 1.0, 1.0]), (3, [2.5, 2.0, 1.5])):
        _, measures = measures_of(lists, seen, 3, k)
        assert by_user(measures, f"Popularity@{k}", 3) == expected


def test_diversity_is_the_mean_over_pairs() -> None:
    # rectools.metrics.IntraListDiversity: the sum over i != j of d(i, j) / (k (k - 1)); the
    # distance here is 1 - cos.
    vectors = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    lists = [[1, 2, 3, 4], [5, 6], [7], [2, 7, 1, 6]]
    unit = (vectors / vectors.norm(dim=1, keepdim=True)).numpy()
    for k in (1, 2, 3, 4):
        expected = []
        for row in lists:
            pairs = list(itertools.combinations(row[:k], 2))
            expected.append(np.mean([1 - unit[a] @ unit[b] for a, b in pairs]) if pairs else 0.0)
        _, measures = measures_of(lists, [[1]], 7, k, vectors)
        assert by_user(measures, f"Diversity@{k}", 4) == pytest.approx(expected, abs=1e-6)
    apart, _ = measures_of([[1, 2]], [[1]], 3, 2, torch.tensor([[0.0], [2.0], [-1.0], [0.0]]))
    assert apart["Diversity@2"] == pytest.approx(2)  # opposite, whatever the lengths


def test_coverage_and_gini_are_those_of_recbole() -> None:
    # recbole.evaluator.metrics: ItemCoverage, |union of lists| / |I|, and GiniIndex,
    # sum_i (2 i - |I| - 1) P_(i) / (|I| sum P) over the counts in rising order.
    lists, items = [[1, 2], [1, 3], [1, 2]], 5
    means, _ = measures_of(lists, [[1]], items, 2)
    assert means["Coverage@2"] == 3 / 5
    rising = sorted(sum(row.count(i) for row in lists) for i in range(1, items + 1))
    weighted = sum((2 * i - items - 1) * p for i, p in enumerate(rising, start=1))
    assert means["Gini@2"] == pytest.approx(weighted / (items * sum(rising)))
    # Half the mean absolute difference over the mean, which is how Gini defined it.
    pairs = itertools.product(rising, repeat=2)
    absolute = sum(abs(a - b) for a, b in pairs) / (2 * items * sum(rising))
    assert means["Gini@2"] == pytest.approx(absolute)
    assert gini(torch.tensor([4, 4, 4])) == pytest.approx(0)
    assert gini(torch.tensor([0, 0, 9])) == pytest.approx(2 / 3)
    assert gini(torch.zeros(3)) == 0.0


def test_an_evaluation_lists_what_it_ranked() -> None:
    """One pass gives the lists that sorting each user's scores gives, in chunks of any size."""
    table = random_table(3).round(decimals=1)  # with ties
    vectors = torch.randn(DATA.num_items + 1, 4, generator=torch.Generator().manual_seed(2))
    seen = SPLIT.seen("test")
    lists, longest = [], 7
    for user in range(SPLIT.num_users):
        mine = set(seen[0][seen[1][user] : seen[1][user + 1]].tolist())
        rest = [item for item in range(1, DATA.num_items + 1) if item not in mine]
        lists.append(sorted(rest, key=lambda item: (-float(table[user, item]), item))[:longest])
    values, offsets = SPLIT.inputs("train")
    expected = ListMeasures([3, 7], values, offsets, DATA.num_items, vectors)
    expected.add(torch.tensor(lists))
    for size in (11, 60):
        result = evaluate(
            TableScorer(table), SPLIT, ks=(3, 7), batch_size=size, lists=True,
            item_vectors=vectors, segments=[by_history(SPLIT, "test")],
        )  # fmt: skip
        assert result.lists == pytest.approx(expected.read())
        assert list(result.lists) == [f"{name}@{k}" for k in (3, 7) for name in MEASURES]
        assert result.sparse_lists == pytest.approx(expected.read(SPLIT.sparse_users()))
        groups = result.segments["history"]
        assert sum(group["users"] for group in groups.values()) == SPLIT.num_users
        for name in ("NDCG@7", "MAP@3", "Novelty@7", "Diversity@3"):
            whole = {**result.overall, **result.lists}[name]
            parts = sum(group["users"] * group[name] for group in groups.values())
            assert parts / SPLIT.num_users == pytest.approx(whole), name
        # The sparse users are those of the first group.
        assert groups["1-5"]["NDCG@7"] == result.sparse["NDCG@7"]


def test_a_list_ends_where_candidates_do() -> None:
    split = Split(data_of([[1, 2, 3, 4], [1, 1, 1, 2]], num_items=4))
    result = evaluate(TableScorer(torch.ones(2, 5)), split, ks=(10,), lists=True)
    # The first is shown item 4, the second 2, 3 and 4.
    assert result.lists["Coverage@10"] == 3 / 4
    assert result.lists["Popularity@10"] == pytest.approx((0 + (1 + 0 + 0) / 3) / 2)
    assert "Diversity@10" not in result.lists


def test_what_came_later_is_measured_by_what_was_trained_on() -> None:
    """The file that came later names one user; how new an item is says the run's own data."""
    later = followed(DATA, load({DATA.users.ids[0]: DATA.items.ids[:2]}, min_length=1))
    table = torch.rand(later.num_users, DATA.num_items + 1)
    found = evaluate(
        TableScorer(table), Split(later), ks=(5,), lists=True, trained_on=SPLIT,
        segments=[by_popularity(Split(later), "test", SPLIT)],
    )  # fmt: skip
    seen = set(DATA.sequence(0).tolist())
    rest = [item for item in range(1, DATA.num_items + 1) if item not in seen]
    best = sorted(rest, key=lambda item: (-float(table[0, item]), item))[:5]
    expected = ListMeasures([5], *SPLIT.inputs("train"), DATA.num_items)
    expected.add(torch.tensor([best]))
    assert found.lists == pytest.approx(expected.read())
    asked = torch.bincount(SPLIT.inputs("train")[0], minlength=DATA.num_items + 1)
    head = set((asked[1:].sort(descending=True, stable=True).indices[:16] + 1).tolist())
    target = int(Split(later).targets("test")[0])
    label = "unseen" if not asked[target] else "head" if target in head else "tail"
    assert found.segments["popularity"][label]["users"] == 1
    with pytest.raises(ValueError, match="trained_on has 3 items, the split 80"):
        evaluate(tiny_model(), SPLIT, trained_on=Split(data_of([[1, 2, 3]], num_items=3)))


def test_a_model_that_learned_gives_vectors() -> None:
    model = tiny_model()
    result = evaluate(model, SPLIT, ks=(5,), lists=True, intents=False)
    given = evaluate(
        model, SPLIT, ks=(5,), lists=True, intents=False, item_vectors=model.table()
    )
    assert result.lists == given.lists
    assert 0 < result.lists["Diversity@5"] < 2
    assert evaluate(model, SPLIT, intents=False).lists is None
    flat = result.records()
    assert [row["group"] for row in flat] == ["all", "sparse"]
    assert flat[0]["Gini@5"] == result.lists["Gini@5"]


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"item_vectors has the shape \[3, 2\].*\[81, D\]"):
        evaluate(tiny_model(), SPLIT, lists=True, item_vectors=torch.zeros(3, 2))
    other = Split(data_of([[1, 2, 3]], num_items=3))
    with pytest.raises(ValueError, match="history is of 1 users, the split has 60"):
        evaluate(tiny_model(), SPLIT, segments=[by_history(other, "test")])


def test_head_tail_and_unseen_targets() -> None:
    # Training: 1 three times, 2 twice, 3 and 4 once, 5 never.
    split = Split(data_of([[1, 2, 9, 1], [1, 2, 9, 2], [1, 3, 9, 3], [4, 9, 5]], num_items=10))
    groups = by_popularity(split, "test")
    assert groups.index.tolist() == [0, 0, 1, 2]
    assert groups.labels == ("head", "tail", "unseen")
    lengths = by_history(split, "valid").index
    assert lengths.tolist() == [0] * 4
    chosen = groups.chosen(torch.tensor([3, 0]))
    assert {label: mask.tolist() for label, mask in chosen.items()} == {
        "head": [False, True], "unseen": [True, False],
    }  # fmt: skip


@pytest.mark.parametrize("module", [lists, comparison], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
