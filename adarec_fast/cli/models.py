"""``adarec-fast models``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from ..models.registry import DEFAULT, listed
from .console import command, out


@command
def models(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List the models that --model NAME may name, those of other packages among them."""
    found = listed()
    if as_json:
        print(json.dumps({"default": DEFAULT, "models": found}, indent=2))
        return
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("model", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    table.add_column("source", overflow="fold")
    for entry in found:
        table.add_row(*(escape(entry[name]) for name in ("name", "summary", "source")))
    out.print(table)
