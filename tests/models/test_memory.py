"""A memory of transitions: counted, fitted, kept with a model, added by everything that ranks."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_memory_topk import transitions as random_weights
from typer.testing import CliRunner

from adarec_fast import ADARec, Recommender, TrainConfig, synthetic
from adarec_fast.cli import app
from adarec_fast.data import EvaluationBatches, InteractionData, Split
from adarec_fast.experiments.comparison_table import markdown
from adarec_fast.experiments.definition import Sweep, run_name
from adarec_fast.experiments.result import measure, read_ranks
from adarec_fast.experiments.runner import run_sweep
from adarec_fast.models.memory import TENSORS, VALUES, Memory
from adarec_fast.models.pretrained import CheckpointError
from adarec_fast.models.pretrained import load as load_model
from adarec_fast.models.sasrec.model import SASRec
from adarec_fast.models.transitions import Recipe, transitions
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.ranking.fitting import fit_memory
from adarec_fast.ranking.recommender import exportable
from adarec_fast.training import load_run, train
from adarec_fast.training.remember import remember
from adarec_fast.training.run_folder import fingerprint
from adarec_fast.training.values import Values

SMALL = {"hidden_size": 16, "num_layers": 1, "dropout": 0.1, "max_length": 12}


@pytest.fixture(scope="module")
def data() -> InteractionData:
    return synthetic(num_users=80, num_items=60, seed=3)


def memory_of(split: Split, **options: float) -> Memory:
    return Memory.of(*split.inputs("train"), split.num_items, max_length=12, **options)


def test_transitions_by_hand() -> None:
    # Pairs 1-2 twice (once each way round a 3), 2-3, 1-3 at distance 2.
    values, offsets = torch.tensor([1, 2, 3, 2, 1]), torch.tensor([0, 3, 5])
    found = transitions(values, offsets, 4, Recipe(window=2), 10)
    dense = torch.zeros(5, 5, dtype=torch.float64)
    # Forward: 1/d, one more at d = 1; backward: half of 1/d.
    for i, j, d in ((1, 2, 1), (2, 3, 1), (1, 3, 2), (2, 1, 1)):
        dense[i, j] += 1 / d + (d == 1)
        dense[j, i] += 0.5 / d
    seen = torch.tensor([1, 2, 2, 1, 1]).double()  # of items 0 to 4, at least 1
    dense /= dense.sum(1, keepdim=True).clamp(min=1e-9) ** 0.5 * seen**0.3
    row = torch.repeat_interleave(torch.arange(5), found.rows.diff())
    assert torch.equal(dense.nonzero(), torch.stack([row, found.items.long()], 1))
    torch.testing.assert_close(found.weights.double(), dense[dense > 0])


def test_the_best_neighbours_stay_in_the_order_of_items(data: InteractionData) -> None:
    values, offsets = Split(data).inputs("train")
    whole = transitions(values, offsets, data.num_items, Recipe(), 1000)
    few = transitions(values, offsets, data.num_items, Recipe(), 3)
    for item in range(data.num_items + 1):
        all_of = slice(*whole.rows[item : item + 2].tolist())
        some = slice(*few.rows[item : item + 2].tolist())
        best = whole.weights[all_of].argsort(descending=True, stable=True)[:3].sort().values
        assert torch.equal(few.items[some], whole.items[all_of][best])
        assert torch.equal(few.weights[some], whole.weights[all_of][best])


def test_sums_by_hand() -> None:
    rows = torch.tensor([0, 0, 2, 3, 3, 3])
    memory = Memory(
        rows, torch.tensor([2, 4, 4], dtype=torch.int32), torch.tensor([1.0, 2.0, 3.0]),
        alpha=1.0, gamma=1.0, decay=0.5, max_length=3,
    )  # fmt: skip
    history = torch.tensor([1, 1, 2, 3])
    sums = memory.sums(history[1:], torch.tensor([0, 3]))
    # Of the last three: 1 two steps back, 2 one step back.
    assert sums.tolist() == [[0, 0, 0.25, 0, 0.25 * 2 + 0.5 * 3]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.tensor([0, 1, 0, 3])}, "rows must be"),
        ({"rows": torch.tensor([0, 1, 2, 3])}, r"begin with 0, 0"),
        ({"rows": torch.tensor([0, 0, 2, 2])}, "end at 3"),
        ({"rows": torch.tensor([0, 0, 2, 3], dtype=torch.int32)}, "rows is torch.int32"),
        ({"neighbours": torch.tensor([1, 3, 2], dtype=torch.int32)}, r"must lie in 1\.\.2"),
        ({"weights": torch.ones(2)}, "weights has 2 entries, neighbours 3"),
        ({"weights": torch.tensor([1.0, -1.0, 1.0])}, "weights must be finite and at least 0"),
        ({"alpha": float("nan")}, "alpha=nan must be a finite number"),
        ({"decay": "0.8"}, "decay='0.8' must be a finite number"),
        ({"max_length": 0}, "max_length=0 must be a whole number"),
        ({"most": 0}, "most=0 must be a whole number"),
    ],
)
def test_what_is_no_memory(change: dict[str, object], message: str) -> None:
    given = {
        "rows": torch.tensor([0, 0, 2, 3]),
        "neighbours": torch.tensor([1, 2, 1], dtype=torch.int32),
        "weights": torch.ones(3), "alpha": 1.0, "gamma": 1.0, "decay": 0.8, "max_length": 5,
    }  # fmt: skip
    Memory(**given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        Memory(**{**given, **change})  # type: ignore[arg-type]


def with_memory(data: InteractionData, kind: type = SASRec, **options: object) -> ADARec | SASRec:
    model = kind(num_items=data.num_items, **SMALL, **options).eval()
    model.item_vocabulary = data.items
    model.memory = memory_of(Split(data), alpha=0.3, gamma=50.0)
    return model


def scores_by_definition(model: ADARec | SASRec, split: Split) -> torch.Tensor:
    """Of the validation part's users, in float64; what was seen is left in."""
    batch = next(iter(EvaluationBatches(split, "valid", batch_size=1000, max_length=12)))
    memory, scores = model.memory, model.scores(batch).double()
    assert memory is not None
    matrix = memory.reads().dense().double()
    offsets = batch.offsets.tolist()
    for user in range(len(offsets) - 1):
        history = batch.item_ids[offsets[user] : offsets[user + 1]].tolist()
        sums = sum(memory.decay**b * matrix[i] for b, i in enumerate(reversed(history)))
        scores[user] += memory.alpha * torch.log1p(memory.gamma * sums)
    return scores


