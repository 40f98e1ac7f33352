"""``adarec-fast reproduce``: our figures beside the paper's, filled in as runs end."""

from __future__ import annotations

import csv
import io
import json
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_cli import adarec
from rich.console import Console
from test_paper_tables import planned

from adarec_fast.cli import reproduce as cli_reproduce
from adarec_fast.config import ConfigError
from adarec_fast.data import (
    synthetic,
    write_sequences,
)
from adarec_fast.experiments import estimate, paper, summarise
from adarec_fast.experiments.definition import RESULT, run_name
from adarec_fast.experiments.filled import Filled, fill
from adarec_fast.experiments.render import csv_text, markdown, rich_table
from adarec_fast.experiments.tables import TABLES, get_table

TINY = [
    "--set", "hidden_size=8", "--set", "num_layers=1", "--set", "max_depth=2",
    "--set", "max_length=10", "--set", "batch_size=256", "--epochs", "1", "--backend", "packed",
    "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def beauty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny synthetic data under the name of the paper's."""
    path = tmp_path_factory.mktemp("data") / "Beauty.txt"
    write_sequences(synthetic(num_users=60, num_items=40), path)
    return path


def result(value: float, **changes: Any) -> dict[str, Any]:
    metrics = {metric: value * (place + 1) for place, metric in enumerate(paper.METRICS)}
    return {
        "status": "finished", "epochs": 9, "best_epoch": 7, "test": metrics,
        "test_sparse": {name: number / 2 for name, number in metrics.items()}, "valid": metrics,
        "seconds_per_epoch": 100 * value, "milliseconds_per_user": 1000 * value,
        "device": "cpu", "threads": 2,
        "data": {"users": 22_363, "items": 12_101},
        **changes,
    }  # fmt: skip


Numbers = dict[tuple[str, str], list[float | None]]


def faked(folder: Path, table: str, values: Numbers, why: dict[str, str] | None = None) -> Filled:
    """A table filled from results by label and loss, a value a seed; None: not finished."""
    path = str(folder / "Beauty.txt")
    seeds = max(len(numbers) for numbers in values.values())
    wanted = planned(table, path, seeds=seeds)
    sweep = wanted.sweep()
    sweep.store(folder)
    for row in TABLES[table].rows:
        for seed, number in enumerate(values.get((row.label, row.loss), [])):
            run = folder / run_name({**wanted.combination(row, path), "seed": seed})
            run.mkdir(exist_ok=True)
            if number is not None:
                (run / RESULT).write_text(json.dumps(result(number)))
    return fill(wanted, path, summarise(folder, sweep.combinations), why)


def test_figures_stand_where_they_belong(tmp_path: Path) -> None:
    filled = faked(
        tmp_path, "table4",
        {("full", "full_ce"): [0.01, 0.02, 0.06], ("no ADC", "full_ce"): [0.03, None, 0.05]},
    )  # fmt: skip
    entry = filled.cell("full", "HR@20", "here")
    assert (entry.mean, entry.runs) == (pytest.approx(0.09), 3)
    assert entry.std == pytest.approx(statistics.stdev([0.03, 0.06, 0.18]))
    assert filled.cell("full", "HR@20", "paper").mean == 0.1187
    assert filled.cell("full", "HR@20", "difference").mean == pytest.approx(0.09 - 0.1187)
    assert filled.cell("no ADC", "NDCG@20", "here").runs == 2
    assert filled.cell("no HDA", "NDCG@20", "here") is None
    assert filled.cell("no HDA", "NDCG@20", "difference") is None
    assert filled.missing["no ADC", "full_ce"] == "1 of 3 seeds not run yet"
    text = markdown([filled])
    assert (
        "| no ADC | full_ce | 0.1141 | 0.1200±0.0424 | +0.0059 (+5%) | 0.0545 | 0.1600±0.0566 | "
        "+0.1055 (+194%) |" in text
    )
    assert "| no HDA | full_ce | 0.1105 | – | – | 0.0528 | – | – |" in text
    assert "no HDA, no ADC, no HDA, no HP-MoE, no content-aware router, no L_cont: not run" in text
    assert "2 to 3 seeds" in text
    assert "Our runs: 9 epochs, on cpu, threads: 2." in text
    assert "5 of 5 runs ended at their greatest number of epochs" in text
    assert "Not the paper's" not in text
    rows = list(csv.DictReader(io.StringIO(csv_text([filled]))))
    (row,) = [
        r for r in rows if (r["row"], r["column"], r["source"]) == ("full", "HR@20", "here")
    ]
    assert (row["table"], row["data_set"], row["loss"], row["runs"]) == (
        "table4", "Beauty", "full_ce", "3",
    )  # fmt: skip
    assert float(row["mean"]) == pytest.approx(0.09)
    told = {r["row"]: (r["runs"], r["why"]) for r in rows if r["why"]}
    assert told["no ADC"] == ("2", "1 of 3 seeds not run yet")
    assert told["no HDA"] == ("0", "not run yet")
    assert len(rows) == 7 * 2 + 2 * 2 * 2 + 6
    console = Console(width=80, file=io.StringIO())
    console.print(rich_table(filled))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0.0900±0.0794" in shown
    assert "-0.0287" in shown
    assert "…" not in shown


def test_losses_stand_apart_and_what_is_missing_says_why(tmp_path: Path) -> None:
    filled = faked(
        tmp_path, "table1",
        {("SASRec", "original"): [0.02], ("SASRec", "full_ce"): [0.04],
         ("ADARec", "full_ce"): [0.03]},
        {run_name({"data": str(tmp_path / "Beauty.txt"), "model": "bert4rec",
                   "supervision": "cloze", "seed": 0}): "beyond the budget, 9.9 h at most"},
    )  # fmt: skip
    text = markdown([filled])
    assert "| ADARec | full_ce | 0.0600 | 0.0300 | -0.0300 (-50%) |" in text
    assert "| SASRec | original | 0.0374 | 0.0200 |" in text
    assert "| SASRec | full_ce | 0.0374 | 0.0400 |" in text
    assert "| Caser | original | 0.0251 | – | – |" in text
    assert "Caser (original), Caser (full_ce), " in text
    assert "BERT4Rec: beyond the budget, 9.9 h at most." in text
    assert "over 1 seed;" in text
    for row in TABLES["table1"].rows:
        if row.values is None:
            assert filled.missing[row.label, row.loss] == row.why
            assert row.why.startswith("this version has no model")
    console = Console(width=80, file=io.StringIO())
    console.print(rich_table(filled))
    assert "…" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_sparse_users_and_cut_histories_are_other_rows(tmp_path: Path) -> None:
    filled = faked(
        tmp_path, "table2",
        {("ADARec, histories cut", "full_ce"): [0.04], ("ADARec, sparse users", "full_ce"): [0.02]},
    )  # fmt: skip
    assert filled.cell("ADARec, histories cut", "HR@5", "here").mean == 0.04
    assert filled.cell("ADARec, histories cut", "HR@5", "paper").mean == 0.0531
    assert filled.cell("ADARec, sparse users", "HR@5", "here").mean == 0.01
    assert filled.cell("ADARec, sparse users", "HR@5", "paper") is None
    assert filled.cell("ADARec, sparse users", "HR@5", "difference") is None


def test_costs(tmp_path: Path) -> None:
    filled = faked(tmp_path, "table5", {("ADARec", "full_ce"): [0.06, 0.08]})
    assert (
        "| ADARec | full_ce | 6.21 | 7.00±1.41 | +0.79 (+13%) | 10.50 | 70.00±14.14 | "
        "+59.50 (+567%) |" in markdown([filled])
    )


@pytest.fixture
def two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 1 of two lines alone."""
    kept = [("SASRec", "original"), ("ADARec", "full_ce")]
    for name in ("table1", "table5"):
        rows = tuple(row for row in TABLES[name].rows if (row.label, row.loss) in kept)
        monkeypatch.setitem(TABLES, name, replace(TABLES[name], rows=rows))


@pytest.mark.usefixtures("two_lines")
def test_from_the_command_line(
    beauty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = tmp_path / "tables"
    options = ["--data", beauty, "--out", tables, "--seeds", "2", *TINY]
    foreseen = adarec("reproduce", "table1", *options, "--dry-run", "--budget-hours", "1e-9")
    assert foreseen.exit_code == 0, foreseen.output
    assert foreseen.stdout.count(" new ") == 4
    assert "at most about" in foreseen.stdout
    assert "0 fit the budget even so" in foreseen.stdout.replace("\n", " ")
    assert not tables.exists()

    # A budget that nothing fits trains nothing, and the table says why.
    none = adarec("reproduce", "table1", *options, "--budget-hours", "1e-9")
    assert none.exit_code == 0, none.output
    assert "beyond the budget" in (tables / "table1.md").read_text()
    assert not list(tables.glob(f"runs/*/{RESULT}"))

    # Rows are written as they end; what was begun before a budget ended is kept.
    seen: list[int] = []
    write = cli_reproduce._write

    def spy(*arguments: Any) -> list[Filled]:
        filled = write(*arguments)
        seen.append(sum(entry.runs for entry in filled[0].entries if entry.source == "here") // 4)
        return filled

    monkeypatch.setattr(cli_reproduce, "_write", spy)
    shown = adarec("reproduce", "table1", *options, "--budget-hours", "1")
    assert shown.exit_code == 0, shown.output
    assert seen == [1, 2, 3, 4, 4]
    assert [line.split("]")[0] for line in shown.stdout.splitlines() if line[:1] == "["] == [
        "[1/4", "[2/4", "[3/4", "[4/4",
    ]  # fmt: skip
    text = (tables / "table1.md").read_text()
    assert "Not the paper's Beauty: 60 users and 40 items instead of 22,363" in text
    assert "budget" not in text
    with (tables / "table1.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = sorted((tables / "runs").glob(f"data=Beauty,seed=*/{RESULT}"))
    numbers = [json.loads(path.read_text())["test"]["NDCG@20"] for path in found]
    assert len(numbers) == 2
    (row,) = [
        r for r in rows if (r["row"], r["column"], r["source"]) == ("ADARec", "NDCG@20", "here")
    ]
    assert float(row["mean"]) == pytest.approx(statistics.fmean(numbers))
    assert float(row["std"]) == pytest.approx(statistics.stdev(numbers))

    # What is finished is not trained again; another table takes the runs that are there.
    again = adarec("reproduce", "table1", *options)
    assert again.stdout.count("finished before") == 4
    foreseen = adarec("reproduce", "table4", *options, "--finished")
    assert foreseen.exit_code == 0, foreseen.output
    assert "| full | full_ce | 0.1187 | 0." in (tables / "table4.md").read_text()
    assert "no HDA, " in foreseen.stdout
    other = adarec("reproduce", "table1", *options, "--set", "learning_rate=0.1")
    assert other.exit_code == 2
    assert "train.learning_rate is 0.001 there and 0.1 now" in other.stderr


@pytest.mark.usefixtures("two_lines")
def test_costs_are_of_short_runs_of_their_own() -> None:
    """All systems once, then all of them again."""
    sweep = planned("table5", "/x/Beauty.txt", seeds=2).sweep()
    assert [(one.get("model"), one["seed"]) for one in sweep.combinations] == [
        (None, 0), ("sasrec", 0), (None, 1), ("sasrec", 1),
    ]  # fmt: skip
    assert sweep.base.train == {"epochs": 3}
    longer = planned("table5", "/x/Beauty.txt", given=["epochs=9"]).sweep()
    assert longer.base.train == {"epochs": 9}


def test_a_figure_is_drawn(
    beauty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("matplotlib", "sklearn"):
        pytest.importorskip(module)
    figure = TABLES["figure4"]
    two = replace(figure, rows=(figure.rows[0], figure.rows[2]))
    monkeypatch.setitem(TABLES, "figure4", two)
    options = ["--data", beauty, "--out", tmp_path, "--seeds", "1", *TINY]
    early = adarec("reproduce", "figure4", *options, "--finished")
    assert early.exit_code == 0
    assert "the sweep has no finished run yet" in early.stderr
    assert not list(tmp_path.glob("*.png"))
    shown = adarec("reproduce", "figure4", *options)
    assert shown.exit_code == 0, shown.output
    assert "figure4.md, figure4.csv, figure4.png, figure4.svg" in shown.stdout
    assert (tmp_path / "figure4.png").stat().st_size > 1000
    # Of figure 6 the second line alone is there, by the run that figure 4 has, too.
    maps = replace(TABLES["figure6"], rows=TABLES["figure6"].rows[1:])
    monkeypatch.setitem(TABLES, "figure6", maps)
    shown = adarec("reproduce", "figure6", *options, "--finished")
    assert shown.exit_code == 0, shown.output
    assert "figure6.png" in shown.stdout


def test_what_cannot_be_is_refused(beauty: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "tables"]
    for arguments, message in (
        ([], "say which table"),
        (["table1"], "needs --data"),
        (["table9", "--data", beauty], "table 'table9' is not one of table1"),
        (["table1", "--data", tmp_path / "none.txt"], "no such file"),
        (["table1", "--data", beauty, "--set", "depth=fixed"], "set by the table's own lines"),
        (["table1", "--data", beauty, "--set", "seed=3"], "set by the table's own lines"),
        (["table1", "--data", beauty, "--set", "loss=original"], "set by the table's own lines"),
        (["figure4", "--data", beauty, "--set", "lambda_deno=1"], "set by the table's own lines"),
        (["table4", "--data", beauty, "--set", "num_intents=9"], "no model of table4 has it"),
        (["table1", "--data", beauty, "--budget-hours", "0"], "must be above 0"),
    ):
        refused = adarec("reproduce", *arguments, *out)
        assert refused.exit_code == 2, refused.output
        assert message in refused.stderr
    assert not (tmp_path / "tables").exists()
    with pytest.raises(ConfigError, match="table4"):
        get_table("table7")
    listed = adarec("reproduce", "--list")
    assert listed.exit_code == 0
    told = " ".join(listed.stdout.split())  # lines break at the terminal's width
    for word in ("table1", "no HDA: diffusion=False", "SASRec: model=sasrec"):
        assert word in told


@pytest.mark.usefixtures("two_lines")
def test_a_signal_ends_the_timing_of_all(
    beauty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments)
        return SimpleNamespace(status="interrupted")

    monkeypatch.setattr(estimate, "train", interrupted)
    options = ["--data", beauty, "--out", tmp_path, "--seeds", "2", *TINY]
    ended = adarec("reproduce", "table1", *options, "--budget-hours", "1")
    assert ended.exit_code == 130
    assert len(asked) == 1
    assert not list(tmp_path.glob(f"runs/*/{RESULT}"))
