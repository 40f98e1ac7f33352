"""IOCRec: intents, the best of which ranks, and their contrast, by hand and history by history."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_shares import check_shares
from helpers_systems import ask_a_service_of, follow_commands
from helpers_training import DATA, config, outcome
from torch import Tensor

from adarec_fast import Recommender, ops, ragged, rng
from adarec_fast.config import ConfigError
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.export import ExportOptions, export_run
from adarec_fast.models.blocks.augmentation import Ratios, augmented
from adarec_fast.models.blocks.interests import multi_interest_cross_entropy
from adarec_fast.models.iocrec.intents import Places, embedded
from adarec_fast.models.iocrec.model import IOCRec
from adarec_fast.ops.score_topk import best_of_several
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.training import load_run, train

DOUBLE = torch.float64
SHAPE: dict[str, Any] = {
    "num_items": DATA.num_items, "hidden_size": 8, "num_layers": 1, "max_length": 10, "seed": 3,
    "backend": "packed", "num_intents": 3,
}  # fmt: skip
MODEL: dict[str, Any] = {
    "model": "iocrec", **{n: v for n, v in SHAPE.items() if n not in ("num_items", "seed")},
}  # fmt: skip
STILL: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0}
BATCHES = TrainingBatches(
    *Split(DATA).inputs("train"), supervision="prefix", batch_size=24, max_length=10, seed=0
)
BATCH = next(iter(BATCHES.epoch(0)))


def model(**options: Any) -> IOCRec:
    return IOCRec(**{**SHAPE, **options}).double().train()


def spread(made: IOCRec) -> IOCRec:
    """Weights large enough that nothing is nearly linear."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=DOUBLE)
        made.item_embedding.weight[0].zero_()
    return made


def test_size() -> None:
    found = IOCRec(num_items=11_924)
    assert sum(parameter.numel() for parameter in found.parameters()) == 886_848


# -------------------------------------------------------------------- the loss of several vectors


def test_the_loss_of_several_vectors_against_the_whole_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(5, 3, 4, dtype=DOUBLE, generator=generator).requires_grad_()
    table = torch.randn(8, 4, dtype=DOUBLE, generator=generator).requires_grad_()
    targets = torch.tensor([1, 0, 7, 3, 3])
    scores = (users @ table[1:].T).amax(1)
    expected = F.cross_entropy(scores, targets - 1, ignore_index=-1)
    found = multi_interest_cross_entropy(users, table, targets)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(
        lambda u, t: multi_interest_cross_entropy(u, t, targets), (users, table)
    )
    assert not multi_interest_cross_entropy(users, table, 0 * targets).any()


def test_the_loss_of_several_vectors_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(7, 2, 4, dtype=DOUBLE, generator=generator).requires_grad_()
    table = torch.randn(8, 4, dtype=DOUBLE, generator=generator).requires_grad_()
    targets = torch.tensor([1, 0, 7, 3, 3, 2, 5])
    found = []
    for elements in (1 << 20, 30):
        monkeypatch.setattr("adarec_fast.models.blocks.interests._ELEMENTS", elements)
        loss = multi_interest_cross_entropy(users, table, targets)
        found.append((loss, *torch.autograd.grad(loss, (users, table))))
    torch.testing.assert_close(found[0], found[1])


def test_one_vector_or_equal_ones_have_the_plain_loss() -> None:
    users, table = torch.randn(4, 1, 5), torch.randn(9, 5)
    targets = torch.tensor([1, 2, 8, 0])
    expected = ops.linear_cross_entropy(users[:, 0], table, targets, backend="packed")
    for each in (1, 4):
        found = multi_interest_cross_entropy(users.expand(-1, each, -1), table, targets)
        torch.testing.assert_close(found, expected)
    one = model(num_intents=1)
    plain = ops.linear_cross_entropy(
        one.eval()((BATCH.item_ids, BATCH.offsets))[:, 0], one.table(), BATCH.targets,
        backend="packed",
    )
    torch.testing.assert_close(one.loss(BATCH).parts["rec"], plain.detach())


def test_each_vector_brings_up_its_own_item() -> None:
    made = model(num_intents=2).eval()
    with torch.no_grad():
        made.item_embedding.weight[1:] = 0.01
        made.item_embedding.weight[7] = torch.eye(8, dtype=DOUBLE)[0]
        made.item_embedding.weight[9] = torch.eye(8, dtype=DOUBLE)[1]
        scores = made.score(5 * torch.eye(8, dtype=DOUBLE)[None, :2])
    assert set(scores[0].topk(2).indices.tolist()) == {7, 9}


# -------------------------------------------------------------------- from states to intents


def attention(made: IOCRec, items: Tensor, places: Tensor) -> Tensor:
    """Z^g of one history."""
    part = made.auxiliary.intents.everywhere
    shares = (part.query[places] @ part.key(items).T).softmax(1)
    return shares @ part.value(items)


