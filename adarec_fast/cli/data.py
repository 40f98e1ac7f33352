"""``adarec-fast data get|inspect|synth``."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from ..training.values import Values
from .console import Commands, command, err, formerly, hint, out, said, waiting
from .options import config_options

app = Commands(no_args_is_help=True, help="Download, look at or generate interaction data.")


class DataSet(str, enum.Enum):
    """The paper's data sets."""

    BEAUTY = "beauty"
    SPORTS = "sports"
    TOYS = "toys"
    YELP = "yelp"


class SynthFormat(str, enum.Enum):
    """What ``data synth`` writes."""

    SEQUENCES = "sequences"
    CSV = "csv"


@app.command("get")
@command
@formerly(folder="to")
def get(
    name: Annotated[DataSet, typer.Argument(help="Which of the paper's data sets.")],
    to: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where to put the file.")
    ] = Path("data"),
    base_url: Annotated[
        str | None,
        typer.Option(
            envvar="ADAREC_FAST_DATA_URL",
            help="Where the files lie, instead of the public repository yueliu1999/ELCRec.",
        ),
    ] = None,
) -> None:
    """Download a data set of the paper, check it, and resume what was interrupted."""
    from ..data import download

    choice = name.value
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=err, transient=True, disable=not err.is_terminal or said.quiet
    ) as progress:
        task = progress.add_task(choice, total=None)

        def show(done: int, total: int | None) -> None:
            progress.update(task, completed=done, total=total)

        path = download(choice, to, base_url=base_url, progress=show)
    hint(f"{choice}: {path.stat().st_size:,} bytes, checksum right")
    print(path)


@app.command("inspect")
@command
@config_options("data", without=("data",))
def inspect(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", help="Files of interactions, read as one data set, or synthetic."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    *,
    chosen: Values,
) -> None:
    """Show which columns were read and why, sizes, history lengths, and what was dropped."""
    with waiting("reading the data"):
        from ..data import inspect as describe
        from ..data.configured import load_data

        facts = describe(load_data(chosen.data | {"data": paths[0] if len(paths) == 1 else paths}))
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        out.print(_table(facts))


@app.command("synth")
@command
def synth(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write.")],
    users: Annotated[int, typer.Option(help="Number of users.")] = 2000,
    items: Annotated[int, typer.Option(help="Size of the catalogue.")] = 500,
    seed: Annotated[int, typer.Option(help="Same seed, same data.")] = 0,
    format: Annotated[
        SynthFormat | None,
        typer.Option(help="A user's history a line, or a table; by the name if not given."),
    ] = None,
) -> None:
    """Write a data set with a planted two-level hierarchy of intents."""
    with waiting("drawing histories"):
        from ..data import synthetic, write_csv, write_sequences

        data = synthetic(num_users=users, num_items=items, seed=seed)
    as_csv = target.suffix == ".csv" if format is None else format is SynthFormat.CSV
    target.parent.mkdir(parents=True, exist_ok=True)
    (write_csv if as_csv else write_sequences)(data, target)
    hint(
        f"{data.num_users:,} users, {data.num_items:,} items, "
        f"{data.num_interactions:,} interactions"
    )
    print(target)


def _table(facts: dict[str, Any]) -> Table:
    from ..data import ReadReport

    table = Table(title=Text(facts["name"]), title_justify="left", box=None, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    length = facts["length"]
    quantiles = "  ".join(
        f"{float(q) * 100:g}%: {value:g}" for q, value in length["quantiles"].items()
    )
    repeats = facts["repeats"]
    kinds = {"int": "whole numbers", "str": "text"}
    read = ReadReport(**facts["report"]) if facts["report"] else None
    rows = {
        "read as": f"{read.format}, {read.num_read:,} interactions" if read else "generated",
        "columns": "\n".join(read.chosen() if read else ()),
        "ids": ", ".join(f"{role}s {kinds[kind]}" for role, kind in facts["ids"].items()),
        "users": f"{facts['users']:,}",
        "items": f"{facts['items']:,} ({facts['items_untouched']:,} in no history)",
        "interactions": f"{facts['interactions']:,} (density {facts['density']:.3%})",
        "history length": f"mean {length['mean']:.1f}, median {length['median']:g}, "
        f"{length['min']} to {length['max']}",
        "quantiles": quantiles,
        "split": facts["split"]["in_words"] if facts["split"] else "",
        "training prefixes": f"{facts['training_prefixes']:,}",
        "sparse users": f"{facts['sparse_share']:.1%} (at most 5 items before the test item)",
        "test targets seen": f"{facts['repeated_test_targets']:.2%} (unreachable when masked)",
        "repeats kept": f"{repeats['all']:,} of an item in its history, "
        f"{repeats['consecutive']:,} of them in a row (--deduplicate)"
        if repeats["all"]
        else "none",
        "of items": facts.get("features", ""),
        "dropped": ", ".join(read.left_out() if read else ()) or "nothing",
        "most frequent": "  ".join(
            f"{row['item']} ({row['count']:,})" for row in facts["top_items"]
        ),
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, Text(str(value)))
    return table
