"""``adarec-fast models``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from ..models.registry import DEFAULT, listed
from ..training import presets
from .console import command, out


@command
def models(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List the models that --model NAME may name, and the presets that --preset NAME may.

    Models of other packages are among them; a preset is a model with its settings.
    """
    found, ready = listed(), presets.listed()
    if as_json:
        print(json.dumps({"default": DEFAULT, "models": found, "presets": ready}, indent=2))
        return
    for kind, last, entries in (("model", "source", found), ("preset", "model", ready)):
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column(kind, no_wrap=True)
        table.add_column("what it is", overflow="fold")
        table.add_column(last, overflow="fold")
        for entry in entries:
            table.add_row(*(Text(entry[name]) for name in ("name", "summary", last)))
        out.print(table)
