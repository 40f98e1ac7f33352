"""``adarec-fast compare``: trained runs, arms that it trains, and tables from its own file."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_cli import adarec

from adarec_fast.data import synthetic, write_csv
from adarec_fast.experiments.arms import read_arms
from adarec_fast.experiments.comparison import against, collect, read
from adarec_fast.experiments.comparison_table import lines, markdown
from adarec_fast.experiments.definition import RESULT
from adarec_fast.ranking.comparison import compare
from adarec_fast.ranking.ranks import ranking_metrics, user_metrics
from adarec_fast.training import Reporter

ARMS = """
arms:
  backbone: {model: sasrec, hidden_size: 8}
  counting: {model: counting}
num_layers: 1
backend: packed
device: cpu
epochs: 1
batch_size: 128
notes: [Half of the next items lie in the file by their ids.]
"""


class Interrupting(Reporter):
    """Asks the process to end when the third run has done an epoch."""

    begun = 0

    def start(self, plan: Any) -> None:
        Interrupting.begun += 1
        if Interrupting.begun == 3:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def place_of(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    write_csv(synthetic(num_users=60, num_items=40), folder / "shop.csv")
    write_csv(synthetic(num_users=50, num_items=40, seed=1), folder / "other.csv")
    (folder / "arms.yaml").write_text(ARMS)
    return folder


def command(folder: Path, *more: str | Path) -> list[str | Path]:
    return ["compare", "--arms", folder / "arms.yaml", "--data", folder / "shop.csv",
            "--out", folder / "out", *more]  # fmt: skip


@pytest.fixture(scope="module")
def done(place_of: Path) -> Path:
    """Two arms and two seeds, interrupted in the third run and gone on with; the folder."""
    patch = pytest.MonkeyPatch()
    patch.setattr("adarec_fast.training.make_reporter", lambda out: Interrupting())
    shown = adarec(*command(place_of, "--seeds", "2"))
    patch.undo()
    assert shown.exit_code == 130, shown.output
    assert "go on with: the same command" in shown.stderr
    out = place_of / "out"
    half = json.loads((out / "compare.json").read_text())
    assert [(row["arm"], row["seed"]) for row in half["runs"]] == [("backbone", 0), ("counting", 0)]
    assert [(key["arm"], key["seed"]) for key in half["missing"]] == [
        ("backbone", 1), ("counting", 1),
    ]  # fmt: skip
    text = (out / "compare.md").read_text()
    assert "| counting | 1 of 2 |" in text
    assert "2 runs not finished: a mean is of fewer seeds." in text
    assert {entry["over_seeds"] for entry in half["differences"]} == {None}

    shown = adarec(*command(place_of, "--seeds", "2"))
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("finished before") == 2
    assert "[3/4] backbone, shop, seed 1  going on" in shown.stdout
    return place_of


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "compare.json").read_text())
    return found


def test_a_row_says_all_of_its_run(done: Path) -> None:
    found = report(done)
    assert (found["missing"], found["diverged"], len(found["runs"])) == ([], [], 4)
    assert found["command"] == "adarec-fast compare --arms arms.yaml --data shop.csv --seeds 2"
    assert found["data"]["shop"]["users"] == 60
    assert 0 < found["data"]["shop"]["sparse_users"] < 60
    assert {"cpu", "cores", "threads"} <= found["machine"].keys()
    assert {"torch", "python", "adarec_fast"} <= found["versions"].keys()
    for row in found["runs"]:
        result = json.loads((done / "out" / "runs" / row["run"] / RESULT).read_text())
        left = {n: v for n, v in result.items() if n not in ("combination", "source", "data")}
        assert left.items() <= row.items()
        assert row["source"]["data"] == "shop.csv"
    # It can be committed: no folder of this machine is in it.
    text = (done / "out" / "compare.json").read_text()
    assert str(done) not in text
    assert len(text.splitlines()) < 60
    backbone = next(row for row in found["runs"] if row["arm"] == "backbone")
    assert backbone["parameters"] > 0
    assert backbone["config"]["model"]["hidden_size"] == 8
    assert backbone["config"]["train"]["batch_size"] == 128


def test_differences_are_those_of_the_ranks(done: Path) -> None:
    found = read(done / "out" / "compare.json")
    ranks = found.ranks["shop/test"]
    assert (ranks.dtype, list(ranks.shape)) == (torch.uint16, [4, 60])
    sparse = found.ranks["shop/sparse"]
    systems = {"backbone": {0: ranks[0], 1: ranks[2]}, "counting": {0: ranks[1], 1: ranks[3]}}
    for users, chosen in (("all", None), ("sparse", sparse)):
        for expected in compare(systems, "backbone", chosen=chosen)["counting"]:
            (entry,) = (
                entry for entry in found.report["differences"]
                if (entry["part"], entry["users"]) == ("test", users)
                and entry["metric"] == expected.metric
            )  # fmt: skip
            assert entry["difference"] == pytest.approx(expected.value)
            assert entry["over_users"] == list(expected.users)
            assert entry["seeds"] == [0, 1]
    (line,) = (line for line in lines(found.report, "shop") if line.arm == "counting")
    base = lines(found.report, "shop")[0]
    numbers = [row["test"]["NDCG@20"] for row in base.runs]
    mean, deviation = statistics.fmean(numbers), statistics.stdev(numbers)
    assert base.figure("test", "all", "NDCG@20") == (mean, deviation)
    entry = line.differences["test", "all", "NDCG@20"]
    assert line.figure("test", "all", "NDCG@20")[0] == pytest.approx(mean + entry["difference"])
    assert base.hours == pytest.approx(
        statistics.fmean(row["train_seconds"] + row["valid_seconds"] for row in base.runs) / 3600
    )
    text = markdown(found.report, "test")
    assert f"| backbone | 2 | {mean:.4f}±{deviation:.4f} |" in text
    assert "4 runs on cpu" in text
    assert text.rstrip().endswith("Half of the next items lie in the file by their ids.")


def test_its_file_makes_the_tables_again(done: Path, tmp_path: Path) -> None:
    stored = done / "out" / "compare.json"
    for file in (stored, Path(shutil.copy(stored, tmp_path / "alone.json"))):
        shown = adarec("compare", "--from", file, "--out", tmp_path / "again")
        assert shown.exit_code == 0, shown.output
        assert "\n   n=2, 0.0 min " in shown.stdout  # in one piece, in 80 columns
        for name in ("compare.md", "compare.csv"):
            made = (tmp_path / "again" / name).read_text()
            assert made == (done / "out" / name).read_text()
    with (done / "out" / "compare.csv").open() as text:
        rows = list(csv.DictReader(text))
    assert [row["arm"] for row in rows] == ["backbone", "counting"]
    assert float(rows[1]["test all NDCG@20 users low"]) < float(
        rows[1]["test all NDCG@20 users high"]
    )
    # Another baseline needs the ranks.
    other = adarec("compare", "--from", stored, "--baseline", "counting", "--part", "valid")
    assert "shop, validation: 60 users" in other.stdout
    refused = adarec("compare", "--from", tmp_path / "alone.json", "--baseline", "counting")
    assert refused.exit_code == 2
    assert "another baseline needs the ranks" in refused.stderr
    unknown = adarec("compare", "--from", stored, "--baseline", "x")
    assert "baseline='x' must be one of 'backbone', 'counting'" in unknown.stderr
    changed = report(done)
    changed["runs"][0]["test"]["NDCG@20"] += 1e-3
    (tmp_path / "mixed.json").write_text(json.dumps(changed))
    shutil.copy(done / "out" / "compare-ranks.safetensors", tmp_path / "mixed-ranks.safetensors")
    mixed = adarec("compare", "--from", tmp_path / "mixed.json")
    assert "not the ranks of mixed.json: test of shop differs" in mixed.stderr
    (tmp_path / "none.json").write_text("{}")
    none = adarec("compare", "--from", tmp_path / "none.json")
    assert "not 'adarec_fast comparison'" in none.stderr


def test_more_seeds_and_arms_keep_what_is_finished(done: Path) -> None:
    planned = adarec(*command(done, "--seeds", "3", "--dry-run"))
    assert planned.exit_code == 0, planned.output
    assert planned.stdout.count("finished") == 4
    assert planned.stdout.count("new") == 2
    assert "counting, shop, seed 2" in planned.stdout
    shown = adarec(*command(done, "--seeds", "3", "--finished", "--out", done / "out"))
    assert shown.exit_code == 0, shown.output
    assert "n=2 of 3" in shown.stdout
    adarec(*command(done, "--seeds", "2", "--finished"))
    refused = adarec(*command(done, "--finished", "--out", done / "nowhere"))
    assert "nothing has been trained" in refused.stderr
    changed = adarec(*command(done, "--seeds", "2", "--set", "epochs=2"))
    assert changed.exit_code == 2
    assert "train.epochs is 1 there and 2 now" in changed.stderr


def test_results_of_an_earlier_version_are_completed(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "out" / "runs", tmp_path / "runs")
    before = report(done)
    new = {
        "valid_sparse", "train_seconds", "valid_seconds", "memory_seconds", "parameters", "seed",
        "config", "environment",
    }  # fmt: skip
    for path in (tmp_path / "runs").glob(f"*/{RESULT}"):
        result = {n: v for n, v in json.loads(path.read_text()).items() if n not in new}
        path.write_text(json.dumps(result))
        (path.parent / "ranks.safetensors").unlink()
    arms = read_arms(done / "arms.yaml")
    found = collect(arms, [done / "shop.csv"], range(2), tmp_path / "runs", "")
    assert found.report["differences"] == before["differences"]
    for old, row in zip(before["runs"], found.report["runs"], strict=True):
        assert {n: v for n, v in old.items() if n != "environment"} == row


def runs_of(done: Path) -> list[Path]:
    return [done / "out" / "runs" / row["run"] for row in report(done)["runs"]]


def test_trained_runs_side_by_side(done: Path, tmp_path: Path) -> None:
    first, second, *_ = runs_of(done)
    shown = adarec("compare", first, second, "--json")
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert (found["part"], found["users"], found["seen_mask"]) == ("test", 60, "neg-inf")
    rows = report(done)["runs"]
    for run, row in zip(found["runs"], rows[:2], strict=True):
        assert run["all"] == row["test"]
        assert run["sparse"] == row["test_sparse"]
        assert run["model"] == row["config"]["model"]["model"]
    means = [run["all"]["NDCG@20"] for run in found["runs"]]
    (entry,) = (
        e for e in found["differences"] if (e["users"], e["metric"]) == ("all", "NDCG@20")
    )
    assert entry["run"] == str(second)
    assert entry["difference"] == pytest.approx(means[1] - means[0])
    low, high = entry["over_users"]
    assert low < entry["difference"] < high
    # Without kept ranks, and on a file, they are ranked anew: the same.
    copies = [shutil.copytree(run, tmp_path / run.name) for run in (first, second)]
    for run in copies:
        (run / "ranks.safetensors").unlink()
    for more in ([], ["--data", done / "shop.csv"]):
        again = json.loads(adarec("compare", *copies, *more, "--json").stdout)
        assert [run["all"] for run in again["runs"]] == [run["all"] for run in found["runs"]]
        assert again["differences"][0]["over_users"] == found["differences"][0]["over_users"]
    table = adarec("compare", first, second, "--part", "valid").stdout
    assert "shop, valid: 60 users" in table
    assert "95% interval over" in table


def test_runs_in_every_form(done: Path) -> None:
    first, second, third, _ = runs_of(done)
    asked = ["compare", first, second, third, "--metrics", "NDCG@7, HR@3"]
    found = json.loads(adarec(*asked, "--json").stdout)
    assert [one["metric"] for one in found["differences"][:2]] == ["NDCG@7", "HR@3"]
    kept = read(done / "out" / "compare.json").ranks["shop/test"][:3].long()
    worth = user_metrics(kept, "HR@3")
    for run, values in zip(found["runs"][1:], worth[1:], strict=True):
        entry = next(
            one for one in found["differences"]
            if (one["run"], one["users"], one["metric"]) == (run["run"], "all", "HR@3")
        )  # fmt: skip
        assert run["all"]["HR@3"] == pytest.approx(float(values.mean()))
        better, worse = int((values > worth[0]).sum()), int((values < worth[0]).sum())
        test = entry["sign_test"]
        assert (test["wins"], test["losses"], test["ties"]) == (better, worse, 60 - better - worse)
        assert test["p"] <= test["p_holm"] <= 2 * test["p"]
    rows = list(csv.DictReader(adarec(*asked, "--format", "csv").stdout.splitlines()))
    assert [(row["run"], row["users"]) for row in rows[:3]] == [
        (str(first), "all"), (str(first), "sparse"), (str(second), "all"),
    ]  # fmt: skip
    assert rows[0]["HR@3 difference"] == ""
    assert float(rows[2]["HR@3 difference"]) == next(
        one["difference"] for one in found["differences"] if one["metric"] == "HR@3"
    )
    table = adarec(*asked, "--format", "markdown").stdout
    assert "| run | users | NDCG@7 | HR@3 |\n| --- | --- | --: | --: |\n" in table
    assert "| run | users | metric | difference | from | to | +/-/= | p | p, Holm |" in table
    tex = adarec(*asked, "--format", "latex").stdout
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 2
    assert str(first).replace("_", r"\_") in tex
    columns = {line.count("&") for line in tex.splitlines() if line.endswith(r"\\")}
    assert columns == {3, 8}
    for more, message in (
        (["--json", "--format", "csv"], "--json and --format csv: choose one"),
        (["--metrics", "AUC@3"], "metric='AUC@3' must be one of HR, NDCG, MRR"),
        (["--metrics", "HR@3,HR@3"], "name one or more, each once"),
    ):
        refused = adarec("compare", first, second, *more)
        assert refused.exit_code == 2, refused.output
        assert message in refused.stderr


def test_on_a_file_the_items_are_those_of_each_model(done: Path, tmp_path: Path) -> None:
    first, second, *_ = runs_of(done)
    lines_of = (done / "shop.csv").read_text().splitlines()
    users = {line.split(",")[0] for line in lines_of[1:]}
    few = sorted(users)[:20]
    part = [line for line in lines_of[1:] if line.split(",")[0] in few]
    (tmp_path / "few.csv").write_text("\n".join([lines_of[0], *part]) + "\n")
    found = json.loads(
        adarec("compare", first, second, "--data", tmp_path / "few.csv", "--json").stdout
    )
    assert found["users"] == 20
    kept = read(done / "out" / "compare.json").ranks["shop/test"]
    order = list(dict.fromkeys(line.split(",")[0] for line in lines_of[1:]))
    chosen = [user in few for user in order]
    for run, ranks in zip(found["runs"], kept[:2].int(), strict=True):
        assert run["all"] == ranking_metrics(ranks[torch.tensor(chosen)], (5, 10, 20))
    strange = [f"somebody,strange-{number},{number}" for number in range(3)]
    (tmp_path / "few.csv").write_text("\n".join([lines_of[0], *part, *strange]) + "\n")
    refused = adarec("compare", first, second, "--data", tmp_path / "few.csv")
    assert refused.exit_code == 2
    assert "does not know all its items" in refused.stderr
    assert "strange-0" in refused.stderr


def test_a_run_on_everything_is_compared_on_what_came_later(done: Path, tmp_path: Path) -> None:
    first, *_ = runs_of(done)
    whole, later = tmp_path / "whole", tmp_path / "later.csv"
    made = adarec("train", "--refit", first, "--epochs", "1", "--run-dir", whole)
    assert made.exit_code == 0, made.output
    header, *lines = (done / "shop.csv").read_text().splitlines()
    users = sorted({line.split(",")[0] for line in lines})[:9]
    item = lines[0].split(",")[1]
    rows = [f"{user},{what},{10**12 + n}" for user in users for n, what in enumerate((item, "new"))]
    later.write_text("\n".join([header, *rows]) + "\n")
    for pair in ((first, whole), (whole, first)):
        found = json.loads(adarec("compare", *pair, "--data", later, "--json").stdout)
        assert found["users"] == 9
        for run, entry in zip(pair, found["runs"], strict=True):
            alone = json.loads(
                adarec("evaluate", run, "--data", later, "--no-baselines", "--json").stdout
            )
            assert entry["all"] == pytest.approx(alone["results"][0]["overall"])
    refused = adarec("compare", first, whole)
    assert "trained on everything" in refused.stderr
    assert "give --data FILE of interactions that came later" in refused.stderr
    again = adarec("compare", first, whole, "--data", done / "shop.csv")
    assert again.exit_code == 2
    assert "begin" in again.stderr


def test_an_arm_that_cuts_histories_has_other_sparse_users(done: Path) -> None:
    found = read(done / "out" / "compare.json")
    for row in found.report["runs"]:
        if row["arm"] == "counting":
            row["source"]["fingerprint"] = "of histories that are cut"
    differences = against(found, "backbone").report["differences"]
    assert {(entry["part"], entry["users"]) for entry in differences} == {
        ("valid", "all"), ("test", "all"),
    }  # fmt: skip


def test_runs_that_cannot_be_compared(done: Path, tmp_path: Path) -> None:
    first, second, *_ = runs_of(done)
    other = tmp_path / "other"
    trained = adarec("train", "--model", "popularity", "--data", done / "other.csv", "--device",
                     "cpu", "--run-dir", other)  # fmt: skip
    assert trained.exit_code == 0, trained.output
    for words, message in (
        ([first], "two runs or more"),
        ([first, first], "is named twice"),
        ([first, other], "give --data FILE to evaluate all runs on one file"),
        ([first, tmp_path], "holds no run"),
        ([first, second, "--data", done / "shop.csv", "--data", done / "other.csv"], "one --data"),
        ([first, second, "--finished"], "--finished: means nothing here"),
        ([], "say what to compare"),
        (["--arms", done / "arms.yaml"], "--arms needs --data FILE"),
        (["--arms", done / "arms.yaml", "--data", tmp_path / "no.csv"], "no such file"),
        (["--arms", done / "arms.yaml", "--json"], "--json: means nothing here"),
    ):
        refused = adarec("compare", *words)
        assert refused.exit_code == 2, refused.output
        assert message in refused.stderr