def disentangled(made: IOCRec, z: Tensor, places: Tensor) -> Tensor:
    """m ``[n, K, D]``, or ``[K, D]`` of sums, of one history."""
    part, root = made.auxiliary.intents.disentangle, math.sqrt(8)
    p = (part.state_norm(z) @ part.prototype_norm(part.prototypes).T / root).softmax(1)
    query = part.query_norm(z[-1] + part.position[places[-1]] + part.query_bias)
    x = part.key_norm(z + part.position[places])
    w = ((x + torch.relu(part.key(x))) @ query / root).softmax(0)
    taken = (p * w[:, None])[..., None] * z[:, None]
    return part.norm(taken if part.bias is None else part.bias + taken.sum(0))


@pytest.mark.parametrize("options", [{}, {"positions": "end"}, {"pooling": "sum"}], ids=str)
def test_vectors_are_those_of_each_history_by_itself(options: dict[str, Any]) -> None:
    made = spread(model(**STILL, **options))
    histories = [[5], [9, 2, 2, 40], list(range(11, 21))]
    values = torch.tensor([item for history in histories for item in history])
    offsets = torch.tensor([0, 1, 5, 15])
    found = made.represent(values, offsets)
    assert found.shape == (3, 3, 8)
    for row, history in enumerate(histories):
        items = made.item_embedding(torch.tensor(history))
        places = torch.arange(len(history))
        if options.get("positions") == "end":
            places = places.flip(0)
        local = made.backbone(
            items, torch.tensor([0, len(history)]), seed=None, backend="reference", places=places
        )
        m = disentangled(made, local, places)
        m = m + disentangled(made, attention(made, items, places), places)
        expected = m if options.get("pooling") == "sum" else m[-1]
        torch.testing.assert_close(found[row], expected, rtol=1e-6, atol=1e-9)
    # Capacity behind the last history plays no part, in the gradients neither.
    wider = torch.cat([values, values.new_zeros(4)])
    torch.testing.assert_close(made.represent(wider, offsets), found, rtol=1e-6, atol=1e-9)


def test_shares_of_intents_and_of_places_add_up_to_one() -> None:
    part = spread(model()).auxiliary.intents.disentangle
    offsets = torch.tensor([0, 1, 5, 15])
    places = Places.of(offsets, 18, 10, from_left=True)
    z = torch.where(places.real, torch.randn(18, 8, dtype=DOUBLE), 0.0)
    shares, weight = part.shares(z, places)
    torch.testing.assert_close(shares.sum(1), torch.ones(18, dtype=DOUBLE))
    sums = torch.stack([weight[a:b].sum() for a, b in pairwise(offsets.tolist())])
    torch.testing.assert_close(sums, torch.ones(3, dtype=DOUBLE))
    assert not weight[15:].any()


def test_vectors_of_a_position_lie_on_a_line() -> None:
    """The layer norm makes up for the weights: the K vectors of one state are parallel."""
    part = spread(model()).auxiliary.intents.disentangle
    places = Places.of(torch.tensor([0, 4]), 4, 10, from_left=True)
    found = part(torch.randn(4, 8, dtype=DOUBLE), places) - part.norm.bias
    unit = F.normalize(found, dim=-1)
    torch.testing.assert_close(unit, unit[:, :1].expand_as(unit))


def test_a_masked_item_is_the_mask() -> None:
    table, mask = torch.randn(5, 3), torch.randn(3)
    found = embedded(torch.tensor([2, 5, 0]), table, mask)
    assert torch.equal(found, torch.stack([table[2], mask, table[0]]))


# -------------------------------------------------------------------- the contrast


@pytest.mark.parametrize("pooling", ["position", "sum"])
def test_the_contrast_is_that_of_padded_concatenations(pooling: Any) -> None:
    made = spread(model(**STILL, pooling=pooling, lambda_contrast=0.5))
    draws = rng.at_place(made.noise_seed)
    views = augmented(
        BATCH.item_ids, BATCH.offsets, draws, (0, 1), Ratios(), mask_id=DATA.num_items + 1
    )
    output = made.loss(BATCH)
    rows = []
    for a, b in pairwise(views.offsets.tolist()):
        places = torch.arange(b - a)
        items = embedded(
            views.values[a:b], made.item_embedding.weight.detach(), made.auxiliary.mask.detach()
        )
        local = made.backbone(
            items, torch.tensor([0, b - a]), seed=None, backend="reference", places=places
        )
        m = disentangled(made, local, places)
        m = m + disentangled(made, attention(made, items, places), places)
        if pooling == "position":
            m = F.pad(m, (0, 0, 0, 0, 0, 10 - (b - a))).transpose(0, 1).flatten(1)
        rows.append(m.detach())
    # Intent k of view 0 and that of view 1 of a history are a pair.
    z = torch.stack(rows).view(24, 2, 3, -1).transpose(1, 2).flatten(0, 2)
    logits = (z @ z.T).fill_diagonal_(float("-inf"))
    expected = F.cross_entropy(logits, torch.arange(len(z)) ^ 1)
    torch.testing.assert_close(output.parts["contrast"], expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        output.total.detach(), output.parts["rec"] + 0.5 * output.parts["contrast"]
    )


