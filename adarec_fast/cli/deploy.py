"""``adarec-fast deploy``: what runs the service on a machine of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..serving.config import ServeConfig
from .console import command, print_exactly
from .options import field_options

app = typer.Typer(
    help="Print a systemd unit or a container file for the service.", no_args_is_help=True
)

_Run = Annotated[Path, typer.Argument(help="Folder of a training run, or a link to one.")]


@app.command("systemd")
@command
@field_options(ServeConfig, "Service")
def systemd(run_dir: _Run, *, chosen: dict[str, Any]) -> None:
    """Print a systemd unit that serves a run, with the options of serve.

    It runs as a user of its own, restarts what fails, and reloads and stops as serve does.
    """
    from ..serving.deploy import systemd_unit

    print_exactly(systemd_unit(run_dir, ServeConfig.create(**chosen)), "deploy systemd")


@app.command("container")
@command
@field_options(ServeConfig, "Service")
def container(run_dir: _Run, *, chosen: dict[str, Any]) -> None:
    """Print a container file for docker or podman, with the options of serve.

    The image has torch for CPUs and no model: the run folder is mounted.
    """
    from ..serving.deploy import container_file

    print_exactly(container_file(run_dir, ServeConfig.create(**chosen)), "deploy container")
