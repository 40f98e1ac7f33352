"""``adarec-fast serve``."""

from __future__ import annotations

import contextlib
import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..serving.config import ServeConfig
from .console import command, hint, waiting, words
from .options import field_options

if TYPE_CHECKING:
    from ..serving.process import Serving


class Checkpoint(str, enum.Enum):
    """Which weights serve."""

    BEST = "best"
    LAST = "last"


@command
@field_options(ServeConfig, "Service")
def serve(
    run_dir: Annotated[
        Path,
        typer.Argument(help="Folder of a training run, or a link to one that may be changed."),
    ],
    which: Annotated[Checkpoint, typer.Option(help="Which weights to serve.")] = Checkpoint.BEST,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, ...")] = "auto",
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Write a line for every request.")
    ] = False,
    *,
    chosen: dict[str, Any],
) -> None:
    """Answer recommendation requests over HTTP, until SIGTERM or Ctrl-C; SIGHUP reloads."""
    with contextlib.ExitStack() as until_ready:
        if chosen.get("workers") in (None, 1):  # the sign is a thread, which outlives no fork
            until_ready.enter_context(waiting("starting the service"))
        from .. import serving
        from ..training.loop import resolve_device

        config = ServeConfig.create(**chosen)
        source = serving.Source(
            run_dir, which.value, resolve_device(device), config.threads, config.max_batch
        )

        def announce(service: Serving, address: str) -> None:
            until_ready.close()
            _announce(service, address)

        serving.serve(source, config, access_log=access_log, announce=announce)


def _announce(serving: Serving, address: str) -> None:
    model, address = serving.model, address + serving.config.root_path
    hint(words("serving {} on [bold]{}[/], its page at {}", model.path, address, address + "/docs"))
    hint(f"model {model.id}: {len(model.items):,} items, {model.data.num_users:,} users")