@pytest.mark.parametrize("options", [{}, {"pooling": "sum", "positions": "end"}], ids=str)
def test_shares_are_the_whole_batch(options: dict[str, Any]) -> None:
    check_shares(BATCHES, lambda: model(**options))


def test_without_its_contrast_views_have_no_part() -> None:
    made = model(lambda_contrast=0.0)
    output = made.loss(BATCH)
    assert set(output.parts) == {"rec"}
    output.total.backward()
    unused = {name for name, p in made.named_parameters() if p.grad is None}
    assert unused == {"auxiliary.mask"}
    assert made.leaves_some_unused
    whole = model()
    whole.loss(BATCH).total.backward()
    assert not whole.leaves_some_unused
    assert all(p.grad is not None for p in whole.parameters())


def test_both_names_of_its_loss_are_one() -> None:
    found = [model(loss=loss).loss(BATCH).total for loss in ("original", "full_ce")]
    assert torch.equal(*found)
    labels = model(loss="original").diagnostics().labels()
    assert labels["rec"].title == "cross entropy"
    assert set(labels) == {"rec", "contrast"}


# -------------------------------------------------------------------- use


@pytest.mark.parametrize("backend", ["auto", "packed", "reference"])
def test_recommendations_are_its_best_products(backend: Any) -> None:
    made = spread(model(backend=backend)).float().eval()
    histories = [[5, 7, 2], [4], list(range(1, 14))]
    items, scores = made.recommend(histories, k=20)
    with torch.no_grad():
        for row, history in enumerate(histories):
            logits = (made(torch.tensor([history]))[0] @ made.table().T).amax(0)
            logits[[0, *history]] = -torch.inf
            assert torch.equal(items[row], logits.topk(20).indices)
            torch.testing.assert_close(scores[row], logits.topk(20).values)
    ranking = Recommender(made).recommend(histories, k=20)
    assert torch.equal(ranking.items, items)
    some = Recommender(made).recommend(histories, k=2, allow=[30, 31, 32])
    assert set(some.items.flatten().tolist()) <= {30, 31, 32}


@pytest.mark.parametrize("backend", ["cpp", "packed"])
def test_the_best_of_several_lists_are_those_of_all_scores(backend: str) -> None:
    generator = torch.Generator().manual_seed(1)
    users = torch.randint(-2, 3, (6, 4, 8), generator=generator).float()  # many are equal
    users[1] = users[1, :1]
    table = torch.randint(-2, 3, (61, 8), generator=generator).float()
    seen, offsets = torch.tensor([3, 9, 60, 4]), torch.tensor([0, 1, 1, 3, 4, 4, 4])
    scores = (users @ table.T).amax(1)
    scores[:, 0] = -torch.inf
    scores[ragged.sequence_ids(offsets, 4), seen] = -torch.inf
    for k in (1, 20, 60):
        expected = scores.sort(dim=1, descending=True, stable=True)
        found, items = best_of_several(users, table, seen, offsets, k, backend=backend)
        assert torch.equal(found, expected.values[:, :k])
        there = found > -torch.inf
        assert torch.equal(items[there], expected.indices[:, :k][there])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("iocrec")
    train(MODEL, config(), DATA, folder)
    return folder


def test_it_resumes_within_an_epoch(run: Path, tmp_path: Path) -> None:
    train(MODEL, config(), DATA, tmp_path, stop_after_steps=5)
    train(MODEL, config(), DATA, tmp_path, resume=True)
    assert outcome(run) == outcome(tmp_path)
    found = load_run(run)
    assert {"loss_rec", "loss_contrast"} <= found.history[-1].keys()
    assert evaluate(found.model, found.split).name == "IOCRec"


def test_an_export_is_refused_in_words(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one vector of a user, and IOCRec has num_intents=3"):
        export_run(load_run(run), tmp_path, ["torch"], ExportOptions(k=3))


def test_the_commands_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = follow_commands("iocrec", "--num-layers", "1", "--max-length", "10")
    assert result["name"] == "IOCRec"


def test_a_service_answers_from_it(run: Path) -> None:
    ask_a_service_of(run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"supervision": "all"}, "supervision='all': the model iocrec takes 'prefix'"),
        ({"num_intents": 0}, "num_intents=0"),
        ({"lambda_contrast": -0.1}, "lambda_contrast=-0.1"),
        ({"mask_ratio": 1.0}, "mask_ratio=1"),
        ({"num_heads": 3}, "hidden_size=8 is not divisible by num_heads=3"),
        ({"pooling": "mean"}, "pooling='mean'"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IOCRec(**{**SHAPE, **options})


def test_a_split_of_items_is_refused() -> None:
    workers: Any = None
    with pytest.raises(ConfigError, match="shard_items=True: iocrec encodes several times"):
        IOCRec(**SHAPE).split_items(workers)


def test_places_behind_the_last_history() -> None:
    offsets = torch.tensor([0, 2, 3])
    places = Places.of(offsets, 6, 10, from_left=True)
    assert places.at.tolist() == [0, 1, 0, 0, 1, 2]
    assert places.real[:, 0].tolist() == [True] * 3 + [False] * 3
    assert places.longest == 2
    assert ragged.lengths(offsets).tolist() == [2, 1]
