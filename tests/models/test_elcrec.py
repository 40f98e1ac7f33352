"""ELCRec: centres that gradients move, and a loss that knows them by their mean."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_shares import check_shares
from helpers_training import DATA, config, outcome
from torch import Tensor

from adarec_fast.clustering import nearest
from adarec_fast.config import ConfigError
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.models.blocks.contrast import Tokens, overlap_products
from adarec_fast.models.elcrec.losses import LearnedIntents, clustering
from adarec_fast.models.elcrec.model import ELCRec
from adarec_fast.models.sasrec.model import SASRec
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.training import load_run, train

SPLIT = Split(DATA)
SHAPE: dict[str, Any] = {
    "num_items": DATA.num_items, "hidden_size": 8, "num_layers": 1, "max_length": 10, "seed": 3,
    "backend": "packed", "num_intents": 4, "dropout": 0.3, "attention_dropout": 0.3,
}  # fmt: skip
BATCHES = TrainingBatches(
    *SPLIT.inputs("train"), supervision="all", batch_size=24, max_length=10, seed=0
)
BATCH = next(iter(BATCHES.epoch(0)))
DOUBLE = torch.float64
UNITS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=DOUBLE)
QUERIES = torch.tensor([[0.6, 0.8], [1.0, 0.0]], dtype=DOUBLE)


def model(**options: Any) -> ELCRec:
    made = ELCRec(**{**SHAPE, **options}).double().train()
    made.begin_training(SPLIT)
    made.begin_epoch(0)
    return made


def intents(made: ELCRec) -> LearnedIntents:
    assert isinstance(made.auxiliary, LearnedIntents)
    return made.auxiliary


def by_sums(queries: Tensor, centres: Tensor) -> Tensor:
    away = torch.cdist(queries, centres).square().mean()
    return away - (centres[:, None] - centres).square().sum(-1).mean()


def test_clustering_by_hand_and_by_double_sums() -> None:
    assert float(clustering(QUERIES, UNITS)) == pytest.approx(-0.044444, abs=1e-6)
    eye = torch.eye(2, dtype=DOUBLE)
    assert float(clustering(eye, eye)) == pytest.approx(0.0, abs=1e-12)
    assert float(clustering(QUERIES, UNITS[[2, 0, 1]])) == pytest.approx(-0.044444, abs=1e-6)
    # Other unit vectors of the same mean.
    angle = torch.asin(torch.tensor(1 / 3, dtype=DOUBLE))
    same = torch.stack([
        torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.cos(), angle.sin()]),
        torch.stack([torch.zeros((), dtype=DOUBLE), 3 * angle.sin() - 2 * angle.sin()]),
    ])  # fmt: skip
    torch.testing.assert_close(same.mean(0), UNITS.mean(0))
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(5, 3, dtype=DOUBLE, generator=generator).requires_grad_()
    centres = torch.randn(4, 3, dtype=DOUBLE, generator=generator).requires_grad_()
    torch.testing.assert_close(clustering(queries, centres), by_sums(queries, centres))
    found = torch.autograd.grad(clustering(queries, centres), (queries, centres))
    expected = torch.autograd.grad(by_sums(queries, centres), (queries, centres))
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(clustering, (queries, centres))
    assert float(clustering(queries[:0], centres).detach()) == 0.0


def test_centres_begin_as_centroids_and_are_unit_vectors_in_every_step() -> None:
    made = model()
    centres = intents(made).centres
    start = centres.detach().clone()
    torch.testing.assert_close(start.norm(dim=1), torch.ones(4, dtype=DOUBLE))
    made.begin_epoch(1)  # only the first one's beginning finds them
    assert torch.equal(centres, start)
    with torch.no_grad():
        centres *= 1.5
    output = made.loss(BATCH)
    torch.testing.assert_close(centres.detach(), start)
    output.total.backward()
    assert centres.grad is not None
    assert float(centres.grad.abs().sum()) > 0
    points = torch.randn(20, 8, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nearest(points, start)[0], (points @ start.T).argmax(1))


def test_the_gradient_is_that_of_what_is_normalised_already() -> None:
    """Of L_cluster at unit centres, whatever lengths they had before."""
    made = model(lambda_sequence=0.0, lambda_intent=0.0, dropout=0.0, attention_dropout=0.0)
    with torch.no_grad():
        intents(made).centres *= 2.0
    made.loss(BATCH).total.backward()
    unit = intents(made).centres.detach().clone().requires_grad_()
    embeddings = made.encoded(BATCH.item_ids, BATCH.offsets, None).detach()
    bounds = BATCH.offsets.tolist()
    means = torch.stack(
        [embeddings[a:b].mean(0) for a, b in pairwise(bounds)]
    )
    by_sums(F.normalize(means, dim=1), unit).backward()
    torch.testing.assert_close(intents(made).centres.grad, unit.grad)


def test_a_centre_beside_adds_its_products() -> None:
    generator = torch.Generator().manual_seed(1)
    x, centre = torch.randn(2, 5, 3, dtype=DOUBLE, generator=generator)
    tokens = Tokens(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([1, 0, 1, 0, 0]), 3, 4)
    beside = overlap_products(torch.cat([x, centre], 1), tokens)
    torch.testing.assert_close(
        beside, overlap_products(x, tokens) + overlap_products(centre, tokens)
    )


@pytest.mark.parametrize("fusion", ["shift", "concat"])
def test_views_have_their_nearest_centre(fusion: Any) -> None:
    made = model(fusion=fusion)
    x = torch.randn(6, 8, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    own = intents(made).centres[torch.cdist(x, intents(made).centres).argmin(1)]
    expected = x + own if fusion == "shift" else torch.cat([x, own], 1)
    torch.testing.assert_close(intents(made)._fused(x), expected)


def test_without_its_losses_it_is_sasrec() -> None:
    off = {"lambda_sequence": 0.0, "lambda_intent": 0.0, "lambda_cluster": 0.0}
    mine = ELCRec(**SHAPE, **off).train()
    fields = {k: v for k, v in SHAPE.items() if k != "num_intents"}
    theirs = SASRec(**fields, loss="original", supervision="all", layer_norm_eps=1e-12).train()
    found = []
    for one in (mine, theirs):
        one.begin_training(SPLIT)
        one.begin_epoch(0)
        output = one.loss(BATCH)
        output.total.backward()
        found.append((output.total.detach(), one.item_embedding.weight.grad))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert set(mine.diagnostics().parts) == {"rec"}
    assert mine.leaves_some_unused  # the centres
    assert not ELCRec(**SHAPE).leaves_some_unused


@pytest.mark.parametrize("options", [{}, {"fusion": "shift", "loss": "full_ce"}])
def test_shares_lose_what_the_batch_loses(options: dict[str, Any]) -> None:
    check_shares(BATCHES, lambda: model(**options))


def test_it_trains_resumes_and_ranks(tmp_path: Path) -> None:
    fields = {**SHAPE, "model": "elcrec", "lambda_cluster": 10.0}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(fields, config(batch_size=16), DATA, whole)
    train(fields, config(batch_size=16), DATA, parts, stop_after_steps=4)
    train(fields, config(batch_size=16), DATA, parts, resume=True)
    assert outcome(whole) == outcome(parts)
    run = load_run(whole)
    assert isinstance(run.model, ELCRec)
    assert {"loss_sequence", "loss_intent", "loss_cluster"} <= run.history[-1].keys()
    assert evaluate(run.model, run.split).name == "ELCRec"


def test_bad_settings_are_refused() -> None:
    for name, value in (("fusion", "sum"), ("lambda_cluster", -1.0), ("num_intents", 0)):
        with pytest.raises(ConfigError, match=f"{name}="):
            ELCRec(**{**SHAPE, name: value})
    with pytest.raises(ConfigError, match="num_intents=50: k-means needs more histories"):
        ELCRec(**{**SHAPE, "num_intents": 50}).begin_training(SPLIT)
