"""``adarec-fast compare``."""

from __future__ import annotations

import enum
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from ..config import ConfigError
from ..training.values import read_assignments
from .console import RUN_FAILED, command, out, print_exactly, tell, waiting, words
from .evaluate import Part
from .reproduce import RUNS, planned
from .sweep import conclude, failed, progress

if TYPE_CHECKING:
    from ..experiments import RunOutcome
    from ..experiments.comparison import Comparison


class Form(str, enum.Enum):
    """How tables are written."""

    TEXT = "text"
    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"



@command
def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help="Two run folders or more; the first is the base."),
    ] = None,
    arms: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML of named arms, which are trained.")
    ] = None,
    stored: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="A compare.json; its tables are made again."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="With --arms: data to train on; may be repeated. With "
                     "runs: evaluate all of them on this file."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... of each arm.")] = 5,
    to: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of the tables and, in runs/, of what "
                     "--arms trains [dim](compare)[/]"),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="ARM", help="What the other arms are compared with, in the place of "
                     "the one that the file names."),
    ] = None,
    part: Annotated[
        Part, typer.Option(help="Of which held-out item the tables are.")
    ] = Part.TEST,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any field of all arms, in the place of "
                     "what they set; may be repeated."),
    ] = None,
    device: Annotated[str, typer.Option(help="Of runs: auto, cpu, cuda, ...")] = "auto",
    finished: Annotated[
        bool, typer.Option("--finished", help="With --arms: train nothing, show what is finished.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and roughly how long.")
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="NAME@K,...", help="Of runs: what is compared, as in NDCG@10,HR@10 "
                     "[dim](NDCG@20,HR@20)[/]"),
    ] = None,
    form: Annotated[
        Form, typer.Option("--format", help="Of runs: how the tables are written.")
    ] = Form.TEXT,
    as_json: Annotated[bool, typer.Option("--json", help="Of runs: JSON on stdout.")] = False,
) -> None:
    """Compare trained runs, or train named arms with several seeds and compare those.

    Differences are paired, by user and by seed, with 95% intervals. With --arms the same command
    again goes on where it stopped, several may share the work, and --seeds and the file may grow;
    it writes compare.json, compare-ranks.safetensors, compare.md and compare.csv.
    """
    if sum((bool(runs), arms is not None, stored is not None)) != 1:
        raise ConfigError(
            "say what to compare: two run folders or more, --arms FILE with --data FILE, or "
            "--from compare.json"
        )
    arms_only = {"--set": assignments, "--finished": finished, "--dry-run": dry_run}
    runs_only = {
        "--json": as_json, "--device": device != "auto", "--metrics": metrics,
        "--format": form is not Form.TEXT,
    }  # fmt: skip
    tables_only = {"--baseline": baseline, "--out": to}
    for way, others in (
        (runs, arms_only | tables_only),
        (stored, arms_only | runs_only | {"--data": data}),
        (arms, runs_only),
    ):
        wrong = [name for name, value in others.items() if way and value]
        if wrong:
            raise ConfigError(f"{', '.join(wrong)}: means nothing here; adarec-fast compare --help")
    if runs:
        if as_json and form is not Form.TEXT:
            raise ConfigError(f"--json and --format {form.value}: choose one of the two")
        named = None if metrics is None else [name.strip() for name in metrics.split(",")]
        _compare_runs(runs, data or [], part, device, named, None if as_json else form)
    elif stored is not None:
        _again(stored, baseline, part, to)
    elif arms is not None:
        to = to or Path("compare")
        _train(arms, data or [], seeds, to, baseline, part, assignments or [], finished, dry_run)


