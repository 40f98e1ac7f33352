"""``adarec-fast sweep``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from ..config import ConfigError
from ..training.values import Values
from .console import INTERRUPTED, RUN_FAILED, command, err, out, said, tell, waiting, words
from .options import config_options, given_values
from .train import SYNTHETIC

if TYPE_CHECKING:
    from ..experiments import Group, RunOutcome

SHOWN = ("HR@20", "NDCG@20")  # in the terminal; the files have all metrics


@command
@config_options("data", "model", "train")
def sweep(
    sweep_dir: Annotated[
        Path, typer.Option(help="Folder of the sweep: a run folder a combination.", metavar="DIR")
    ],
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2", help="Values of any field; may be repeated."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML or JSON: a configuration, and grid (lists by key) or list (of mappings).",
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any field; may be repeated."),
    ] = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="Add combinations to the sweep in --sweep-dir.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run, and change nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The averages, as JSON on stdout.")
    ] = False,
    *,
    chosen: Values,
) -> None:
    """Train every combination of some values, test each, and average over the seeds.

    The same command again goes on where it stopped; without --grid and --config it takes the
    definition that is in the folder. Started twice, the two share the combinations.
    """
    with waiting("starting"):
        from ..experiments import Sweep, parse_grid, run_sweep, write_summary
        from ..experiments.definition import DEFINITION, read_sweep_file
        from ..experiments.summary import row

    given, axes, listed = (
        read_sweep_file(config)
        if config is not None
        else (Values(), dict[str, list[Any]](), None)
    )
    given = given_values(chosen, assignments, config=given)
    axes = {**axes, **parse_grid(grid or [])}
    if not axes and listed is None:
        if not (sweep_dir / DEFINITION).exists():
            raise ConfigError("nothing to sweep over; give --grid KEY=V1,V2 or --config FILE")
        if any((given.data, given.model, given.train)):
            raise ConfigError(
                f"{sweep_dir} is gone on with as it was defined; leave the other options out, or "
                "give --grid again"
            )
        definition = Sweep.load(sweep_dir)
    else:
        swept = set(axes).union(*listed or [])
        named = {"data", "data.data"} & swept
        if not named and given.data.get("data", "synthetic") == "synthetic":
            tell("synthetic data, with the smaller defaults that train has for it")
            given = SYNTHETIC.update(given)
        definition = Sweep.create(given, axes, listed)
    if dry_run:
        show_plan(definition.merged(sweep_dir, extend=extend), sweep_dir)
        return
    outcomes = run_sweep(
        definition, sweep_dir, extend=extend, **progress(len(definition.combinations))
    )
    conclude(outcomes, f"adarec-fast sweep --sweep-dir {sweep_dir}")
    groups = write_summary(sweep_dir)
    if as_json:
        print(json.dumps([row(group) for group in groups], indent=2))
    else:
        out.print(summary_table(groups))
    tell(words("in [bold]{}[/]: summary.json, summary.csv", sweep_dir))
    if failed(outcomes):
        raise typer.Exit(RUN_FAILED)


def progress(total: int, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """What shows a sweep's progress: keyword arguments of ``run_sweep``.

    ``labels``: what its runs are called, by default as their folders are.
    """
    from ..training import Reporter, make_reporter

    words = {"finished": "finished before", "diverged": "diverged before", "begun": "going on"}

    def started(number: int, name: str, state: str) -> None:
        label = name if labels is None else labels[number]
        line = f"[{number + 1}/{total}] {label}  {words.get(state, '')}"
        tell(line.rstrip())

    def reporter() -> Reporter:
        return Reporter() if said.quiet else make_reporter(said)

    return {"reporter": reporter, "on_start": started}


def conclude(outcomes: list[RunOutcome], again: str) -> None:
    """Say what is left to do; leave with the exit code of an interruption if there was one."""
    for outcome in outcomes:
        if outcome.status == "busy":
            tell(f"{outcome.name}: another process is at it", err)
        elif outcome.status == "diverged" and outcome.result is not None:
            tell(f"{outcome.name}: {outcome.result['error']}", err)
    if outcomes and outcomes[-1].status == "interrupted":
        tell(words("[yellow]interrupted[/]; go on with: {}", again), err)
        raise typer.Exit(INTERRUPTED)


def failed(outcomes: list[RunOutcome]) -> bool:
    """Whether a run diverged, or nothing was trained though something is left to do."""
    states = {outcome.status for outcome in outcomes}
    if "busy" in states and "finished" not in states:
        tell("nothing was trained: other processes are at all that is left", err)
        return True
    return "diverged" in states


def show_plan(definition: Any, folder: Path) -> None:
    """The combinations and how far each is."""
    from ..experiments.definition import DEFINITION, run_name
    from ..experiments.runner import state_of

    if not (folder / DEFINITION).exists():
        out.print(f"{folder} would be made", markup=False)
    for combination in definition.combinations:
        state = state_of(folder, combination)
        out.print(f"{state:9} {run_name(combination)}", markup=False, soft_wrap=True)


def summary_table(groups: list[Group]) -> Table:
    """Test figures of each group, mean ± standard deviation over its runs."""
    table = Table(
        box=box.SIMPLE_HEAD, title="test, mean ± std over seeds", title_justify="left",
        padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    keys = list(dict.fromkeys(key for group in groups for key in group.values))
    for key in keys:
        table.add_column(Text(key), overflow="fold")
    figures = [(part, metric) for part in ("test", "test_sparse") for metric in SHOWN]
    names = [f"{users}\n{metric}" for users in ("all", "sparse") for metric in SHOWN]
    for name in ("runs", *names):
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        runs = str(len(group.results)) + ("" if not group.missing else f"+{len(group.missing)}")
        cells = [mean_pm(*group.mean_std(part, metric)) for part, metric in figures]
        table.add_row(*(Text(str(group.values.get(k, ""))) for k in keys), runs, *cells)
    if any(group.missing for group in groups):
        table.caption = "runs: finished + still to run"
    return table


def mean_pm(mean: float | None, std: float | None, digits: int = 4) -> str:
    """``0.0631±0.0005``; without a deviation the mean alone, – without a mean."""
    if mean is None or math.isnan(mean):
        return "–"
    text = f"{mean:.{digits}f}"
    return text if std is None else f"{text}±{std:.{digits}f}"
