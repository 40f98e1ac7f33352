"""ICLRec: SASRec's steps and two contrasts, whose intents an epoch's beginning finds."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_shares import check_shares
from helpers_training import DATA, config, outcome
from typer.testing import CliRunner

from adarec_fast import Recommender, ragged, rng
from adarec_fast.cli import app
from adarec_fast.clustering import nearest
from adarec_fast.config import ConfigError
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.models.blocks.auxiliary import Histories
from adarec_fast.models.iclrec.losses import IntentContrast
from adarec_fast.models.iclrec.model import ICLRec
from adarec_fast.models.sasrec.model import SASRec
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.training import load_run, train

SPLIT = Split(DATA)
SHAPE: dict[str, Any] = {
    "num_items": DATA.num_items, "hidden_size": 8, "num_layers": 1, "max_length": 10, "seed": 3,
    "backend": "packed", "num_intents": 4, "dropout": 0.3, "attention_dropout": 0.3,
}  # fmt: skip


def batches(supervision: Any = "all", size: int = 24) -> TrainingBatches:
    return TrainingBatches(
        *SPLIT.inputs("train"), supervision=supervision, batch_size=size, max_length=10, seed=0
    )


BATCH = next(iter(batches().epoch(0)))


def model(**options: Any) -> ICLRec:
    made = ICLRec(**{**SHAPE, **options}).double().train()
    made.begin_training(SPLIT)
    made.begin_epoch(0)
    return made


def contrast(made: ICLRec) -> IntentContrast:
    assert isinstance(made.auxiliary, IntentContrast)
    return made.auxiliary


@pytest.mark.parametrize("loss", ["original", "full_ce"])
def test_without_its_contrasts_it_is_sasrec_step_by_step(loss: Any) -> None:
    mine = ICLRec(**SHAPE, loss=loss, lambda_sequence=0.0, lambda_intent=0.0).train()
    fields = {k: v for k, v in SHAPE.items() if k != "num_intents"}
    theirs = SASRec(**fields, loss=loss, supervision="all", layer_norm_eps=1e-12).train()
    steps = []
    for one in (mine, theirs):
        one.begin_training(SPLIT)
        one.begin_epoch(0)
        optimizer = torch.optim.Adam(one.parameters())
        for batch in batches().epoch(0):
            optimizer.zero_grad()
            output = one.loss(batch)
            output.total.backward()
            optimizer.step()
            steps.append(output.total.detach())
    half = len(steps) // 2
    assert half > 1
    assert torch.equal(torch.stack(steps[:half]), torch.stack(steps[half:]))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[name], tensor), name


def test_the_total_is_the_weighted_sum_of_its_parts() -> None:
    output = model(lambda_sequence=0.2, lambda_intent=0.3).loss(BATCH)
    assert set(output.parts) == {"rec", "sequence", "intent"}
    expected = output.parts["rec"] + 0.2 * output.parts["sequence"] + 0.3 * output.parts["intent"]
    torch.testing.assert_close(output.total.detach(), expected)
    only = model(lambda_sequence=0.0).loss(BATCH)
    assert set(only.parts) == {"rec", "intent"}


def test_the_sequence_loss_is_that_of_padded_concatenations() -> None:
    """Against positions, zeros and a softmax written out, without dropout."""
    made = model(dropout=0.0, attention_dropout=0.0, lambda_intent=0.0)
    seen: dict[str, Any] = {}
    views_of = contrast(made).views

    def views(*given: Any) -> Any:
        seen["views"] = views_of(*given)
        return seen["views"]

    contrast(made).views = views  # type: ignore[method-assign]
    found = made.loss(BATCH).parts["sequence"]
    x, made_views = seen["views"]
    bounds = made_views.offsets.tolist()
    z = torch.zeros(len(bounds) - 1, 10, 8, dtype=torch.float64)
    for view, (a, b) in enumerate(pairwise(bounds)):
        for token in range(a, b):
            z[view, made_views.places[token]] = x.detach()[token]
    logits = z.flatten(1) @ z.flatten(1).T
    logits.fill_diagonal_(float("-inf"))
    expected = F.cross_entropy(logits, torch.arange(len(bounds) - 1) ^ 1)
    torch.testing.assert_close(found, expected)


def test_masked_positions_are_those_of_the_padded_history() -> None:
    """An item that is left out is padding to the others: no key, and they stay where they are."""
    made = SASRec(**{k: v for k, v in SHAPE.items() if k != "num_intents"}).double().eval()
    values, offsets = torch.tensor([5, 9, 2]), torch.tensor([0, 3])
    places = torch.tensor([6, 4, 1])
    found = made.encoded(values, offsets, None, places)
    x = made.item_embedding(values) + made.backbone.position(places)
    x = made.backbone.norm(x)
    expected = made.backbone.layers[0](
        x[None], offsets, None, seed=None, max_length=10, backend="reference"
    )[0]
    torch.testing.assert_close(found, expected)
    usual = ragged.from_end(offsets, 3)
    torch.testing.assert_close(
        made.encoded(values, offsets, None, usual), made.encoded(values, offsets, None)
    )


def test_no_gradient_reaches_prototypes_or_the_query() -> None:
    made = model(lambda_sequence=0.0)
    step_of = contrast(made).losses
    kept: dict[str, Any] = {}

    def losses(given: Any, step: Any) -> Any:
        plain = step.embeddings.detach().requires_grad_()
        kept["plain"] = plain
        return step_of(given, step._replace(embeddings=plain))

    contrast(made).losses = losses  # type: ignore[method-assign]
    made.loss(BATCH).total.backward()
    assert kept["plain"].grad is None
    assert not contrast(made).centroids.requires_grad
    assert made.item_embedding.weight.grad is not None


def test_intents_are_a_function_of_weights_and_seed() -> None:
    made = model()
    first = contrast(made).centroids.clone()
    made.loss(BATCH)  # draws of a step do not matter
    made.begin_epoch(1)
    assert torch.equal(contrast(made).centroids, first)
    histories = Histories(SPLIT, 10)
    means = histories.means(made)
    assert means.shape == (DATA.num_users, 8)
    one = ragged.rows(ragged.Jagged(histories.values, histories.offsets), 7, 8)
    expected = made.encoded(*one, None).mean(0)
    torch.testing.assert_close(means[7].double(), expected, rtol=1e-5, atol=1e-6)
    values, offsets = SPLIT.inputs("train")
    assert one.values.tolist() == values[offsets[7] : offsets[8] - 1][-10:].tolist()
    # Users of one cluster have one prototype; the nearest is the raw centroid's.
    ids, _ = nearest(means, contrast(made).centroids.float())
    assert 1 < ids.unique().numel() <= 4


@pytest.mark.parametrize("options", [
    {}, {"supervision": "prefix", "loss": "full_ce"}, {"mask_false_negatives": True},
])  # fmt: skip
def test_shares_lose_what_the_batch_loses(options: dict[str, Any]) -> None:
    check_shares(batches(options.get("supervision", "all")), lambda: model(**options))


def test_passes_of_a_step_drop_out_differently() -> None:
    seed = rng.at_place(rng.spread_seed(1))
    keys = [int(rng.of_pass(seed, number)[0]) for number in (1, 2)] + [int(seed[0])]
    assert len(set(keys)) == 3
    assert rng.of_pass(seed, 1, torch.tensor([7, 2])).tolist()[1:] == [7, 2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("iclrec")
    train({**SHAPE, "model": "iclrec"}, config(batch_size=16), DATA, folder)
    return folder


def test_it_resumes_within_an_epoch(run: Path, tmp_path: Path) -> None:
    fields = {**SHAPE, "model": "iclrec"}
    train(fields, config(batch_size=16), DATA, tmp_path, stop_after_steps=4)
    train(fields, config(batch_size=16), DATA, tmp_path, resume=True)
    assert outcome(run) == outcome(tmp_path)


def test_a_run_is_evaluated_and_recommended_from_and_has_a_graph(run: Path) -> None:
    found = load_run(run)
    assert isinstance(found.model, ICLRec)
    assert {"loss_rec", "loss_sequence", "loss_intent"} <= found.history[-1].keys()
    assert evaluate(found.model, found.split).name == "ICLRec"
    ranking = Recommender(found.model).recommend([[3, 4], [5]], k=4)
    assert torch.equal(ranking.items, found.model.recommend([[3, 4], [5]], k=4)[0])
    with torch.no_grad():
        vectors = found.model.user_graph()(torch.tensor([[3, 4, 0], [5, 0, 0]]))
        expected = found.model((torch.tensor([3, 4, 5]), torch.tensor([0, 2, 3])))
    torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-6)


def test_the_commands_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        " ".join(map(str, [user, *DATA.sequence(user).tolist()])) for user in range(DATA.num_users)
    ]
    Path("data.txt").write_text("\n".join(lines) + "\n")
    small = ["--hidden-size", "8", "--num-layers", "1", "--max-length", "10", "--device", "cpu"]
    begun = ["train", "--model", "iclrec", "--data", "data.txt", "--run-dir", "run", *small]
    runner = CliRunner()
    refused = runner.invoke(app, begun)
    assert refused.exit_code != 0
    said = " ".join(refused.output.split())
    assert "num_intents=256" in said
    assert "choose at most 39, or more data" in said
    done = runner.invoke(app, [*begun, "--num-intents", "4", "--epochs", "1"])
    assert done.exit_code == 0, done.output
    done = runner.invoke(app, ["evaluate", "run", "--no-baselines", "--json"])
    assert json.loads(done.stdout)["results"][0]["name"] == "ICLRec"


def test_bad_settings_are_refused() -> None:
    for name, value in (("num_intents", 1), ("lambda_intent", -0.1), ("mask_ratio", 1.0)):
        with pytest.raises(ConfigError, match=f"{name}={value}"):
            ICLRec(**{**SHAPE, name: value})
    with pytest.raises(ConfigError, match="num_intents=40: k-means needs more histories"):
        ICLRec(**{**SHAPE, "num_intents": 40}).begin_training(SPLIT)
    with pytest.raises(ValueError, match=r"call begin_training\(split\) before the first epoch"):
        ICLRec(**SHAPE).begin_epoch(0)
    workers: Any = None
    with pytest.raises(ConfigError, match="shard_items=True: iclrec encodes several times"):
        ICLRec(**SHAPE, loss="full_ce").split_items(workers)
