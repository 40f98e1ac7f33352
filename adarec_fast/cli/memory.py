"""``adarec-fast memory``: what a run's rankings remember of who went from which item to which."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import command, out, tell, waiting

app = typer.Typer(
    name="memory",
    help="Find which items follow which, and add it to a run's rankings.",
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
    kind: Annotated[
        str | None,
        typer.Option(help="regression or transitions. [dim](as configured, else regression)[/]"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Give a finished run a memory, or a new one: which items follow which is found in its
    training histories, by a regression or counts, and how much that weighs beside the model is
    chosen on the validation part.

    Training with --memory regression (or transitions) does the same at its end.
    """
    with waiting("finding which items follow which"):
        from ..models.memory import known_kind
        from ..training.loop import resolve_device
        from ..training.remember import in_words, remember
        from ..training.run_folder import locked, read_config

        wanted = None if kind is None else known_kind(kind, "--kind")
        read_config(run)  # before a lock would make the folder
        with locked(run):
            fitted = remember(run, resolve_device(device), neighbours, kind=wanted)
    tell(in_words(fitted), out)


@app.command("update")
@command
def update(
    run: RunFolder,
    data: Annotated[Path, typer.Option(metavar="FILE", help="The new interactions.")],
    format: Annotated[str, typer.Option(help="Format of the file, as for train.")] = "auto",
    user_column: Annotated[str | None, typer.Option(help="Column of the user ids.")] = None,
    item_column: Annotated[str | None, typer.Option(help="Column of the item ids.")] = None,
    time_column: Annotated[
        str | None, typer.Option(help="Column to sort each history by, as for train.")
    ] = None,
    time_format: Annotated[
        str | None, typer.Option(help="How times are written, as for train.")
    ] = None,
    ids: Annotated[str, typer.Option(help="auto or text, as for train.")] = "auto",
    event_column: Annotated[str | None, typer.Option(help="Column of what happened.")] = None,
    keep: Annotated[str | None, typer.Option(help="Events that count, A,B,...")] = None,
    separator: Annotated[str | None, typer.Option(help="What stands between fields.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Names of the columns of a file without a header.")
    ] = None,
    items: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Features of new items, of a run that has such."),
    ] = None,
    items_id_column: Annotated[str | None, typer.Option(help="Its column of the item ids.")] = None,
) -> None:
    """Count new interactions into a run's memory, without training: later ones of known users, new
    users, new items.

    recommend and serve use them from now on; a service that watches the run takes them over while
    it serves. The run itself stays what it was, for evaluate, export and train --resume.
    """
    with waiting("counting the new interactions"):
        from ..config import DataConfig
        from ..data.item_tables import read_items
        from ..data.readers import load
        from ..training.run_folder import columns_of_features, locked, read_config
        from ..training.updated import update_memory

        about = read_config(run)[2]  # before a lock would make the folder
        asked = DataConfig.create(data=str(data), format=format, ids=ids)  # what they may be
        more = load(
            data, format=asked.format, user=user_column, item=item_column, time=time_column,
            time_format=time_format, ids=asked.ids, event=event_column, keep=keep,
            separator=separator, columns=columns, min_length=1,
        )  # fmt: skip
        table = None
        if items is not None:
            table = read_items(
                items, id_column=items_id_column, like=columns_of_features(about),
                item=item_column, text_ids=ids == "text",
            )  # fmt: skip
        with locked(run):
            grown = update_memory(run, more, table)
    tell(
        f"{grown.interactions:,} interactions counted in: {grown.new_users:,} new users, "
        f"{grown.new_items:,} new items", out,
    )  # fmt: skip