@pytest.mark.parametrize("kind", [ADARec, SASRec])
def test_everything_that_ranks_adds_it(kind: type, data: InteractionData) -> None:
    split = Split(data)
    model = with_memory(data, kind)
    wanted = scores_by_definition(model, split)
    values, offsets = split.inputs("valid")
    for user in range(split.num_users):
        wanted[user, values[offsets[user] : offsets[user + 1]]] = float("-inf")
    best = wanted.topk(5, dim=1)
    histories = [values[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    rankings = {
        "recommender": Recommender(model).recommend(histories, 5)[:2],
        "one by one": [
            torch.cat(parts)
            for parts in zip(
                *(Recommender(model).recommend([one], 5)[:2] for one in histories), strict=True
            )
        ],
        "model": model.recommend(histories, k=5),
    }
    read = torch.cat([torch.tensor(one[-12:]) for one in histories])
    ends = torch.tensor([0] + [min(12, len(one)) for one in histories]).cumsum(0)
    with torch.no_grad():
        items, _ = exportable(model, k=5)(read, ends)
    short = torch.tensor([len(one) <= 12 for one in histories])  # others saw more than it masks
    assert torch.equal(items[short], best.indices[short])
    for name, (items, scores) in rankings.items():
        assert torch.equal(items, best.indices), name
        torch.testing.assert_close(scores.double(), best.values, rtol=1e-5, atol=1e-5)
    targets = split.targets("valid")
    ranks = 1 + (wanted > wanted.gather(1, targets[:, None])).sum(1)
    found = evaluate(model, split, "valid", intents=False).ranks
    reachable = found < 1000
    assert torch.equal(found[reachable], ranks[reachable])


def test_the_model_alone_is_what_it_was(data: InteractionData) -> None:
    model, split = with_memory(data), Split(data)
    batch = next(iter(EvaluationBatches(split, "valid", batch_size=7, max_length=12)))
    names = set(model.state_dict())
    scores = model.scores(batch)
    model.memory = None
    assert torch.equal(model.scores(batch), scores)
    assert names == set(model.state_dict())


def test_fitting_finds_the_best_pair(data: InteractionData) -> None:
    """Against an evaluation of each pair."""
    split = Split(data)
    model = with_memory(data)
    memory, model.memory = model.memory, None
    alone = evaluate(model, split, "valid", intents=False).overall["NDCG@20"]
    assert memory is not None
    unit = fit_memory(model, memory, split, alphas=(1.0,), gammas=(1.0,)).gamma
    fitted = fit_memory(model, memory, split, alphas=(0.0, 0.1, 0.5), gammas=(1.0, 10.0))
    assert fitted.before == pytest.approx(alone)
    assert (memory.alpha, memory.gamma) == fitted[:2]
    model.memory, results = memory, {}
    for pair in itertools.product((0.0, 0.1, 0.5), (unit, 10 * unit)):
        memory.alpha, memory.gamma = pair
        results[pair] = evaluate(model, split, "valid", intents=False).overall["NDCG@20"]
    assert results[fitted[:2]] == pytest.approx(fitted.after)
    assert max(results.values()) == pytest.approx(fitted.after)
    assert fitted.after > fitted.before


def test_a_model_without_memory_to_gain_from_gets_none(data: InteractionData) -> None:
    """Where nothing is counted, alpha is 0."""
    split = Split(data)
    model = SASRec(num_items=data.num_items, **SMALL)
    nothing = Memory.of(
        torch.zeros(0, dtype=torch.int64), torch.tensor([0]), data.num_items, max_length=12
    )
    fitted = fit_memory(model, nothing, split)
    assert fitted.alpha == 0
    assert fitted.before == fitted.after
    assert model.training


def test_kept_with_the_model(data: InteractionData, tmp_path: Path) -> None:
    model = with_memory(data)
    model.save_pretrained(tmp_path / "model")
    again = SASRec.from_pretrained(tmp_path / "model")
    assert again.memory is not None
    assert model.memory is not None
    assert again.memory.reads()[3:] == model.memory.reads()[3:]
    for one, other in zip(again.memory.reads()[:3], model.memory.reads()[:3], strict=True):
        assert torch.equal(one, other)
    model.memory = None
    model.save_pretrained(tmp_path / "model")
    assert SASRec.from_pretrained(tmp_path / "model").memory is None


def test_damaged_files_are_named(data: InteractionData, tmp_path: Path) -> None:
    model = with_memory(data)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tensors, values = load_file(folder / TENSORS), json.loads((folder / VALUES).read_text())

    def complaint() -> str:
        with pytest.raises(CheckpointError) as caught:
            load_model(folder)
        return str(caught.value)

    (folder / VALUES).write_text("{")
    assert VALUES in complaint()
    (folder / VALUES).write_text(json.dumps({**values, "alpha": -1}))
    assert "alpha=-1 must be a finite number" in complaint()
    (folder / VALUES).write_text(json.dumps({"alpha": 1}))
    assert "must hold alpha, decay, gamma, kind, max_length" in complaint()
    (folder / VALUES).write_text(json.dumps(values))
    save_file({**tensors, "rows": tensors["rows"][:-1]}, folder / TENSORS)
    assert TENSORS in complaint()
    other = random_weights(torch.Generator().manual_seed(0))
    parts = {"rows": other.rows, "neighbours": other.neighbours, "weights": other.weights}
    save_file(parts, folder / TENSORS)
    assert f"of 45 items; the model has {data.num_items}" in complaint()
    (folder / TENSORS).write_bytes(b"no")
    assert "not a whole safetensors file" in complaint()


def test_a_memory_of_before_there_were_kinds(data: InteractionData, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with_memory(data).save_pretrained(folder)
    values = json.loads((folder / VALUES).read_text())
    assert values.pop("kind") == "transitions"
    (folder / VALUES).write_text(json.dumps(values))
    assert SASRec.from_pretrained(folder).memory.kind == "transitions"
    (folder / VALUES).write_text(json.dumps({**values, "kind": "counts"}))
    with pytest.raises(CheckpointError, match="kind='counts' is not known; there are regression"):
        load_model(folder)


@pytest.mark.parametrize("kind", ["regression", "transitions"])
def test_training_ends_with_a_memory(kind: str, data: InteractionData, tmp_path: Path) -> None:
    config = TrainConfig(epochs=2, batch_size=64, device="cpu")
    run_dir = tmp_path / "run"
    options = {"model": "sasrec", **SMALL, "memory": kind, "memory_neighbours": 9}
    train(options, config, data, run_dir)
    run = load_run(run_dir)
    assert run.model.memory is not None
    assert run.model.memory.widest <= 9
    assert run.model.memory.kind == kind
    wanted = Memory.of(
        *run.split.inputs("train"), data.num_items, max_length=12, kind=kind, neighbours=9
    )
    assert torch.equal(run.model.memory.weights, wanted.weights)
    assert run.model.memory.decay == wanted.decay
    manifest = json.loads((run_dir / "best" / "manifest.json").read_text())
    found = evaluate(run.model, run.split, "valid", intents=False).overall["NDCG@20"]
    assert found == pytest.approx(manifest["memory"]["after"])
    assert manifest["metric"] == pytest.approx(manifest["memory"]["before"])
    # A run that is over is left alone, and one of more epochs keeps or renews it.
    before = (run_dir / "best" / TENSORS).stat().st_mtime_ns
    train(options, config, data, run_dir, resume=True)
    assert (run_dir / "best" / TENSORS).stat().st_mtime_ns == before
    train(options, config.replace(epochs=3), data, run_dir, resume=True)
    assert load_run(run_dir).model.memory is not None


def test_a_run_of_before_gets_one_by_command(data: InteractionData, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train(
        {"model": "sasrec", **SMALL}, TrainConfig(epochs=1, batch_size=64, device="cpu"), data,
        run_dir,
    )  # fmt: skip
    assert load_run(run_dir).model.memory is None
    weights = (run_dir / "best" / "model.safetensors").read_bytes()
    done = CliRunner().invoke(app, ["memory", "fit", str(run_dir), "--neighbours", "7"])
    assert done.exit_code == 0, done.output
    assert "valid NDCG@20" in done.output
    memory = load_run(run_dir).model.memory
    assert memory is not None
    assert memory.widest <= 7
    assert memory.kind == "regression"
    done = CliRunner().invoke(app, ["memory", "fit", str(run_dir), "--kind", "transitions"])
    assert done.exit_code == 0, done.output
    memory = load_run(run_dir).model.memory
    assert memory is not None
    assert memory.kind == "transitions"
    assert (run_dir / "best" / "model.safetensors").read_bytes() == weights
    unknown = CliRunner().invoke(app, ["memory", "fit", str(run_dir), "--kind", "counts"])
    assert unknown.exit_code == 2
    assert "--kind='counts' is not known; there are regression, transitions" in unknown.output
    nobody = CliRunner().invoke(app, ["memory", "fit", str(tmp_path / "nowhere")])
    assert nobody.exit_code == 2
    assert not (tmp_path / "nowhere").exists()


def test_kept_ranks_are_not_those_of_another_memory(data: InteractionData, tmp_path: Path) -> None:
    sweep = Sweep.create(
        Values(model={"model": "sasrec", **SMALL}, train={"epochs": 1, "device": "cpu"}),
        grid={"seed": [0]},
    )
    run_sweep(sweep, tmp_path)
    run_dir = tmp_path / run_name(sweep.combinations[0])
    run = load_run(run_dir)
    asked = run_dir, fingerprint(run.data), "neg-inf"
    assert read_ranks(*asked) is not None
    remember(run_dir)
    assert read_ranks(*asked) is None


def test_a_result_says_what_the_memory_gave(data: InteractionData, tmp_path: Path) -> None:
    values = Values(
        model={"model": "sasrec", "memory": "transitions", **SMALL},
        train={"epochs": 1, "device": "cpu"},
    )
    sweep = Sweep.create(values, grid={"seed": [0]})
    run_sweep(sweep, tmp_path)
    run = load_run(tmp_path / run_name(sweep.combinations[0]))
    figures, ranks = measure(run)
    assert figures["memory_seconds"] > 0
    assert run.model.memory is not None
    with_it = {part: figures[part] for part in figures["without_memory"]}
    run.model.memory = None
    alone, plain = measure(run)
    assert "without_memory" not in alone
    assert figures["without_memory"] == {part: alone[part] for part in with_it} != with_it
    assert not torch.equal(ranks["test"], plain["test"])
    entry = {"data": "shop", "arm": "best"}
    report = {
        "arms": {"best": {}, "alone": {}}, "baseline": "best",
        "data": {"shop": dict.fromkeys(("users", "sparse_users", "items"), 1)},
        "runs": [{**entry, **figures}, {**entry, "arm": "alone", **alone}], "missing": [],
        "diverged": [], "differences": [], "confidence": 0.95, "resamples": 1, "notes": [],
        "versions": {"torch": "", "adarec_fast": ""}, "date": "",
        "machine": {"cpu": "", "cores": 2},
    }  # fmt: skip
    for row in report["runs"]:
        row["status"] = "finished"
    text = markdown(report, "test")
    (line,) = re.findall(r"\| memory left out .*\n\| ---.*\n((?:\|.*\n)+)", text)
    assert line.startswith(f"| best | 1 | {alone['test']['NDCG@20']:.4f} |")
    assert line.count("\n") == 1
