"""The training loop: run folders, exact resuming, early stopping, locks, reports."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from pathlib import Path

import pytest
import torch
from helpers_training import DATA, MODEL, TIMES, Recorder, config, outcome
from rich.console import Console

from adarec_fast import BackendError, ConfigError, synthetic
from adarec_fast.data import InteractionData, Split, Vocabulary
from adarec_fast.models.pretrained import CheckpointError
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.training import (
    PlainReporter,
    RichReporter,
    RunFolderError,
    StepProgress,
    TrainingPlan,
    TrainResult,
    load_run,
    make_reporter,
    train,
)
from adarec_fast.training.early_stopping import EarlyStopping
from adarec_fast.training.loop import resolve_device
from adarec_fast.training.metrics_log import flatten, read_metrics
from adarec_fast.training.reporter import epoch_lines
from adarec_fast.training.run_folder import locked


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A finished run of 2 epochs, not to be written to."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "done"
    return train(MODEL, config(), DATA, folder, data_source={"path": "x"}, command=["a", "b"])


def test_run_folder(done: TrainResult) -> None:
    names = {path.name for path in done.run_dir.iterdir()} - {"tensorboard"}
    assert names == {
        ".lock", "config.json", "environment.json", "interactions.safetensors", "users.json",
        "metrics.jsonl", "metrics.csv", "best", "last",
    }  # fmt: skip
    values = json.loads((done.run_dir / "config.json").read_text(encoding="utf-8"))
    assert values["model"]["num_items"] == 60
    assert values["train"]["epochs"] == 2
    assert values["data"]["source"] == {"path": "x"}
    (start,) = json.loads((done.run_dir / "environment.json").read_text(encoding="utf-8"))["starts"]
    assert start["torch"] == torch.__version__
    assert start["command"] == ["a", "b"]
    assert done.status == "finished"
    assert done.epochs == 2
    json.dumps(done.to_dict(), allow_nan=False)


def test_cut_offs_of_the_validation(tmp_path: Path) -> None:
    result = train(MODEL, config(ks="3,7", epochs=1), DATA, tmp_path)
    names = {f"{name}@{k}" for name in ("HR", "NDCG", "MRR", "Recall", "MAP") for k in (3, 7, 20)}
    assert result.history[0]["valid"].keys() == names
    assert result.best_metric == result.history[0]["valid"]["NDCG@20"]
    # They change nothing that is learned, so a run may go on with others.
    train(MODEL, config(ks="5", epochs=2), DATA, tmp_path, resume=True)
    assert read_metrics(tmp_path)[1]["valid"].keys() > {"HR@5", "HR@20"}
    with pytest.raises(ConfigError, match="ks='0': must be cut-offs of at least 1 with commas"):
        config(ks="0")


def test_metrics_of_every_epoch(done: TrainResult) -> None:
    lines = read_metrics(done.run_dir)
    assert lines == done.history
    assert [line["epoch"] for line in lines] == [1, 2]
    model = load_run(done.run_dir).model_config
    weights = (1, model.lambda_deno, model.lambda_cont, model.lambda_expl)
    for line in lines:
        parts = [line[f"loss_{name}"] for name in ("rec", "deno", "cont", "expl")]
        total = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        assert line["loss"] == pytest.approx(total, rel=1e-5)
        assert line["denoising_error"] == line["loss_deno"]
        assert 0 < line["depth_entropy"] <= math.log(3) + 1e-6
        assert sum(line["depth_share"]) == pytest.approx(1)
        expected = sum(depth * share for depth, share in enumerate(line["depth_share"]))
        assert line["mean_depth"] == pytest.approx(expected)
        assert all(0 < gate < 1 for gate in line["gate"])
        assert line["learning_rate"] == 1e-3
        assert all(line[name] > 0 for name in (*TIMES, "gradient_norm"))
        assert set(line["valid"]) == set(line["valid_sparse"])
        assert "NDCG@20" in line["valid"]
    with (done.run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, line in zip(rows, lines, strict=True):
        assert {name: text for name, text in row.items() if text} == {
            name: str(value) for name, value in flatten(line).items()
        }


def test_it_learns(tmp_path: Path) -> None:
    model = {**MODEL, "dropout": 0.0, "attention_dropout": 0.0}
    result = train(model, config(epochs=4, learning_rate=0.01), DATA, tmp_path)
    losses = [line["loss_rec"] for line in result.history]
    assert losses == sorted(losses, reverse=True)
    # Below the popularity of items alone: it has learnt what follows what.
    counts = torch.bincount(Split(DATA).inputs("train")[0], minlength=61)[1:].double() + 1e-9
    share = counts / counts.sum()
    assert losses[-1] < -float((share * share.log()).sum())


def test_tensorboard(done: TrainResult) -> None:
    name = "tensorboard.backend.event_processing.event_accumulator"
    events = pytest.importorskip(name, reason="tensorboard is not installed")
    board = events.EventAccumulator(str(done.run_dir / "tensorboard"))
    board.Reload()
    points = board.Scalars("valid/NDCG@20")
    assert [point.step for point in points] == [1, 2]
    assert points[1].value == pytest.approx(done.history[1]["valid"]["NDCG@20"])


def test_load_run(done: TrainResult) -> None:
    best = load_run(done.run_dir)
    assert not best.model.training
    assert torch.equal(best.data.values, DATA.values)
    assert best.data.items == DATA.items
    assert best.data.users == DATA.users
    assert torch.equal(best.data.labels.user_theme, DATA.labels.user_theme)
    assert best.train_config == config()
    assert best.history == done.history
    assert evaluate(best.model, best.split, "valid").overall["NDCG@20"] == done.best_metric
    last = load_run(done.run_dir, which="last", backend="reference")
    assert last.model.config.backend == "reference"
    assert last.model_config.backend == "packed"
    values = evaluate(last.model, last.split, "valid", intents=False).overall
    assert values == pytest.approx(done.history[-1]["valid"])


def test_load_run_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run"):
        load_run(tmp_path)
    with pytest.raises(ValueError, match="which='first'"):
        load_run(tmp_path, which="first")


def test_load_run_names_what_is_damaged(tmp_path: Path) -> None:
    train(MODEL, config(epochs=1), DATA, tmp_path)
    path = tmp_path / "best" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"best/model.safetensors: truncated or altered"):
        load_run(tmp_path)
    path.write_bytes(whole)
    data = tmp_path / "interactions.safetensors"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"interactions.safetensors: not a whole"):
        load_run(tmp_path)
    data.write_bytes(whole)
    # Two items change places: still a valid catalogue, but another one.
    other = DATA.replace(items=DATA.items.take(torch.tensor([2, 1, *range(3, 61)]).numpy()))
    items, manifest = tmp_path / "best" / "items.json", tmp_path / "best" / "manifest.json"
    items.write_text(json.dumps(other.items.to_json()), encoding="utf-8")
    values = json.loads(manifest.read_text(encoding="utf-8"))
    values["sha256"]["items.json"] = hashlib.sha256(items.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(CheckpointError, match="of another catalogue than the checkpoint"):
        load_run(tmp_path)


# ---------------------------------------------------------------------- resuming


@pytest.mark.parametrize("supervision", ["prefix", "all"])
def test_stopping_anywhere_and_resuming_changes_nothing(tmp_path: Path, supervision: str) -> None:
    model = {**MODEL, "supervision": supervision}
    chosen = config(batch_size=64 if supervision == "prefix" else 15)
    whole = train(model, chosen, DATA, tmp_path / "whole")
    parts, starts = tmp_path / "parts", 0
    while True:
        torch.rand(7)  # whatever else uses the global generator in between does not matter
        result = train(model, chosen, DATA, parts, resume=starts > 0, stop_after_steps=1)
        starts += 1
        if result.status == "finished":
            break
        assert result.steps == starts
    assert starts >= whole.steps > 4
    assert outcome(parts) == outcome(tmp_path / "whole")
    assert (result.best_epoch, result.best_metric) == (whole.best_epoch, whole.best_metric)
    again = train(model, chosen, DATA, parts, resume=True)
    assert (again.status, again.steps) == ("finished", whole.steps)
    assert outcome(parts) == outcome(tmp_path / "whole")


def test_more_epochs_may_be_asked_for(tmp_path: Path) -> None:
    whole = train(MODEL, config(epochs=3), DATA, tmp_path / "whole")
    train(MODEL, config(epochs=1), DATA, tmp_path / "parts")
    result = train(MODEL, config(epochs=3), DATA, tmp_path / "parts", resume=True)
    assert result.steps == whole.steps
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_lines_behind_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    train(MODEL, config(epochs=1), DATA, tmp_path)
    path = tmp_path / "metrics.jsonl"
    line = path.read_text(encoding="utf-8")
    # A process that died after writing epoch 2's line, in the middle of epoch 3's.
    path.write_text(line + line.replace('"epoch": 1', '"epoch": 2') + line[:30], encoding="utf-8")
    train(MODEL, config(epochs=1), DATA, tmp_path, resume=True)
    assert path.read_text(encoding="utf-8") == line
    path.write_text("", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"one line for each of the epochs 1..1"):
        train(MODEL, config(epochs=1), DATA, tmp_path, resume=True)
    path.write_text("not json\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"metrics.jsonl:1: does not parse"):
        train(MODEL, config(epochs=1), DATA, tmp_path, resume=True)


def test_resuming_something_else_is_refused(tmp_path: Path) -> None:
    train(MODEL, config(epochs=1), DATA, tmp_path)
    with pytest.raises(RunFolderError, match="holds a run already"):
        train(MODEL, config(), DATA, tmp_path)
    with pytest.raises(CheckpointError, match=r"model.max_depth is 2 there and 3 now"):
        train({**MODEL, "max_depth": 3}, config(), DATA, tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"train.batch_size is 64 there and 32 now"):
        train(MODEL, config(batch_size=32), DATA, tmp_path, resume=True)
    other = synthetic(num_users=40, num_items=60, num_themes=3, subthemes_per_theme=2, seed=3)
    with pytest.raises(CheckpointError, match="trained on other data"):
        train(MODEL, config(), other, tmp_path, resume=True)


def test_a_checkpoint_of_another_catalogue_is_refused(tmp_path: Path) -> None:
    train(MODEL, config(epochs=1), DATA, tmp_path / "a")
    names = [f"other {i}" for i in range(60)]
    other: InteractionData = DATA.replace(items=Vocabulary(names, first=1))
    train(MODEL, config(epochs=1), other, tmp_path / "b")
    (tmp_path / "b" / "last").rename(tmp_path / "b" / "kept")
    (tmp_path / "a" / "last").rename(tmp_path / "b" / "last")
    with pytest.raises(CheckpointError, match=r"last: of another catalogue"):
        train(MODEL, config(epochs=1), other, tmp_path / "b", resume=True)


def test_same_seeds_same_weights(done: TrainResult, tmp_path: Path) -> None:
    train(MODEL, config(), DATA, tmp_path / "same")
    assert outcome(tmp_path / "same") == outcome(done.run_dir)
    train({**MODEL, "seed": 1}, config(), DATA, tmp_path / "weights")
    assert outcome(tmp_path / "weights")[0] != outcome(done.run_dir)[0]
    train(MODEL, config(seed=1), DATA, tmp_path / "order")
    assert outcome(tmp_path / "order")[0] != outcome(done.run_dir)[0]


# ---------------------------------------------------------------------- stopping


def test_early_stopping_by_hand() -> None:
    stopping = EarlyStopping(patience=2)
    best = [stopping.update(v, e) for e, v in enumerate([0.1, 0.3, 0.3, 0.2], start=1)]
    assert best == [True, True, False, False]
    assert (stopping.best, stopping.best_epoch, stopping.should_stop) == (0.3, 2, True)
    copy = EarlyStopping(patience=3)
    copy.load_state_dict(json.loads(json.dumps(stopping.state_dict())))
    assert (copy.best, copy.best_epoch, copy.waited, copy.should_stop) == (0.3, 2, 2, False)


def test_patience_ends_a_run(tmp_path: Path) -> None:
    # Steps too small to change any ranking: the first validation stays the best.
    chosen = config(epochs=50, patience=2, learning_rate=1e-12)
    result = train(MODEL, chosen, DATA, tmp_path)
    assert (result.status, result.epochs, result.best_epoch) == ("early-stopped", 3, 1)
    manifest = json.loads((tmp_path / "best" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["epoch"], manifest["metric"]) == (1, result.best_metric)
    assert train(MODEL, chosen, DATA, tmp_path, resume=True).epochs == 3


def test_evaluating_now_and_then(tmp_path: Path) -> None:
    result = train(MODEL, config(epochs=3, evaluate_every=2), DATA, tmp_path)
    assert [line["epoch"] for line in result.history if "valid" in line] == [2, 3]


def test_bf16(tmp_path: Path) -> None:
    result = train(MODEL, config(epochs=1, amp="bf16"), DATA, tmp_path)
    assert math.isfinite(result.history[0]["loss"])
    assert all(p.dtype == torch.float32 for p in load_run(tmp_path).model.parameters())


# ---------------------------------------------------------------------- arguments, lock, reports


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_items=7, but .* has 60 items"):
        train({**MODEL, "num_items": 7}, config(), DATA, tmp_path / "a")
    with pytest.raises(ConfigError, match="did you mean 'max_depth'"):
        train({**MODEL, "maxdepth": 7}, config(), DATA, tmp_path / "a")
    with pytest.raises(ConfigError, match="device='tpu9'"):
        train(MODEL, config(device="tpu9"), DATA, tmp_path / "a")
    with pytest.raises(BackendError, match="backend 'cuda' cannot run linear_cross_entropy on cpu"):
        train({**MODEL, "backend": "cuda"}, config(), DATA, tmp_path / "a")
    with pytest.raises(ValueError, match="stop_after_steps=0"):
        train(MODEL, config(), DATA, tmp_path / "a", stop_after_steps=0)
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunFolderError, match="cannot be written"):
        train(MODEL, config(), DATA, tmp_path / "file")
    assert resolve_device("cpu") == torch.device("cpu")


def test_two_processes_cannot_share_a_run(tmp_path: Path) -> None:
    # A lock taken twice in one process conflicts as it does between two.
    with locked(tmp_path), pytest.raises(RunFolderError, match=r"is in use by process \d+"):
        train(MODEL, config(), DATA, tmp_path)
    assert train(MODEL, config(epochs=1), DATA, tmp_path).status == "finished"


def test_reports(tmp_path: Path) -> None:
    recorder = Recorder()
    result = train(MODEL, config(log_every=2), DATA, tmp_path, reporter=recorder)
    assert recorder.calls == ["start", "epoch 1 True", "epoch 2 True", "finished", "close"]
    per_epoch = recorder.plan.steps_per_epoch
    expected = sorted({*range(2, per_epoch + 1, 2), per_epoch})
    assert [p.batch for p in recorder.steps if p.epoch == 1] == expected
    assert result.steps == 2 * per_epoch
    assert all(p.examples_per_second > 0 for p in recorder.steps)
    assert all(0 <= p.means["mean_depth"] <= 2 for p in recorder.steps)
    first = [p for p in recorder.steps if p.epoch == 1]
    sizes = [64 * 2] * (len(first) - 1)
    sizes.append(recorder.plan.num_examples - sum(sizes))
    mean = sum(p.loss * n for p, n in zip(first, sizes, strict=True)) / sum(sizes)
    assert mean == pytest.approx(result.history[0]["loss"])


def test_plain_and_rich_output(done: TrainResult) -> None:
    plan = TrainingPlan(Path("run"), 2, 4, 200, 1, 0, "cpu", 1000, best=0.01)
    progress = StepProgress(1, 2, 2, 3.25, 100.0, {"mean_depth": 1.5})
    # A faster machine's four digits would take a line of their own.
    epoch = {**done.history[0], "examples_per_second": 100.0, "seconds": 1.0}
    text = io.StringIO()
    terminal = Console(file=io.StringIO(), force_terminal=True, width=200)
    plain, rich = make_reporter(Console(file=text)), make_reporter(terminal)
    assert type(plain) is PlainReporter
    assert type(rich) is RichReporter
    for reporter in (plain, rich):
        reporter.start(plan)
        reporter.step(progress)
        reporter.epoch(epoch, True)
        reporter.finish(done)
        reporter.close()
    lines = text.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0] == "run: 1,000 parameters, on cpu"
    assert lines[1] == "  200 examples  4 steps an epoch  at most 2 epochs"
    assert lines[2].startswith("epoch 1/2  loss ")
    gain = done.history[0]["valid"]["NDCG@20"] - 0.01
    assert f"({gain:+.4f}, best)" in lines[2]
    assert lines[3].startswith("  rec ")
    assert lines[4].startswith("finished after 2 epochs")
    drawn = terminal.file.getvalue()
    for part in ("loss 3.2500", "100/s", "0:01 (run 0:03)"):
        assert part in drawn


def test_an_epoch_fits_80_columns_and_says_what_it_gained() -> None:
    metrics = {
        "epoch": 199, "loss": 12.34567, "examples_per_second": 123456.7, "seconds": 1234.5,
        "loss_rec": 9.87654, "loss_deno": 0.98765, "loss_cont": 12.3456, "loss_expl": -1.60944,
        "mean_depth": 2.345, "valid": {"NDCG@20": 0.0631, "HR@20": 0.1233},
    }  # fmt: skip
    for best, told in ((None, "(best)"), (0.0619, "(+0.0012, best)"), (0.0640, "(-0.0009)")):
        lines = epoch_lines(metrics, 200, best).splitlines()
        assert lines[0].startswith("epoch 199/200  loss 12.346  NDCG@20 0.0631 " + told)
        assert max(map(len, lines)) <= 80
        assert len(lines) <= 4
        shown = " ".join(lines).split()
        assert {"12.346", "0.9877", "-1.6094", "2.35", "123,457"} <= set(shown)
    without = {"epoch": 1, "loss": 2.0, "examples_per_second": 1.0, "seconds": 1.0}
    assert epoch_lines(without, 2) == "epoch 1/2  loss 2.0000  1.0 s"
    assert epoch_lines({"epoch": 1, "seconds": 1.0, "valid": metrics["valid"]}, 1) == (
        "fitted  NDCG@20 0.0631  HR@20 0.1233  1.0 s"
    )


def test_the_bar_fits_80_columns() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    reporter = make_reporter(terminal)
    reporter.start(TrainingPlan(Path("run"), 200, 1024, 131413, 100, 0, "cpu", 1000))
    reporter.step(StepProgress(100, 512, 512, 12.345, 12345.6, {}))
    reporter.close()
    assert "loss 12.345 12,346/s 0:05 (run 17:50)" in terminal.file.getvalue()
