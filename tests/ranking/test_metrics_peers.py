"""One set of lists has the same metrics in RecTools, RePlay and RecBole, where those are there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_evaluation import DATA, SPLIT, TableScorer, random_table

from adarec_fast.ranking.evaluation import evaluate

KS = (3, 7)


@pytest.fixture(scope="module")
def ours() -> dict[str, float]:
    result = evaluate(TableScorer(random_table(5)), SPLIT, ks=KS, lists=True)
    assert result.lists is not None
    return {**result.overall, **result.lists}


def lists() -> list[list[int]]:
    """The best unseen items of each user, by sorting all scores."""
    table, seen, found = random_table(5), SPLIT.seen("test"), []
    for user in range(SPLIT.num_users):
        mine = set(seen[0][seen[1][user] : seen[1][user + 1]].tolist())
        order = torch.sort(table[user, 1:], descending=True, stable=True).indices + 1
        found.append([item for item in order.tolist() if item not in mine][: max(KS)])
    return found


def frames(user: str, pandas: Any) -> tuple[Any, Any, Any]:
    """Recommendations, held-out interactions and those of training."""
    best = lists()
    rows = [(u, item, rank) for u, row in enumerate(best) for rank, item in enumerate(row, 1)]
    recommended = pandas.DataFrame(rows, columns=[user, "item_id", "rank"])
    recommended["rating"] = 1.0 / recommended["rank"]
    targets = SPLIT.targets("test").tolist()
    held_out = pandas.DataFrame({user: np.arange(len(targets)), "item_id": targets})
    values, offsets = SPLIT.inputs("train")
    owners = np.repeat(np.arange(SPLIT.num_users), offsets.diff().numpy())
    trained = pandas.DataFrame({user: owners, "item_id": values.numpy()})
    return recommended, held_out, trained


def test_rectools(ours: dict[str, float]) -> None:
    metrics = pytest.importorskip("rectools.metrics", reason="RecTools is not installed")
    recommended, held_out, trained = frames("user_id", pytest.importorskip("pandas"))
    trained = trained.drop_duplicates()  # as our novelty has it, a user counts once
    wanted = {}
    for k in KS:
        wanted |= {
            f"HR@{k}": metrics.HitRate(k), f"MRR@{k}": metrics.MRR(k),
            f"NDCG@{k}": metrics.NDCG(k, divide_by_achievable=True), f"MAP@{k}": metrics.MAP(k),
            f"Recall@{k}": metrics.Recall(k), f"Novelty@{k}": metrics.MeanInvUserFreq(k),
            f"Coverage@{k}": metrics.CatalogCoverage(k, normalize=True),
        }  # fmt: skip
    theirs = metrics.calc_metrics(
        wanted, recommended, held_out, trained, list(range(1, DATA.num_items + 1))
    )
    assert {name: ours[name] for name in wanted} == pytest.approx(theirs, rel=1e-6)


def test_replay(ours: dict[str, float]) -> None:
    metrics = pytest.importorskip("replay.metrics", reason="RePlay is not installed")
    recommended, held_out, _ = frames("query_id", pytest.importorskip("pandas"))
    every_item = held_out.iloc[:1].merge(
        pytest.importorskip("pandas").DataFrame({"item_id": range(1, DATA.num_items + 1)}),
        how="cross", suffixes=("_", ""),
    )[["query_id", "item_id"]]  # fmt: skip
    names = {"HR": "HitRate", "MRR": "MRR", "NDCG": "NDCG", "MAP": "MAP", "Recall": "Recall"}
    for name, theirs in names.items():
        found = getattr(metrics, theirs)(list(KS))(recommended, held_out)
        for k in KS:
            assert found[f"{theirs}@{k}"] == pytest.approx(ours[f"{name}@{k}"], rel=1e-6), name
    covered = metrics.Coverage(list(KS))(recommended, every_item)
    for k in KS:
        assert covered[f"Coverage@{k}"] == pytest.approx(ours[f"Coverage@{k}"])


def test_recbole(ours: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "float", float, raising=False)  # which its 1.2.1 still asks NumPy for
    metrics = pytest.importorskip("recbole.evaluator.metrics", reason="RecBole is not installed")
    targets = SPLIT.targets("test").tolist()
    best = np.array(lists())
    hits = torch.from_numpy((best == np.array(targets)[:, None]).astype(np.int64))
    one = torch.ones(len(best), 1, dtype=torch.int64)
    given = {
        "rec.topk": torch.cat([hits, one], dim=1), "rec.items": torch.from_numpy(best),
        "data.num_items": DATA.num_items,  # its own data sets count padding, too
    }  # fmt: skip
    for name, theirs in (
        ("HR", "Hit"), ("MRR", "MRR"), ("NDCG", "NDCG"), ("Recall", "Recall"), ("MAP", "MAP"),
        ("Coverage", "ItemCoverage"), ("Gini", "GiniIndex"),
    ):  # fmt: skip
        config = {"topk": list(KS), "metric_decimal_place": 9}
        found = getattr(metrics, theirs)(config).calculate_metric(given)
        for k in KS:
            key = f"{theirs.lower()}@{k}"
            assert float(found[key]) == pytest.approx(ours[f"{name}@{k}"], abs=1e-8), name
