"""``adarec-fast items``: new items in what a run recommends, by what is known of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import command, out

app = typer.Typer(
    name="items", help="Items of a run that have features.", no_args_is_help=True
)


@app.command("add")
@command
def add(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What is known of the items.")],
    items_id_column: Annotated[str | None, typer.Option(help="Column of the item ids.")] = None,
) -> None:
    """Give items that nobody has taken yet a place, by their features, without training.

    recommend and serve use them from now on; a service that watches the run takes them over while
    it serves. Known items get the features that the file has. The run itself stays what it was,
    for evaluate, export and train --resume.
    """
    from ..data.item_tables import read_items
    from ..training.run_folder import columns_of_features, locked, read_config
    from ..training.updated import add_items

    about = read_config(run)[2]  # before a lock would make the folder
    source = about.get("source") or {}
    table = read_items(
        file, id_column=items_id_column or source.get("items_id_column"),
        like=columns_of_features(about), item=source.get("item_column"),
        text_ids=source.get("ids") == "text",
    )  # fmt: skip
    with locked(run):
        before = about["items"]
        grown = add_items(run, table)
    for told in table.told:
        out.print(told, markup=False, soft_wrap=True)
    out.print(
        f"{len(table.ids):,} items read; the run recommends {grown.num_items:,} now, "
        f"{grown.num_items - before:,} more than it was trained with"
    )
