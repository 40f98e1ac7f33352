"""Ranking, metrics, masks and planted intents."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adarec_fast import ADARec, synthetic
from adarec_fast.clustering import kmeans, normalized_mutual_info
from adarec_fast.data import EvaluationBatch, EvaluationBatches, InteractionData, Split, Vocabulary
from adarec_fast.ranking.evaluation import (
    UNREACHABLE,
    EvaluationResult,
    evaluate,
    ranking_metrics,
    target_ranks,
)

DATA = synthetic(num_users=60, num_items=80, num_themes=3, subthemes_per_theme=2, seed=1)
SPLIT = Split(DATA)


class TableScorer:
    """Fixed scores of every user."""

    name = "table"

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.largest = 0

    def scores(self, batch: EvaluationBatch) -> Tensor:
        self.largest = max(self.largest, batch.users.numel())
        return self.table[batch.users].clone()


def random_table(seed: int = 0, split: Split = SPLIT) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(split.num_users, split.num_items + 1, generator=generator)


def data_of(histories: list[list[int]], num_items: int) -> InteractionData:
    values = torch.tensor([item for history in histories for item in history])
    offsets = torch.tensor([0] + [len(history) for history in histories]).cumsum(0)
    items = Vocabulary(np.arange(1, num_items + 1), first=1)
    users = Vocabulary(np.arange(len(histories)), first=0)
    return InteractionData.from_flat(values, offsets, items, users, "by hand")


def batch_of(targets: list[int], seen: list[list[int]]) -> EvaluationBatch:
    values = torch.tensor([item for row in seen for item in row], dtype=torch.int64)
    offsets = torch.tensor([0] + [len(row) for row in seen]).cumsum(0)
    users = torch.arange(len(targets))
    return EvaluationBatch(values, offsets, torch.tensor(targets), users, values, offsets)


def tiny_model(**options: object) -> ADARec:
    chosen = {
        "num_items": DATA.num_items, "hidden_size": 16, "num_layers": 1, "max_depth": 2,
        "max_length": 20, "backend": "packed", "seed": 3, **options,
    }  # fmt: skip
    return ADARec(**chosen)


def test_ranks_by_hand() -> None:
    #                  pad   1    2    3    4
    scores = [[9.0, 0.5, 0.9, 0.7, 0.1]] * 4
    batch = batch_of([3, 1, 2, 4], [[2], [4, 2], [4], [4, 1]])
    ranks = {
        mask: target_ranks(torch.tensor(scores), batch, mask).tolist()
        for mask in ("off", "neg-inf", "official")
    }
    assert ranks["off"] == [2, 3, 1, 4]
    # User 3's target is in its history: masked, it cannot be recommended.
    assert ranks["neg-inf"] == [1, 2, 1, UNREACHABLE]
    # Score 0: items 1 and 4 tie at the end, and 1 goes first.
    assert ranks["official"] == [1, 2, 1, 4]


def test_official_mask_lets_a_seen_item_beat_negative_scores() -> None:
    batch = batch_of([2], [[1]])
    scores = torch.tensor([[0.0, 5.0, -1.0, -2.0]])
    assert target_ranks(scores.clone(), batch, "official").tolist() == [2]
    assert target_ranks(scores.clone(), batch, "neg-inf").tolist() == [1]


def test_ties_go_to_the_lower_index() -> None:
    batch = batch_of([1, 2, 4], [[], [], []])
    ranks = target_ranks(torch.ones(3, 6), batch, "neg-inf")
    assert ranks.tolist() == [1, 2, 4]


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_ranks_agree_with_sorting(data: st.DataObject) -> None:
    rows, items = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 12))
    # Few distinct values, so that ties are common.
    number = st.integers(-2, 2).map(float)
    scores = torch.tensor(
        [data.draw(st.lists(number, min_size=items + 1, max_size=items + 1)) for _ in range(rows)]
    )
    index = st.integers(1, items)
    targets = data.draw(st.lists(index, min_size=rows, max_size=rows))
    seen = [data.draw(st.lists(index, max_size=4)) for _ in range(rows)]
    mask = data.draw(st.sampled_from(["neg-inf", "official", "off"]))
    found = target_ranks(scores.clone(), batch_of(targets, seen), mask).tolist()
    for row in range(rows):
        value = {item: float(scores[row, item]) for item in range(1, items + 1)}
        if mask == "official":
            value |= dict.fromkeys(seen[row], 0.0)
        candidates = [i for i in value if mask != "neg-inf" or i not in seen[row]]
        order = sorted(candidates, key=lambda item: (-value[item], item))
        expected = order.index(targets[row]) + 1 if targets[row] in order else UNREACHABLE
        assert found[row] == expected


def test_metrics_by_hand() -> None:
    metrics = ranking_metrics(torch.tensor([1, 3, 6, UNREACHABLE]), (1, 5, 10))
    assert metrics["HR@1"] == metrics["NDCG@1"] == metrics["MRR@1"] == 0.25
    assert metrics["HR@5"] == metrics["Recall@5"] == 0.5
    assert metrics["NDCG@5"] == pytest.approx((1 + 1 / math.log2(4)) / 4)
    assert metrics["MRR@10"] == pytest.approx((1 + 1 / 3 + 1 / 6) / 4)
    assert metrics["HR@10"] == 0.75


@pytest.mark.parametrize("part", ["valid", "test"])
def test_agrees_with_ir_measures(part: str) -> None:
    ir_measures = pytest.importorskip("ir_measures", reason="ir-measures is not installed")
    from ir_measures import AP, RR, R, Success, nDCG

    table = random_table()
    ks = (1, 3, 10, 50)
    result = evaluate(TableScorer(table), SPLIT, part, ks=ks, batch_size=7)
    masked = table.clone()
    targets = SPLIT.targets(part)
    values, offsets = SPLIT.seen(part)
    owner = torch.repeat_interleave(torch.arange(SPLIT.num_users), offsets.diff())
    masked[owner, values] = -math.inf
    run = {
        str(user): {str(i): float(row[i]) for i in range(1, row.numel()) if row[i] > -math.inf}
        for user, row in enumerate(masked)
    }
    qrels = {str(user): {str(int(target)): 1} for user, target in enumerate(targets)}
    ours = {"HR": Success, "NDCG": nDCG, "MRR": RR, "Recall": R, "MAP": AP}
    measures = {f"{name}@{k}": measure @ k for name, measure in ours.items() for k in ks}
    theirs = ir_measures.calc_aggregate(list(measures.values()), qrels, run)
    for name, measure in measures.items():
        assert result.overall[name] == pytest.approx(theirs[measure], abs=1e-12), name


def test_chunks_are_bounded_and_change_nothing() -> None:
    table = random_table(4)
    whole = evaluate(TableScorer(table), SPLIT)
    for size in (1, 7, 59):
        scorer = TableScorer(table)
        assert torch.equal(evaluate(scorer, SPLIT, batch_size=size).ranks, whole.ranks)
        assert scorer.largest == size


def test_chosen_users_and_the_sparse_subset() -> None:
    table = random_table(5)
    whole = evaluate(TableScorer(table), SPLIT)
    sparse = torch.nonzero(SPLIT.sparse_users()).flatten()
    part = evaluate(TableScorer(table), SPLIT, users=sparse)
    assert 0 < sparse.numel() < SPLIT.num_users
    assert torch.equal(part.ranks, whole.ranks[sparse])
    assert part.overall == part.sparse == whole.sparse
    assert whole.num_sparse == part.num_users == sparse.numel()
    rich = evaluate(TableScorer(table), SPLIT, users=torch.nonzero(~SPLIT.sparse_users()).flatten())
    assert rich.sparse is None
    assert rich.num_sparse == 0


def test_repeated_targets_are_counted_as_unreachable() -> None:
    split = Split(data_of([[1, 2, 3, 1], [1, 2, 3, 4]], num_items=5))
    scorer = TableScorer(torch.arange(5, -1, -1.0).repeat(2, 1))
    masked = evaluate(scorer, split, "test", ks=(20,))
    assert masked.num_unreachable == 1
    assert masked.overall["HR@20"] == 0.5
    assert evaluate(scorer, split, "test", ks=(20,), seen_mask="off").num_unreachable == 0


def test_nan_scores_are_an_error_not_a_first_place() -> None:
    table = random_table()
    table[3, 9] = math.nan
    with pytest.raises(ValueError, match="1 of 60 users have NaN scores"):
        evaluate(TableScorer(table), SPLIT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seen_mask": "zero"}, "seen_mask='zero'"),
        ({"ks": ()}, "ks="),
        ({"ks": (5, 0)}, r"ks=\(5, 0\)"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"users": torch.empty(0, dtype=torch.int64)}, "users is empty"),
        ({"part": "train"}, "part='train'"),
    ],
)
def test_wrong_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(TableScorer(random_table()), SPLIT, **options)


def test_wrong_models() -> None:
    with pytest.raises(ValueError, match="knows 7 items, the split has 80"):
        evaluate(tiny_model(num_items=7), SPLIT)
    with pytest.raises(ValueError, match="model is a Linear"):
        evaluate(torch.nn.Linear(2, 2), SPLIT)


def test_model_evaluation_reports_depths_and_gates() -> None:
    model = tiny_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = evaluate(model, SPLIT, batch_size=13)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(result.ranks, evaluate(model, SPLIT, batch_size=60).ranks)

    model.eval()
    batch = next(iter(EvaluationBatches(SPLIT, "test", batch_size=60, max_length=20)))
    output = model((batch.item_ids, batch.offsets), return_gates=True)
    shares = torch.bincount(output.depth, minlength=3).double() / 60
    assert result.depth_share == pytest.approx(shares.tolist())
    assert result.mean_depth == pytest.approx(float(output.depth.double().mean()))
    for level, gate in enumerate(result.gate):
        reached = output.depth >= level
        if reached.any():
            assert gate == pytest.approx(float(output.gates[level][reached].double().mean()))
        else:
            assert gate is None
    scores = model.score(output.user)
    assert torch.equal(target_ranks(scores.detach().clone(), batch, "neg-inf"), result.ranks)


def test_planted_intents() -> None:
    result = evaluate(tiny_model(), SPLIT)
    assert set(result.nmi) == {"coarse/theme", "fine/subtheme"}
    assert all(0 <= value <= 1 for value in result.nmi.values())
    assert evaluate(tiny_model(), SPLIT, intents=False).nmi is None
    unlabelled = Split(DATA.replace(labels=None))
    assert evaluate(tiny_model(), unlabelled).nmi is None


def test_no_gates_without_experts() -> None:
    result = evaluate(tiny_model(moe=False), SPLIT, intents=False)
    assert result.gate is None
    assert sum(result.depth_share) == pytest.approx(1)


def test_result_is_json_and_a_table() -> None:
    result = evaluate(tiny_model(), SPLIT, name="ours")
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["overall"] == result.overall
    assert "ranks" not in values
    rows = result.rows()
    header = EvaluationResult.columns(result.ks)
    assert [row[:2] for row in rows] == [("ours", "all"), ("ours", "sparse")]
    assert all(len(row) == len(header) for row in rows)
    assert rows[0][header.index("NDCG@20")] == f"{result.overall['NDCG@20']:.4f}"


# ---------------------------------------------------------------------- clusters


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(-3, 3), min_size=n, max_size=n),
            st.lists(st.integers(0, 4), min_size=n, max_size=n),
        )
    )
)
def test_nmi_agrees_with_sklearn(labels: tuple[list[int], list[int]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    expected = metrics.normalized_mutual_info_score(*labels)
    assert normalized_mutual_info(*labels) == pytest.approx(expected, abs=1e-9)


def test_nmi_by_hand() -> None:
    assert normalized_mutual_info([0, 0, 1, 1], torch.tensor([7, 7, 2, 2])) == pytest.approx(1)
    assert normalized_mutual_info([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(0)
    # H(a) = ln 2, H(b) = ln 4, I = ln 2.
    assert normalized_mutual_info([0, 0, 1, 1], [0, 1, 2, 3]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="one length"):
        normalized_mutual_info([0, 1], [0])


def test_kmeans_finds_separated_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(4).repeat_interleave(25)
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    points = centres[label] + torch.randn(100, 2, generator=generator) * 0.3
    found = kmeans(points, 4)
    assert normalized_mutual_info(found, label) == pytest.approx(1)
    assert torch.equal(found, kmeans(points, 4))
    assert torch.equal(kmeans(points, 1), torch.zeros(100, dtype=torch.int64))
    assert kmeans(torch.zeros(5, 2), 3).shape == (5,)  # all points equal


def test_kmeans_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"clusters=4 must be in 1..3"):
        kmeans(torch.zeros(3, 2), 4)
    with pytest.raises(ValueError, match="NaN"):
        kmeans(torch.full((3, 2), math.nan), 2)
