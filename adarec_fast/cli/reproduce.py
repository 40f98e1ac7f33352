"""``adarec-fast reproduce``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from ..config import ConfigError
from ..training.values import Values, place, read_assignments, read_config
from .console import RUN_FAILED, command, hint, out, tell, waiting, words
from .sweep import conclude, failed, progress

if TYPE_CHECKING:
    from ..experiments.estimate import Planned
    from ..experiments.filled import Filled
    from ..experiments.reproduction import Reproduction

RUNS = "runs"


@command
def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(metavar="TABLE", help="table1 to table5, figure2, figure4 to figure6."),
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
        Path, typer.Option("--out", help="Folder of the tables and, below it, of their runs.")
    ] = Path("reproduce"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... to average over.")] = 5,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="At most so many. [dim](200; of table5 3)[/]")
    ] = None,
    budget_hours: Annotated[
        float | None,
        typer.Option(
            metavar="HOURS", help="Train what fits into so many, beginning with what tells most."
        ),
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
        bool, typer.Option("--list", help="Say which there are, and what each trains.")
    ] = False,
    finished: Annotated[
        bool, typer.Option("--finished", help="Train nothing, show what is finished.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and roughly how long.")
    ] = False,
) -> None:
    """Train what a table or figure of the paper needs, and put its figures beside ours.

    Tables share their runs; the same command again goes on where it stopped. TABLE.md and
    TABLE.csv are written whenever a run ends, and of a figure a picture at the end. Settings are
    those of train, of other systems those of their own scripts, and every position is an example;
    the paper's own weight decay would be --set weight_decay=1e-4.
    """
    with waiting("starting"):
        from ..experiments import RunOutcome, run_sweep
        from ..experiments.definition import run_name
        from ..experiments.estimate import plan
        from ..experiments.render import rich_table
        from ..experiments.reproduction import Reproduction, fitting, run_within
        from ..experiments.tables import TABLES, get_table

    if list_tables:
        out.print(_catalogue())
        return
    if name is None:
        raise ConfigError(f"say which table: {', '.join(TABLES)} (--list shows them)")
    table = get_table(name)
    if not data:
        raise ConfigError(f"{name} needs --data FILE; adarec-fast data get beauty fetches one")
    if budget_hours is not None and not budget_hours > 0:
        raise ConfigError(f"--budget-hours {budget_hours:g} must be above 0")
    given = Values() if config is None else read_config(config)
    options = {"epochs": epochs, "backend": backend, "device": device}
    given = given.update(place({k: v for k, v in options.items() if v is not None}))
    given = given.update(read_assignments(assignments or []))
    for path in data:
        if not path.is_file():
            raise ConfigError(f"--data {path}: no such file")
    wanted = Reproduction.create(table, [str(path.resolve()) for path in data], range(seeds), given)
    if table.is_figure:
        from ..plotting.style import require

        for module in ("matplotlib", "sklearn"):
            require(module)
    sweep, folder = wanted.sweep(), to / table.folder
    if dry_run:
        sweep.merged(folder, extend=True)
        with waiting("timing a few steps of each"):
            rows = plan(sweep, folder)
        names = {run_name(combination) for combination in sweep.combinations}
        rows = [row for row in rows if row.name in names]
        fits = None if budget_hours is None else fitting(rows, 3600 * budget_hours)
        out.print(planned(rows, fits))
        return

    def ended(_: RunOutcome) -> None:
        _write(wanted, to, {})

    outcomes: list[RunOutcome] = []
    left: list[Planned] = []
    told = progress(len(sweep.combinations))
    if finished:
        sweep.merged(folder, extend=True)
    elif budget_hours is None:
        outcomes = run_sweep(sweep, folder, extend=True, on_end=ended, **told)
    else:
        hint("timing a few steps of each run")
        outcomes, left = run_within(sweep, folder, 3600 * budget_hours, on_end=ended, **told)
    beyond = {row.name: f"beyond the budget, {_hours(row.seconds)} at most" for row in left}
    for one in _write(wanted, to, beyond):
        out.print(rich_table(one))
    files = [f"{name}.md", f"{name}.csv"]
    if table.is_figure:
        files += _draw(wanted, to)
    tell(words("in [bold]{}[/]: {}", to, ", ".join(files)))
    conclude(outcomes, f"the same command (finished runs are kept in {folder})")
    if failed(outcomes):
        raise typer.Exit(RUN_FAILED)


def _write(wanted: Reproduction, to: Path, beyond: dict[str, str]) -> list[Filled]:
    """The tables of what is finished, as files; returns them."""
    from ..experiments import summarise
    from ..experiments.filled import fill
    from ..experiments.render import csv_text, markdown
    from ..experiments.reproduction import unfinished
    from ..training.checkpoint import write_atomically

    folder, sweep = to / wanted.table.folder, wanted.sweep()
    why = {**unfinished(sweep, folder), **beyond}
    groups = summarise(folder, sweep.combinations)
    filled = [fill(wanted, path, groups, why) for path in wanted.data]
    to.mkdir(parents=True, exist_ok=True)
    write_atomically(to / f"{wanted.table.name}.md", markdown(filled))
    write_atomically(to / f"{wanted.table.name}.csv", csv_text(filled))
    return filled


def _draw(wanted: Reproduction, to: Path) -> list[str]:
    """The pictures of a figure; names of their files. What cannot be drawn yet is said."""
    from ..plotting.reproduced import draw

    found = []
    for path in wanted.data:
        try:
            found += [one.name for one in draw(wanted, path, to / wanted.table.folder, to)]
        except ConfigError as error:
            hint(str(error))
    return found


def _catalogue() -> RichTable:
    from ..experiments.tables import TABLES

    table = RichTable(box=box.SIMPLE_HEAD, show_lines=True)
    for column in ("table", "shows", "trained here, for each data set and seed"):
        table.add_column(column)
    for one in TABLES.values():
        lines: dict[str, list[str]] = {}
        for row in one.rows:
            chosen = {} if row.values is None else dict(row.values)
            losses = lines.setdefault(row.label, [])
            if "loss" in chosen and losses:
                losses.append(f"and {row.loss}")
            else:
                told = " ".join(f"{key}={value}" for key, value in chosen.items()) or "-"
                losses.append(told if row.why is None else row.why)
        text = "\n".join(f"{label}: {' '.join(losses)}" for label, losses in lines.items())
        table.add_row(one.name, one.title, Text(text))
    return table


def planned(rows: Sequence[Planned], fits: Sequence[Planned] | None = None) -> RichTable:
    """The runs, how far each is, and at most how long the rest takes.

    Args:
        rows: of them.
        fits: those that fit a budget, where there is one.
    """
    total = sum(row.seconds for row in rows)
    caption = (
        f"at most about {_hours(total)}, one after the other; early stopping usually ends a run "
        "sooner"
    )
    if fits is not None:
        takes = _hours(sum(row.seconds for row in fits))
        caption += f"; {len(fits)} fit the budget even so, in {takes}"
    table = RichTable(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    table.add_column("run", overflow="fold")
    for column in ("state", "epochs", "at most", *(["fits"] if fits is not None else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        left = _hours(row.seconds) if row.seconds else ""
        cells = [row.state, f"{row.done}/{row.epochs}", left]
        if fits is not None:
            cells.append("yes" if row in fits else "no" if row.seconds else "")
        table.add_row(Text(row.name), *cells)
    return table


def _hours(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
