"""``adarec-fast search``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from ..config import ConfigError
from ..training.values import Values
from .console import INTERRUPTED, RUN_FAILED, command, err, out, said, tell, waiting, words
from .options import config_options, given_values

_SHOWN = 10


@command
@config_options("data", "model", "train")
def search(
    search_dir: Annotated[
        Path, typer.Option(help="Folder of the search: a run folder a trial.", metavar="DIR")
    ],
    space: Annotated[
        Path,
        typer.Option(metavar="FILE", help="YAML of fields: a list of values, or low, high, log."),
    ],
    trials: Annotated[int, typer.Option(min=1, help="Trials of the whole search.")] = 20,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What all trials have: a model's settings as one word."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML or JSON: what all trials have.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any field; may be repeated."),
    ] = None,
    *,
    chosen: Values,
) -> None:
    """Search settings by validation NDCG@20 with Optuna; hopeless trials end early.

    The same command again goes on where it stopped, and --trials may grow. Needs
    adarec_fast[search].
    """
    with waiting("starting"):
        from ..data.configured import load_data
        from ..experiments.search import BEST, read_space
        from ..experiments.search import search as run_search
        from ..training import Reporter, make_reporter

    given = given_values(chosen, assignments, preset=preset, config=config)
    if "data" not in given.data:
        raise ConfigError("--data FILE: say what to train on")
    choices = read_space(space, given)

    def started(number: int, values: Mapping[str, Any]) -> None:
        told = ", ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                         for name, value in values.items())  # fmt: skip
        tell(f"[{number + 1}/{trials}] {told}")

    found = run_search(
        given, choices, load_data(given.data), search_dir, trials=trials,
        reporter=lambda: Reporter() if said.quiet else make_reporter(said), on_trial=started,
    )  # fmt: skip
    ranked = sorted(found, key=lambda one: -1.0 if one.metric is None else -one.metric - 1)
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("trial", *choices, "status", "NDCG@20"):
        table.add_column(Text(name), overflow="fold")
    for one in ranked[:_SHOWN]:
        given_to = (one.values.get(name) for name in choices)
        values = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in given_to)
        metric = "" if one.metric is None else f"{one.metric:.4f}"
        table.add_row(*map(Text, (one.run, *values, one.status, metric)))
    out.print(table)
    if found and found[-1].status == "interrupted":
        err.print("[yellow]interrupted[/]; the same command goes on")
        raise typer.Exit(INTERRUPTED)
    if not any(one.status == "finished" for one in found):
        err.print("no trial was finished", markup=False)
        raise typer.Exit(RUN_FAILED)
    tell(words("the best: [bold]adarec-fast train --config {}[/]", search_dir / BEST))
