"""``adarec-fast reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from ..config import ConfigError
from ..training.values import Values, place, read_assignments, read_config
from .console import RUN_FAILED, command, out, tell, waiting, words
from .sweep import conclude, failed, progress

if TYPE_CHECKING:
    from ..experiments.estimate import Planned

RUNS = "runs"


@command
def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="TABLE", help="table1, table2, table4 or table5.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="One of the paper's data sets, known by its name (Beauty.txt, "
            "Toys_and_Games.txt, ...); may be repeated.",
        ),
    ] = None,
    to: Annotated[
        Path, typer.Option("--out", help="Folder of the tables and, in runs/, of the sweep.")
    ] = Path("reproduce"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... to average over.")] = 5,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="At most so many. [dim](200)[/]")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Who runs the ops.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ...")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML or JSON, as for train.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any field; may be repeated."),
    ] = None,
    list_tables: Annotated[
        bool, typer.Option("--list", help="Say which tables there are, and what each trains.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and roughly how long.")
    ] = False,
) -> None:
    """Train what a table of the paper needs, and put its figures beside ours.

    The tables share their runs; the same command again goes on where it stopped. Writes
    TABLE.md and TABLE.csv. Settings are those of train; the paper's own weight decay would be
    --set weight_decay=1e-4.
    """
    with waiting("starting"):
        from ..experiments import Sweep, run_sweep, summarise
        from ..experiments.estimate import plan
        from ..experiments.render import csv_text, markdown, rich_table
        from ..experiments.tables import fill, get_table
        from ..training.checkpoint import write_atomically

    if list_tables:
        out.print(_catalogue())
        return
    if name is None:
        raise ConfigError("say which table: table1, table2, table4 or table5 (--list shows them)")
    table = get_table(name)
    if not data:
        raise ConfigError(f"{name} needs --data FILE; adarec-fast data get beauty fetches one")
    given = Values() if config is None else read_config(config)
    options = {"epochs": epochs, "backend": backend, "device": device}
    given = given.update(place({k: v for k, v in options.items() if v is not None}))
    given = given.update(read_assignments(assignments or []))
    _check_base(given)
    for path in data:
        if not path.is_file():
            raise ConfigError(f"--data {path}: no such file")
    paths = [str(path.resolve()) for path in data]
    sweep = Sweep.create(given, combinations=table.combinations(paths, range(seeds)))
    folder = to / RUNS
    if dry_run:
        sweep.merged(folder, extend=True)
        with waiting("timing a few steps of each"):
            rows = plan(sweep, folder)
        out.print(planned(rows))
        return
    shown = progress(len(sweep.combinations))
    outcomes = run_sweep(sweep, folder, extend=True, **shown)
    groups = summarise(folder, sweep.combinations)
    filled = [fill(table, path, groups) for path in paths]
    for one in filled:
        out.print(rich_table(one))
    write_atomically(to / f"{name}.md", markdown(filled))
    write_atomically(to / f"{name}.csv", csv_text(filled))
    tell(words("in [bold]{}[/]: {}", to, f"{name}.md, {name}.csv"))
    conclude(outcomes, f"the same command (finished runs are kept in {folder})")
    if failed(outcomes):
        raise typer.Exit(RUN_FAILED)


def _check_base(given: Values) -> None:
    """What the tables' lines differ in cannot be set for all of them."""
    from ..experiments.tables import OWN_KEYS

    for section in (given.data, given.model, given.train):
        both = [key for key in OWN_KEYS if key in section]
        if both:
            raise ConfigError(f"{', '.join(both)}: set by the table's own lines; leave it out")


def _catalogue() -> RichTable:
    from ..experiments.tables import NOT_RUNNABLE, TABLES

    table = RichTable(box=box.SIMPLE_HEAD, show_lines=True)
    for column in ("table", "shows", "trained here, for each data set and seed"):
        table.add_column(column)
    for one in TABLES.values():
        rows = [row for row in one.rows if row.values is not None]
        text = "\n".join(
            f"{row.label}: " + (" ".join(f"{k}={v}" for k, v in (row.values or {}).items()) or "-")
            for row in rows
        )
        table.add_row(one.name, one.title, Text(text))
    for name, why in NOT_RUNNABLE.items():
        table.add_row(name, "not runnable", Text(why))
    return table


def planned(rows: list[Planned]) -> RichTable:
    """The runs, how far each is, and at most how long the rest takes."""
    total = sum(row.seconds for row in rows)
    table = RichTable(
        box=box.SIMPLE_HEAD,
        caption=f"at most about {_hours(total)}, one after the other; early stopping usually ends "
        "a run sooner",
        caption_justify="left",
    )
    table.add_column("run", overflow="fold")
    for column in ("state", "epochs", "at most"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        left = _hours(row.seconds) if row.seconds else ""
        table.add_row(Text(row.name), row.state, f"{row.done}/{row.epochs}", left)
    return table


def _hours(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

