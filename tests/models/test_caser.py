"""Caser: by hand, against torch's own convolutions, and by the usual commands."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_shares import check_shares
from helpers_systems import ask_a_service, follow_commands
from helpers_training import DATA, config, outcome
from torch import Tensor, nn
from typer.testing import CliRunner

from adarec_fast import Recommender, rng
from adarec_fast.cli import app
from adarec_fast.config import ConfigError
from adarec_fast.data import DataError, EvaluationBatches, Split, TrainingBatches
from adarec_fast.export import ExportOptions, export_run
from adarec_fast.models.caser.model import Caser, last_items
from adarec_fast.models.pretrained import load as load_model
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.training import load_run, train

SPLIT = Split(DATA)
SHAPE: dict[str, Any] = {
    "num_items": DATA.num_items, "hidden_size": 8, "max_length": 4, "seed": 3,
    "horizontal_filters": 6, "backend": "packed",
}  # fmt: skip
MODEL: dict[str, Any] = {
    "model": "caser", "hidden_size": 8, "max_length": 4, "backend": "packed",
}
WINDOWS: dict[str, Any] = {"supervision": "windows", "window_targets": 4}


def batches(supervision: Any = "prefix", targets: int = 1, size: int = 32) -> TrainingBatches:
    return TrainingBatches(
        *SPLIT.inputs("train"), supervision=supervision, window_targets=targets, batch_size=size,
        max_length=4, seed=0,
    )  # fmt: skip


def made(**options: Any) -> Caser:
    model = Caser(**{**SHAPE, **options}).double().train()
    model.prepare(SPLIT)
    model.begin_training(SPLIT)
    return model.double()


def windows_of(
    history: list[int], length: int, targets: int
) -> list[tuple[list[int], list[int]]]:
    """Inputs and targets of the windows of one history beside a longer one, in order."""
    longer = list(range(50, 100))
    values = torch.tensor(history + longer)
    found = TrainingBatches(
        values, torch.tensor([0, len(history), len(values)]), supervision="windows",
        window_targets=targets, batch_size=200, max_length=length, seed=0,
    )  # fmt: skip
    batch = next(iter(found.epoch(0)))
    inputs = [batch.item_ids[a:b].tolist() for a, b in batch.offsets.unfold(0, 2, 1).tolist()]
    rows = zip(inputs, batch.targets.tolist(), batch.users.tolist(), strict=True)
    return sorted((row, own) for row, own, user in rows if user == 0)


def test_windows_by_hand() -> None:
    assert windows_of([1, 2, 3], 5, 3) == [([], [1, 2, 3])]
    assert windows_of([1, 2], 5, 3) == [([], [0, 1, 2])]
    assert windows_of([1, 2, 3, 4], 2, 1) == [([1, 2], [3]), ([2, 3], [4])]
    assert windows_of([1, 2, 3, 4, 5], 3, 3) == [([1, 2], [3, 4, 5])]
    for number in range(1, 13):
        assert len(windows_of(list(range(1, number + 1)), 5, 3)) == max(1, number - 7)
    assert windows_of([], 5, 3) == []


def test_windows_without_an_input_are_refused() -> None:
    values, offsets = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 3, 5])
    with pytest.raises(DataError, match=r"window_targets=3: no training history .* at most 2"):
        TrainingBatches(
            values, offsets, supervision="windows", window_targets=3, batch_size=2, max_length=4,
            seed=0,
        )  # fmt: skip


def test_last_items_stand_at_the_right() -> None:
    values, offsets = torch.tensor([1, 2, 3, 4, 5, 6, 0, 0]), torch.tensor([0, 4, 4, 6])
    assert last_items(values, offsets, 3).tolist() == [[2, 3, 4], [0, 0, 0], [0, 5, 6]]


def test_sizes() -> None:
    model = Caser(num_items=20, hidden_size=50)
    counts = [
        sum(parameter.numel() for parameter in part.parameters())
        for part in (model.vertical, model.horizontal, model.hidden)
    ]
    assert counts == [24, 12_080, 14_050]
    assert model.hidden.in_features == 280
    assert model.output.shape == (21, 50)
    assert Caser(num_items=20, user_embeddings=True).output.shape == (21, 128)


def test_filters_by_hand() -> None:
    model = Caser(
        num_items=4, hidden_size=2, max_length=2, vertical_filters=1, horizontal_filters=1
    ).eval()
    with torch.no_grad():
        for part in (model.vertical, *model.horizontal):
            assert isinstance(part, nn.Linear)
            part.weight.fill_(1.0)
            part.bias.zero_()
        model.vertical.weight.copy_(torch.tensor([[1.0, -1.0]]))
        for sign, wanted in ((1.0, [-2, -2, 7, 10]), (-1.0, [2, 2, 0, 0])):
            model.item_embedding.weight[1:3] = sign * torch.tensor([[1.0, 2.0], [3.0, 4.0]])
            assert model._features(torch.tensor([[1, 2]])).tolist() == [wanted]


@pytest.mark.parametrize("padding", [False, True])
def test_features_are_those_of_convolutions(padding: bool) -> None:
    model = Caser(**{**SHAPE, "num_items": 9}, trainable_padding=padding).double()
    ids = torch.tensor([[0, 0, 3, 9], [4, 4, 1, 2]])
    assert bool(model.item_embedding.weight[0].any()) == padding
    image = model.item_embedding.weight[ids][:, None]
    down = model.vertical.weight[:, None, :, None]
    wanted = [F.conv2d(image, down, model.vertical.bias).flatten(1)]
    for height, part in enumerate(model.horizontal, start=1):
        assert isinstance(part, nn.Linear)
        across = part.weight.view(6, 1, height, 8)
        met = F.relu(F.conv2d(image, across, part.bias).squeeze(3))
        wanted.append(F.max_pool1d(met, met.shape[2]).squeeze(2))
    torch.testing.assert_close(model._features(ids), torch.cat(wanted, 1))

    def of_table(table: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"item_embedding.weight": table}, (ids,))

    model.forward = model._features  # type: ignore[assignment]
    table = model.item_embedding.weight.detach().clone().requires_grad_()
    if padding:
        assert torch.autograd.gradcheck(of_table, (table,))
    else:  # row 0 is read, and gets none
        (gradient,) = torch.autograd.grad(of_table(table).square().sum(), table)
        assert not gradient[0].any()
        assert gradient[3].abs().min() > 0


def test_only_the_last_items_count() -> None:
    model = Caser(**SHAPE).eval()
    long, other = torch.tensor([[9, 1, 2, 3, 4]]), torch.tensor([[8, 7, 1, 2, 3, 4]])
    assert torch.equal(model(long), model(other))
    other[0, -4] = 5
    assert not torch.equal(model(long), model(other))


@pytest.mark.parametrize(("loss", "start"), [("original", 2 * math.log(2)), ("full_ce", None)])
@pytest.mark.parametrize("options", [{}, WINDOWS])
def test_the_loss_of_no_knowledge(loss: Any, start: float | None, options: dict[str, Any]) -> None:
    model = made(loss=loss, **options)
    nn.init.zeros_(model.output)
    batch = next(iter(batches(*options.values()).epoch(0)))
    expected = math.log(DATA.num_items) if start is None else start
    assert float(model.loss(batch).total.detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("options", [{}, WINDOWS])
def test_both_losses_by_a_dense_table(options: dict[str, Any]) -> None:
    batch = next(iter(batches(*options.values()).epoch(0)))
    targets = batch.targets.view(batch.users.shape[0], -1)
    there = targets > 0
    assert bool(there.all()) == (not options)  # some windows have fewer
    for loss in ("original", "full_ce"):
        model = made(loss=loss, dropout=0.0, **options)
        draws = rng.at_place(model.noise_seed)
        x = model._users(batch.item_ids, batch.offsets, None, None)
        scores = x @ model.table().T
        if loss == "full_ce":
            rows = scores[:, 1:].log_softmax(1).gather(1, (targets - 1).clamp(min=0))
            wanted = -rows[there].mean()
        else:
            assert model.negatives is not None
            drawn = model.negatives(draws, batch.users, 0, 3)
            wanted = F.softplus(-scores.gather(1, targets)[there]).mean()
            wanted = wanted + F.softplus(scores.gather(1, drawn)).mean()
        torch.testing.assert_close(model.loss(batch).total, wanted)


@pytest.mark.parametrize("loss", ["original", "full_ce"])
def test_shares_are_the_whole_batch(loss: Any) -> None:
    options: dict[str, Any] = {**WINDOWS, "loss": loss, "user_embeddings": True}
    check_shares(batches("windows", 4), lambda: made(**options))


def test_vectors_of_users_are_read_in_evaluation_alone() -> None:
    model = made(user_embeddings=True).eval()
    assert model.config.num_users == DATA.num_users
    batch = next(iter(EvaluationBatches(SPLIT, "test", batch_size=5, max_length=4)))
    assert model.user_embedding is not None
    own = model.user_embedding.weight @ model.output[:, 8:].T
    found = model.scores(batch)
    nobody = model.scores(batch._replace(users=torch.full((5,), -1)))
    torch.testing.assert_close((found - nobody)[:, 1:], own[batch.users][:, 1:])
    torch.testing.assert_close(nobody, model.score(model.represent(*batch[:2])))
    # A request names no user: whatever its row, it is nobody's.
    model.float()
    histories = [[5, 7, 2], [4]]
    ranking = Recommender(model).recommend(histories, k=4)
    assert torch.equal(ranking.items, model.recommend(histories, k=4)[0])


@pytest.mark.parametrize("backend", ["auto", "packed", "reference"])
def test_recommendations_are_its_scores(backend: Any) -> None:
    model = Caser(**{**SHAPE, "backend": backend}).eval()
    histories = [[5, 7, 2], [4], list(range(1, 14))]
    with torch.no_grad():
        model.output_bias.copy_(torch.linspace(-1.0, 1.0, DATA.num_items + 1))
        items, scores = model.recommend(histories, k=4)
        for row, history in enumerate(histories):
            logits = model.score(model(torch.tensor([history])))[0]
            logits[history] = -torch.inf
            best = logits.topk(4)
            assert torch.equal(items[row], best.indices)
            torch.testing.assert_close(scores[row], best.values, rtol=1e-5, atol=1e-6)
    assert torch.equal(Recommender(model).recommend(histories, k=4).items, items)


def test_its_graph_gives_what_it_gives() -> None:
    model = Caser(**SHAPE).train()
    values, offsets = torch.tensor([5, 7, 2, 4, *range(1, 5)]), torch.tensor([0, 3, 4, 8])
    graph = model.user_graph()
    found = graph(torch.tensor([[5, 7, 2, 0], [4, 0, 0, 0], [1, 2, 3, 4]]))
    wanted, clear = graph.settled(values, offsets)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert clear.all()


@pytest.mark.slow
def test_it_is_exported(tmp_path: Path) -> None:
    train(MODEL, config(epochs=1), DATA, tmp_path / "run")
    run = load_run(tmp_path / "run")
    (made,) = export_run(run, tmp_path / "export", ["torch"], ExportOptions(k=5, users=20))
    assert made.outcome.users == 24


def test_it_resumes_to_the_same_bits_and_keeps_its_users(tmp_path: Path) -> None:
    options = {**MODEL, **WINDOWS, "loss": "original", "user_embeddings": True}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(options, config(batch_size=16), DATA, whole)
    train(options, config(batch_size=16), DATA, parts, stop_after_steps=5)
    train(options, config(batch_size=16), DATA, parts, resume=True)
    assert outcome(whole) == outcome(parts)
    run = load_run(whole)
    assert run.history[-1]["loss"] == run.history[-1]["loss_rec"]
    model = load_model(whole / "best")
    assert isinstance(model, Caser)
    assert model.user_embedding is not None
    assert model.user_embedding.weight.shape == (DATA.num_users, 8)
    assert evaluate(run.model, run.split).name == "Caser"


def test_the_commands_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = follow_commands(
        "caser", "--max-length", "3", "--loss", "original", "--negatives", "2",
        "--supervision", "windows", "--user-embeddings",
    )  # fmt: skip
    assert result["name"] == "Caser"
    runner = CliRunner()
    refused = runner.invoke(app, ["export", "run", "--format", "ann"])
    assert "an export needs vectors" in " ".join(refused.output.split())
    refused = runner.invoke(app, [
        "train", "--model", "caser", "--data", "data.txt", "--run-dir", "other", "--supervision",
        "windows", "--window-targets", "200",
    ])  # fmt: skip
    assert refused.exit_code != 0
    assert "window_targets=200" in refused.output
    assert not Path("other/config.json").exists()


def test_a_service_answers(tmp_path: Path) -> None:
    ask_a_service(MODEL, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"supervision": "all"}, "supervision='all': the model caser takes 'prefix' or 'windows'"),
        ({"window_targets": 2}, "window_targets=2: a prefix has one target"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_length": 300}, "max_length=300"),
        ({"negatives": 0}, "negatives=0"),
        ({"dropout": 1.0}, "dropout=1"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Caser(**{**SHAPE, **options})


def test_what_others_ask_of_it_is_refused_in_words() -> None:
    workers: Any = None
    with pytest.raises(ConfigError, match="shard_items=True: Caser"):
        Caser(**SHAPE).split_items(workers)
    with pytest.raises(ConfigError, match=r"num_users=7, but .* has 40 users"):
        Caser(**SHAPE, user_embeddings=True, num_users=7).prepare(SPLIT)
    batch = next(iter(batches().epoch(0)))
    with pytest.raises(ValueError, match=r"takes \[32, 4\]"):
        Caser(**SHAPE, **WINDOWS).loss(batch)
    with pytest.raises(ValueError, match=r"call begin_training\(split\)"):
        Caser(**SHAPE, loss="original").train().loss(batch)