def _compare_runs(
    runs: list[Path], data: list[Path], part: Part, device: str, metrics: list[str] | None,
    form: Form | None,
) -> None:  # fmt: skip
    """``form`` None: JSON."""
    from ..experiments.runs import compare_runs
    from ..experiments.runs_table import USUAL, csv_text, latex, markdown, tables
    from ..ranking.comparison import METRICS

    if len(data) > 1:
        raise ConfigError(f"runs are compared on one --data file; got {len(data)}")
    with waiting("ranking the catalogue"):
        found = compare_runs(
            runs,
            data=data[0] if data else None,
            part="valid" if part is Part.VALID else "test",
            device=device,
            metrics=metrics or METRICS,
        )
    if form is None:
        print(json.dumps(found, indent=2))
        return
    if form is Form.CSV:
        print_exactly(csv_text(found), "--format csv")
        return
    shown = tables(found, metrics or USUAL)
    if form is not Form.TEXT:
        written = markdown(shown) if form is Form.MARKDOWN else latex(shown)
        print_exactly(written, f"--format {form.value}")
        return
    figures, apart = shown
    tell(figures.title, out)
    out.print(_grid(figures.header, figures.rows, figures.left))
    # A table a run: names of folders leave no room for eight columns beside them.
    tell(apart.title, out)
    for run in dict.fromkeys(row[0] for row in apart.rows):
        tell(f"\n{run}", out)
        mine = [row[1:] for row in apart.rows if row[0] == run]
        out.print(_grid(apart.header[1:], mine, apart.left - 1))


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for place, name in enumerate(header):
        table.add_column(
            name, justify="left" if place < left else "right", no_wrap=place > 0, overflow="fold"
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _again(stored: Path, baseline: str | None, part: Part, to: Path | None) -> None:
    from ..experiments.comparison import against, read

    found = read(stored)
    _show(against(found, baseline or found.report["baseline"]), part, to)


def _train(
    file: Path, data: list[Path], seeds: int, to: Path, baseline: str | None, part: Part,
    assignments: list[str], finished: bool, dry_run: bool,
) -> None:  # fmt: skip
    with waiting("starting"):
        from ..experiments import run_sweep
        from ..experiments.arms import read_arms
        from ..experiments.comparison import collect, write
        from ..experiments.definition import exclusive
        from ..experiments.estimate import plan

    if not data:
        raise ConfigError("--arms needs --data FILE; adarec-fast data get beauty fetches one")
    for path in data:
        if not path.is_file():
            raise ConfigError(f"--data {path}: no such file")
    arms = read_arms(file, baseline=baseline, over=read_assignments(assignments))
    folder = to / RUNS
    paths = [path.resolve() for path in data]
    sweep = arms.sweep([str(path) for path in paths], range(seeds))
    keys = arms.keys([path.stem for path in paths], range(seeds))
    labels = [f"{arm}, {name}, seed {seed}" for arm, name, seed in keys]
    if dry_run:
        sweep.merged(folder, extend=True)
        with waiting("timing a few steps of each"):
            rows = plan(sweep, folder)
        out.print(
            planned([replace(row, name=name) for row, name in zip(rows, labels, strict=True)])
        )
        return
    if finished and not folder.exists():
        raise ConfigError(f"--finished: nothing has been trained in {to} yet; leave it out")
    outcomes: list[RunOutcome] = []
    if not finished:
        outcomes = run_sweep(sweep, folder, extend=True, **progress(len(labels), labels))
        outcomes = [replace(o, name=name) for o, name in zip(outcomes, labels, strict=False)]
    # Names, not paths: the file may be committed.
    words = ["adarec-fast", "compare", "--arms", file.name]
    words += [word for path in data for word in ("--data", path.name)]
    words += ["--seeds", str(seeds), *(w for a in assignments for w in ("--set", a))]
    words += [] if baseline is None else ["--baseline", baseline]
    # Under one lock from reading to writing: another process' finished run is not lost.
    with exclusive(folder):
        found = collect(arms, paths, range(seeds), folder, shlex.join(words))
        size = write(to, found)
        _show(found, part, to)
    tell(
        f"compare.json is enough to make the tables again; the ranks beside it take "
        f"{size / 1e6:.1f} MB"
    )
    conclude(outcomes, f"the same command (finished runs are kept in {folder})")
    if failed(outcomes):
        raise typer.Exit(RUN_FAILED)


def _show(found: Comparison, part: Part, to: Path | None) -> None:
    """The tables in the terminal and, in a folder, as files."""
    from ..experiments.comparison_table import csv_text, markdown, notes, rich_tables
    from ..training.checkpoint import write_atomically

    report: Mapping[str, Any] = found.report
    for table in rich_tables(report, part.value):
        out.print(table)
    for note in notes(report):
        tell(note, out)
    if to is not None:
        to.mkdir(parents=True, exist_ok=True)
        write_atomically(to / "compare.md", markdown(report, part.value))
        write_atomically(to / "compare.csv", csv_text(report))
        tell(words("in [bold]{}[/]: compare.md, compare.csv", to))
