"""SASRec as a system of its own: the same commands train, rank, serve, export and resume it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import DATA, config, outcome
from torch import Tensor
from typer.testing import CliRunner

from adarec_fast import ADARec, Recommender
from adarec_fast.cli import app
from adarec_fast.config import ConfigError
from adarec_fast.data import EvaluationBatches, Split, TrainingBatches
from adarec_fast.export import ExportOptions, export_run
from adarec_fast.models import pretrained
from adarec_fast.models.pretrained import CheckpointError
from adarec_fast.models.sasrec.model import SASRec
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.training import load_run, train

SHAPE: dict[str, Any] = {
    "num_items": DATA.num_items, "hidden_size": 16, "num_layers": 2, "max_length": 10, "seed": 3,
}  # fmt: skip
MODEL: dict[str, Any] = {
    "model": "sasrec", "hidden_size": 16, "num_layers": 1, "max_length": 10, "backend": "packed",
}  # fmt: skip
ALONE: dict[str, Any] = {"depth": "fixed", "diffusion": False, "moe": False}


def batch_of(supervision: str) -> Any:
    batches = TrainingBatches(
        *Split(DATA).inputs("train"), supervision=supervision, batch_size=32, max_length=10, seed=0
    )
    return next(iter(batches.epoch(0)))


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("supervision", ["prefix", "all"])
@pytest.mark.parametrize("backend", ["auto", "packed", "reference"])
def test_it_is_adarecs_backbone_to_the_last_bit(supervision: str, backend: str) -> None:
    smoothing = 0.1 if backend == "packed" else 0.0
    options = {
        **SHAPE, "supervision": supervision, "backend": backend, "label_smoothing": smoothing,
    }  # fmt: skip
    mine, theirs = SASRec(**options), ADARec(**options, **ALONE)
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, mine.state_dict()[name]), name
    batch = batch_of(supervision)
    found, expected = mine.train().loss(batch), theirs.train().loss(batch)
    assert torch.equal(found.total, expected.total)
    found.total.backward()
    expected.total.backward()
    assert gradients(mine).keys() == gradients(theirs).keys()
    for name, gradient in gradients(theirs).items():
        torch.testing.assert_close(gradients(mine)[name], gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("system", [SASRec, partial(ADARec, lambda_deno=0, lambda_cont=0)])
@pytest.mark.parametrize("supervision", ["prefix", "all"])
@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_a_smoothed_loss_is_the_plain_one_and_a_share_of_the_mean_cost(
    system: Any, supervision: str, precision: str
) -> None:
    options = {
        **SHAPE, "supervision": supervision, "precision": precision, "dropout": 0.0,
        "attention_dropout": 0.0,
    }  # fmt: skip
    batch = batch_of(supervision)
    found = {s: system(**options, label_smoothing=s).train().loss(batch) for s in (0.0, 0.2, 0.4)}
    rec = {s: float(loss.parts["rec"]) for s, loss in found.items()}
    # Linear in s; of weights that know nothing yet the cost of the target is that of any item.
    assert rec[0.2] - rec[0.0] == pytest.approx(rec[0.4] - rec[0.2], abs=2e-6)
    assert rec[0.2] != rec[0.0]
    totals = {s: float(loss.total.detach()) for s, loss in found.items()}
    assert totals[0.2] - totals[0.0] == pytest.approx(
        rec[0.2] - rec[0.0], abs=1e-6
    )


@pytest.mark.parametrize("backend", ["auto", "packed"])
def test_the_plan_gives_what_the_model_gives(backend: str) -> None:
    model = SASRec(**SHAPE, backend=backend).eval()
    plan = model.plan()
    assert plan is not None
    batch = next(iter(EvaluationBatches(Split(DATA), "test", batch_size=40, max_length=10)))
    with torch.no_grad():
        wanted = model.represent(batch.item_ids, batch.offsets)
        found = plan(batch.item_ids, batch.offsets)
    torch.testing.assert_close(found.vectors, wanted, rtol=1e-5, atol=1e-6)
    assert not found.diagnostics
    alone = Recommender(model).recommend([[5, 7]], k=4)
    items, scores = model.recommend([[5, 7]], k=4)
    assert torch.equal(alone.items, items)
    torch.testing.assert_close(alone.scores, scores)


def test_without_layers_and_on_the_reference() -> None:
    model = SASRec(**{**SHAPE, "num_layers": 0}, backend="packed").eval()
    histories = [[1, 2, 3], [4]]
    ranking = Recommender(model).recommend(histories, k=3)
    assert torch.equal(ranking.items, model.recommend(histories, k=3)[0])
    assert SASRec(**SHAPE, backend="reference").plan() is None


def test_it_trains_resumes_and_tells_of_its_loss_alone(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(MODEL, config(), DATA, whole)
    train(MODEL, config(), DATA, parts, stop_after_steps=5)
    train(MODEL, config(), DATA, parts, resume=True)
    assert outcome(whole) == outcome(parts)
    line = load_run(whole).history[-1]
    assert "loss_rec" in line
    assert not [name for name in line if "depth" in name or "gate" in name or "deno" in name]
    assert line["loss"] == line["loss_rec"]


def test_a_run_is_evaluated_recommended_from_and_exported(tmp_path: Path) -> None:
    train(MODEL, config(epochs=1), DATA, tmp_path)
    run = load_run(tmp_path)
    assert isinstance(run.model, SASRec)
    result = evaluate(run.model, run.split)
    assert result.name == "SASRec"
    assert result.nmi is None
    assert not result.notes
    assert not {"mean_depth", "gate"} & set(result.to_dict())
    made = export_run(
        run, tmp_path / "export", ["torch", "embeddings"], ExportOptions(k=5, users=20)
    )
    assert [entry.outcome.users for entry in made] == [30, 30]


def test_the_commands_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        f"{user} " + " ".join(map(str, DATA.sequence(user).tolist()))
        for user in range(DATA.num_users)
    ]
    Path("data.txt").write_text("\n".join(lines) + "\n")
    small = ["--hidden-size", "8", "--num-layers", "1", "--max-length", "10", "--device", "cpu"]
    runner = CliRunner()
    begun = ["train", "--model", "sasrec", "--data", "data.txt", "--run-dir", "run"]
    done = runner.invoke(app, [*begun, "--epochs", "1", *small])
    assert done.exit_code == 0, done.output
    assert "depth" not in done.output
    done = runner.invoke(app, ["train", "--run-dir", "run", "--resume", "--epochs", "2"])
    assert done.exit_code == 0, done.output
    done = runner.invoke(app, ["recommend", "run", "--user", "3", "--format", "json", "--k", "2"])
    (answer,) = json.loads(done.stdout)
    assert set(answer) == {"user", "history", "items"}
    done = runner.invoke(app, ["evaluate", "run", "--no-baselines", "--json"])
    assert json.loads(done.stdout)["results"][0]["name"] == "SASRec"
    refused = runner.invoke(app, [*begun[:-1], "other", "--max-depth", "2"])
    assert refused.exit_code != 0
    assert "sasrec" in refused.output
    assert "max_depth" in refused.output
    refused = runner.invoke(app, ["train", "--model", "adarec", "--run-dir", "run", "--resume"])
    assert refused.exit_code != 0
    assert "of the model sasrec" in refused.output


def test_its_folder_is_no_adarecs(tmp_path: Path) -> None:
    model = SASRec(**SHAPE)
    model.save_pretrained(tmp_path / "mine")
    assert json.loads((tmp_path / "mine/config.json").read_text())["model"] == "sasrec"
    again = pretrained.load(tmp_path / "mine")
    assert isinstance(again, SASRec)
    assert again.config == model.config
    with pytest.raises(CheckpointError, match="of the kind 'sasrec', not 'adarec'"):
        ADARec.from_pretrained(tmp_path / "mine")


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_heads=3"):
        SASRec(num_items=5, hidden_size=16, num_heads=3)
    for system in (SASRec, ADARec):
        with pytest.raises(ConfigError, match="label_smoothing=1"):
            system(num_items=5, label_smoothing=1)
    model = SASRec(**SHAPE)
    with pytest.raises(ValueError, match=r"targets has shape \[1\]"):
        model.loss(batch_of("prefix")._replace(targets=torch.ones(1, dtype=torch.int64)))
    with pytest.raises(ValueError, match="outside the catalogue"):
        model(torch.tensor([[9999]]))


def test_a_service_answers_without_a_depth(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    import asyncio

    from adarec_fast.serving import ServeConfig, Service, Source

    train(MODEL, config(epochs=1), DATA, tmp_path)
    service = Service(
        Source(tmp_path, "best", torch.device("cpu"), 1, 8), ServeConfig.create(max_batch=8)
    )
    service.start()
    request = service.request_type(user=DATA.users.ids[0], k=3)
    answer = asyncio.run(service.recommend(request))
    service.close()
    assert "depth" not in answer
    assert len(answer["items"]) == 3


@pytest.mark.parametrize("kind", [SASRec, ADARec])
def test_a_local_path_starts_as_nothing(kind: type[SASRec | ADARec]) -> None:
    """Its taps at zero, its LayerNorms at one, and all else drawn as without it."""
    model, plain = kind(**SHAPE, local_path=3), kind(**SHAPE, local_path=0)
    expected = {name: tensor for name, tensor in kind(**SHAPE).state_dict().items()}
    assert plain.state_dict().keys() == expected.keys()
    found = model.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(plain.state_dict()[name], tensor), name
        assert torch.equal(found.pop(name), tensor), name
    assert len(found) == 2 * 3
    for name, tensor in found.items():
        assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("norm.weight"))))
        assert tensor.shape == ((3, 16) if name.endswith("taps") else (16,))


def test_a_local_path_trains_ranks_and_is_exported(tmp_path: Path) -> None:
    train({**MODEL, "num_layers": 2, "local_path": 3}, config(), DATA, tmp_path)
    run = load_run(tmp_path)
    model = run.model
    assert isinstance(model, SASRec)
    assert len(model.backbone.local_paths) == 2
    for path in model.backbone.local_paths:
        assert path.taps.abs().amin() > 0  # every tap has learned
    assert evaluate(model, run.split).name == "SASRec"
    histories = [[5, 7, 2], [4], list(range(1, 11))]
    ranking = Recommender(model).recommend(histories, k=4)
    items, scores = model.recommend(histories, k=4)
    assert torch.equal(ranking.items, items)
    torch.testing.assert_close(ranking.scores, scores)
    (made,) = export_run(run, tmp_path / "export", ["torch"], ExportOptions(k=5, users=20))
    assert made.outcome.users == 30


def test_what_was_saved_before_local_paths_still_loads(tmp_path: Path) -> None:
    model = SASRec(**SHAPE).eval()
    model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields.pop("local_path") == 0
    (tmp_path / "config.json").write_text(json.dumps(fields))
    again = SASRec.from_pretrained(tmp_path)
    assert torch.equal(again(torch.tensor([[3, 9]])), model(torch.tensor([[3, 9]])))
