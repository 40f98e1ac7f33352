"""``adarec-fast``: train, evaluate, recommend, serve, and look after data and backends."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..version import __version__
from . import (
    compare,
    data,
    deploy,
    docs,
    evaluate,
    export,
    info,
    items,
    memory,
    models,
    plot,
    recommend,
    reproduce,
    search,
    serve,
    similar,
    sweep,
    train,
    tune,
)
from .console import Commands, print_in_any_encoding


class _App(Commands):
    def __call__(self, *args: Any, **options: Any) -> Any:
        print_in_any_encoding()  # help texts and typer's own errors, too
        return super().__call__(*args, **options)


app = _App(
    name="adarec-fast",
    help="ADARec: sequential recommendation by adaptive diffusion and a mixture of experts.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"adarec-fast {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


_EXPERIMENTS, _MACHINE = "Experiments", "This machine"
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("recommend")(recommend.recommend)
app.command("similar")(similar.similar)
app.command("serve")(serve.serve)
app.add_typer(deploy.app, name="deploy")
app.command("export")(export.export)
app.command("models")(models.models)
app.add_typer(data.app, name="data")
app.add_typer(memory.app, name="memory")
app.add_typer(items.app, name="items")
app.command("plot", rich_help_panel=_EXPERIMENTS)(plot.plot)
app.command("compare", rich_help_panel=_EXPERIMENTS)(compare.compare)
app.command("sweep", rich_help_panel=_EXPERIMENTS)(sweep.sweep)
app.command("search", rich_help_panel=_EXPERIMENTS)(search.search)
app.command("reproduce", rich_help_panel=_EXPERIMENTS)(reproduce.reproduce)
app.command("docs")(docs.docs)
app.command("info", rich_help_panel=_MACHINE)(info.info)
app.command("build", rich_help_panel=_MACHINE)(info.build)
app.command("tune", rich_help_panel=_MACHINE)(tune.tune)

__all__ = ["app"]
