"""The paper's tables: its figures, the runs they need, and ours put right beside them."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_cli import adarec
from rich.console import Console

from adarec_fast.cli import reproduce as cli_reproduce
from adarec_fast.config import ConfigError
from adarec_fast.data import (
    EvaluationBatches,
    Split,
    TrainingBatches,
    load,
    synthetic,
    truncate_histories,
    write_sequences,
)
from adarec_fast.experiments import estimate, paper, summarise
from adarec_fast.experiments.definition import RESULT, run_name
from adarec_fast.experiments.estimate import Planned
from adarec_fast.experiments.filled import Filled, fill
from adarec_fast.experiments.render import csv_text, markdown, rich_table
from adarec_fast.experiments.reproduction import Reproduction, fitting
from adarec_fast.experiments.systems import SYSTEMS
from adarec_fast.experiments.tables import TABLES, Row, Table, data_set_of, get_table
from adarec_fast.models import registry
from adarec_fast.models.adarec.model import ADARec
from adarec_fast.ops._library import unavailable
from adarec_fast.training.values import read_assignments

TINY = [
    "--set", "hidden_size=8", "--set", "num_layers=1", "--set", "max_depth=2",
    "--set", "max_length=10", "--set", "batch_size=256", "--epochs", "1", "--backend", "packed",
    "--device", "cpu",
]  # fmt: skip


def planned(
    table: str | Table, *paths: str, seeds: int = 1, given: Sequence[str] = ()
) -> Reproduction:
    table = TABLES[table] if isinstance(table, str) else table
    return Reproduction.create(table, paths, range(seeds), read_assignments(given))


@pytest.fixture(scope="module")
def beauty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny synthetic data under the name of the paper's."""
    path = tmp_path_factory.mktemp("data") / "Beauty.txt"
    write_sequences(synthetic(num_users=60, num_items=40), path)
    return path


def test_the_papers_figures() -> None:
    """Spot checks against the print, and the improvements that the paper derives from them."""
    assert paper.TABLE1["Beauty"]["ADARec"] == (0.0600, 0.0403, 0.1187, 0.0568)
    assert paper.TABLE1["Yelp"]["Caser"] == (0.0142, 0.0080, 0.0406, 0.0156)
    assert paper.TABLE2["Toys"]["DiffDiv"] == (0.0560, 0.0392, 0.1050, 0.0522)
    assert paper.TABLE4["Sports"]["no HDA"] == (0.0681, 0.0310)
    assert paper.TABLE5["Toys"]["GlobalDiff"] == (18.95, 33.6)
    for printed, percent in (
        (paper.TABLE1["Beauty"], (4.35, 4.68, 3.04, 3.65)),
        (paper.TABLE1["Sports"], (3.96, 3.64, 2.33, 3.02)),
        (paper.TABLE1["Toys"], (6.64, 8.97, 4.26, 4.53)),  # the print has 9.08 for the second
        (paper.TABLE1["Yelp"], (2.33, 3.73, 3.04, 2.83)),
        (paper.TABLE2["Beauty"], (16.70, 19.66, 15.24, 18.03)),  # the print has 17.48
        (paper.TABLE2["Yelp"], (3.09, 2.48, 5.87, 3.69)),
    ):
        for column, expected in enumerate(percent):
            best = max(row[column] for name, row in printed.items() if name != "ADARec")
            gain = 100 * (printed["ADARec"][column] / best - 1)
            assert gain == pytest.approx(expected, abs=0.011)


PAPERS = [table for table in TABLES.values() if table.printed]


@pytest.mark.parametrize("table", PAPERS, ids=[table.name for table in PAPERS])
def test_every_table_is_whole(table: Table) -> None:
    assert set(table.printed) <= set(paper.DATA_SETS)
    assert len(table.printed) == (2 if table.name == "table3" else 4)
    names = {row.printed for row in table.rows} - {None}
    for rows in table.printed.values():
        assert set(rows) == names
        assert {len(figures) for figures in rows.values()} == {len(table.columns)}


@pytest.mark.parametrize("name", TABLES)
def test_runs_are_valid_and_each_is_there_once(name: str) -> None:
    wanted = planned(name, "/x/Beauty.txt", "/x/Toys_and_Games.txt", seeds=2)
    # One that is there twice, or no valid configuration, is refused.
    combinations = wanted.sweep().combinations
    lines = {json.dumps(dict(row.values)) for row in TABLES[name].rows if row.values is not None}
    assert len(combinations) == 2 * 2 * len(lines)
    # A seed of all lines comes before the next one, those that tell most at its beginning.
    assert [one["seed"] for one in combinations] == sorted(one["seed"] for one in combinations)
    assert len({(row.label, row.loss) for row in TABLES[name].rows}) == len(TABLES[name].rows)


def test_tables_share_their_runs() -> None:
    names = {
        name: {run_name(c) for c in planned(name, "/x/Toys_and_Games.txt").sweep().combinations}
        for name in TABLES
    }
    assert names["table1"] < names["table2"]
    assert names["figure2"] < names["table1"]
    assert names["figure6"] < names["table1"]
    for other in ("table4", "figure4", "figure5"):
        assert len(names["table1"] & names[other]) == 1
    assert len(names["table4"]) == 7
    assert len(names["figure4"]) == 9
    # Systems on their own and below ADARec.
    lines = [row for row in TABLES["table3"].rows if row.values is not None]
    alone = [row for row in lines if "w/" not in row.label]
    assert len(names["table1"] & names["table3"]) == len(alone) >= 4
    assert TABLES["table5"].folder != TABLES["table1"].folder


