"""``adarec-fast memory``: what a run's rankings remember of who went from which item to which."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import command, out

app = typer.Typer(
    name="memory",
    help="Count which items follow which, and add it to a run's rankings.",
    no_args_is_help=True,
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")]


@app.command("fit")
@command
def fit(
    run: RunFolder,
    neighbours: Annotated[
        int | None,
        typer.Option(min=1, help="Largest weights kept of an item. [dim](as configured: 128)[/]"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Give a finished run a memory, or a new one: its training histories are counted, and how much
    the counts weigh beside the model is chosen on the validation part.

    Training with --memory transitions does the same at its end.
    """
    from ..training.loop import resolve_device
    from ..training.remember import in_words, remember
    from ..training.run_folder import locked, read_config

    read_config(run)  # before a lock would make the folder
    with locked(run):
        fitted = remember(run, resolve_device(device), neighbours)
    out.print(in_words(fitted))
