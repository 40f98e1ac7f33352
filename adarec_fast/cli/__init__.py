"""``adarec-fast``: train, evaluate, recommend, serve, and look after data and backends."""

from __future__ import annotations

import typer

from . import (
    data,
    evaluate,
    export,
    info,
    plot,
    recommend,
    reproduce,
    serve,
    sweep,
    train,
    tune,
)

app = typer.Typer(
    name="adarec-fast",
    help="ADARec: sequential recommendation by adaptive diffusion and a mixture of experts.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("recommend")(recommend.recommend)
app.command("plot")(plot.plot)
app.command("sweep")(sweep.sweep)
app.command("reproduce")(reproduce.reproduce)
app.command("serve")(serve.serve)
app.command("export")(export.export)
app.add_typer(data.app, name="data")
app.command("info")(info.info)
app.command("build")(info.build)
app.command("tune")(tune.tune)

__all__ = ["app"]