def test_every_system_of_the_registry_is_there_by_its_name() -> None:
    """One that is added to the registry appears without another change."""
    (iocrec,) = [row for row in TABLES["table1"].rows if row.label == "IOCRec"]
    assert (iocrec.values is None) == ("iocrec" not in registry.names())
    run = {
        row.values.get("model", "adarec")
        for table in ("table1", "table3") for row in TABLES[table].rows if row.values is not None
    }  # fmt: skip
    assert run == {system.model for system in SYSTEMS.values()} & set(registry.names())


def test_systems_have_the_settings_of_their_scripts(tmp_path: Path) -> None:
    def found(path: str, *given: str, table: str = "table1") -> dict[tuple[str, str], Any]:
        wanted = planned(table, path, given=given)
        return {
            (row.label, row.loss): {
                key: value for key, value in wanted.combination(row, path).items()
                if key not in ("data", "model", "loss")
            }
            for row in TABLES[table].rows if row.values is not None
        }  # fmt: skip

    beauty = found("/x/Beauty.txt")
    assert beauty["ELCRec", "original"] == {
        "gradient_clip": 0.0, "num_layers": 1, "fusion": "shift", "lambda_cluster": 10.0,
    }  # fmt: skip
    assert beauty["ICLRec", "full_ce"] == {"num_layers": 1}
    assert beauty["Caser", "original"]["supervision"] == "prefix"
    assert beauty["BASRec", "full_ce"] == {}
    assert found("/x/toys.txt")["ELCRec", "full_ce"] == {"num_layers": 3, "num_intents": 512}
    # What is given for all takes their place where a model has it, and of no other model.
    given = found("/x/Beauty.txt", "num_layers=2", "num_intents=9", "epochs=60")
    assert given["ELCRec", "original"]["num_intents"] == 9
    assert "num_layers" not in given["ELCRec", "original"]
    assert given["ADARec", "full_ce"] == {}
    assert given["BASRec", "original"] == {"gradient_clip": 0.0, "plain_epochs": 30}
    assert found("/x/Beauty.txt", table="table5")["BASRec", "full_ce"] == {"plain_epochs": 0}
    cut = found("/x/Beauty.txt", table="table2")["ADARec, histories cut", "full_ce"]
    assert cut == {"truncate": 6, "max_length": 5}


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("supervision", ["prefix", "all"])
@pytest.mark.parametrize("row", TABLES["table4"].rows, ids=lambda row: row.label)
@pytest.mark.parametrize("backend", ["packed", "cpp"])
def test_every_ablation_has_the_references_gradients(
    row: Row, supervision: str, backend: str
) -> None:
    """What an op leaves unwritten beyond a user's depth must not reach a weight."""
    reason = unavailable("moe_aggregate", backend, "cpu")
    if reason is not None:
        pytest.skip(f"{backend} cannot run here: {reason}")
    split = Split(synthetic(num_users=60, num_items=40))
    batches = TrainingBatches(
        *split.inputs("train"), batch_size=32, max_length=10, seed=0, supervision=supervision
    )
    gradients = []
    for name in ("reference", backend):
        model = ADARec(
            num_items=40, hidden_size=16, num_layers=1, max_depth=3, max_length=10, backend=name,
            supervision=supervision, **(row.values or {}),
        ).train()  # fmt: skip
        model.loss(next(batches.epoch(0))).total.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for parameter, expected in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][parameter], expected, rtol=1e-3, atol=1e-6,
            msg=lambda text, parameter=parameter: f"{parameter}: {text}",
        )  # fmt: skip


def test_data_sets_are_known_by_name() -> None:
    for path, expected in (
        ("/a/Beauty.txt", "Beauty"), ("toys.csv", "Toys"), ("Toys_and_Games.txt", "Toys"),
        ("sports_and_outdoors.txt", "Sports"), ("yelp.txt", "Yelp"), ("beauty2.txt", None),
    ):  # fmt: skip
        assert data_set_of(path) == expected


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


def test_cut_histories_are_read_five_items_at_a_time() -> None:
    """As the authors' --shorten_seq_to 5: five items before the validation and the test item."""
    history = list(range(1, 21))
    data = truncate_histories(load([history, history[:4]]), 6)
    split = Split(data)
    for part, first, target in (("valid", 14, 19), ("test", 15, 20)):
        (batch,) = EvaluationBatches(split, part, batch_size=2, max_length=5)
        items = data.items.decode(batch.item_ids[: int(batch.offsets[1])].tolist())
        assert items == list(range(first, first + 5))
        assert data.items.decode([int(batch.targets[0])]) == [target]
    batches = TrainingBatches(*split.inputs("train"), batch_size=9, max_length=5, seed=0)
    lengths = [b.offsets.diff().tolist() for b in batches.epoch(0)]
    assert sorted(lengths[0]) == [1, 1, 2, 3, 4, 5]


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


def test_what_fits_a_budget_is_taken_in_order() -> None:
    rows = [
        Planned(name, state, 0, 9, seconds)
        for name, state, seconds in (
            ("a", "finished", 0.0), ("b", "new", 50.0), ("c", "begun", 60.0), ("d", "new", 40.0),
            ("e", "diverged", 0.0), ("f", "new", 20.0),
        )
    ]  # fmt: skip
    assert [row.name for row in fitting(rows, 100.0)] == ["b", "d"]
    assert [row.name for row in fitting(rows, 110.0)] == ["b", "c"]
    assert fitting(rows, 19.0) == []
