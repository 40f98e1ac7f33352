"""``adarec-fast similar``."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from ..config import ConfigError
from .answers import as_csv
from .console import command, formerly, out, print_exactly, tell, waiting, words
from .ids import AllowFile, Device, ExcludeFile, UnknownItems, encode, items_of_file


class Format(str, enum.Enum):
    """Forms of an answer."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


@command
@formerly(output="format")
def similar(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    item: Annotated[list[str], typer.Argument(metavar="ITEM...", help="External ids of items.")],
    k: Annotated[
        int | None,
        typer.Option(
            help="How many items to list.", min=1, show_default="20, or all if there are fewer"
        ),
    ] = None,
    unknown_items: Annotated[
        UnknownItems,
        typer.Option(help="What to do with items of a file that the catalogue does not have."),
    ] = UnknownItems.REFUSE,
    allow_file: AllowFile = None,
    exclude_file: ExcludeFile = None,
    format: Annotated[Format, typer.Option(help="Of the answer.")] = Format.TABLE,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON on stdout, as --format json.")
    ] = False,
    device: Device = "auto",
) -> None:
    """List the items whose vectors point most nearly where an item's own does (the cosine)."""
    if as_json:
        if format is Format.CSV:
            raise ConfigError("--json and --format csv: choose one of the two")
        format = Format.JSON
    with waiting("reading the run"):
        from ..models.answers import Recommendations
        from ..ranking.recommender import Recommender
        from ..training.loop import resolve_device
        from ..training.updated import load_current

        run = load_current(run_dir, device=resolve_device(device))
    items = run.data.items
    ignore = unknown_items is UnknownItems.IGNORE
    asked = encode(items, item, "ITEM")
    if k is None:
        k = min(20, len(items))
    if k > len(items):
        raise ConfigError(f"k={k} is more than the catalogue holds; at most {len(items)}")
    ranking = Recommender(run.model).similar_items(
        asked, k, allow=items_of_file(items, allow_file, "--allow-file", ignore),
        exclude=items_of_file(items, exclude_file, "--exclude-file", ignore),
    )  # fmt: skip
    answers = Recommendations(
        ranking.items, ranking.scores, {}, items, asked=items.decode(asked)
    )
    if format is Format.JSON:
        found = [
            {"item": answer.user, "items": [
                {"item": near, "score": score}
                for near, score in zip(answer.items, answer.scores, strict=True)
            ]}
            for answer in answers
        ]  # fmt: skip
        print(json.dumps(found, indent=2))
    elif format is Format.CSV:
        columns = ("similar_to", "item", "score", "rank")
        ranked = [(answer.user, answer.items, answer.scores) for answer in answers]
        print_exactly(as_csv(columns, ranked), "--format csv")
    else:
        for answer in answers:
            tell(words("[bold]similar to {}[/]", answer.user), out)
            table = Table(box=box.SIMPLE_HEAD)
            table.add_column("rank", justify="right")
            table.add_column("item", overflow="fold")
            table.add_column("cosine", justify="right")
            for rank, pair in enumerate(zip(answer.items, answer.scores, strict=True), 1):
                table.add_row(str(rank), Text(str(pair[0])), f"{pair[1]:.3f}")
            out.print(table)
