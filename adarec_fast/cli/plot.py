"""``adarec-fast plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..config import ConfigError
from .console import command, err, out, tell, waiting

_RUN, _SWEEP = "Of a run", "Of a sweep"


@command
def plot(
    folder: Annotated[Path, typer.Argument(help="A run or a sweep.", metavar="RUN_OR_SWEEP_DIR")],
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Which: losses, metrics, length, depth, gate, trajectory, hierarchy, tsne, "
            "clusters. [dim](all)[/]",
            rich_help_panel=_RUN,
        ),
    ] = None,
    which: Annotated[
        str | None,
        typer.Option(
            help="Weights: best or last.", rich_help_panel=_RUN,
            show_default="best, or last where a run ended before its first validation",
        ),
    ] = None,
    users: Annotated[
        int, typer.Option(help="Users drawn for tsne and clusters.", rich_help_panel=_RUN)
    ] = 2000,
    sparse: Annotated[
        bool,
        typer.Option(
            "--sparse",
            help="Draw among users with at most 5 items; of a sweep: their metric.",
        ),
    ] = False,
    clusters: Annotated[int, typer.Option(help="Of k-means.", rich_help_panel=_RUN)] = 8,
    seed: Annotated[
        int, typer.Option(help="Of the draw, k-means and t-SNE.", rich_help_panel=_RUN)
    ] = 0,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN_DIR", help="A run to stand beside in tsne and length; may be repeated.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(help="Whose hierarchy. [dim](who goes deepest)[/]", rich_help_panel=_RUN),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="What sensitivity shows.", rich_help_panel=_SWEEP)
    ] = "NDCG@20",
    to: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the files. [dim](plots in the folder)[/]"),
    ] = None,
    formats: Annotated[str, typer.Option("--format", help="png, svg or both.")] = "png,svg",
    dpi: Annotated[int, typer.Option(help="Pixels an inch.", min=50, max=1200)] = 200,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Draw what a run learned, or how a metric answers to what a sweep varied.

    The same folder and options give the same files, byte for byte. Needs the extra viz.
    """  # fmt: skip
    with waiting("starting"):
        from ..experiments.definition import DEFINITION
        from ..plotting import RunPictures, plot_run, plot_sweep
        from ..plotting.style import require
        from ..training import load_run
        from ..training.loop import resolve_device

        require("matplotlib")
    target = folder / "plots" if to is None else to
    kinds = [kind.strip() for kind in formats.split(",") if kind.strip()]
    if (folder / DEFINITION).exists():
        if only is not None:
            raise ConfigError(f"--only {only}: {folder} is a sweep, with sensitivity alone")
        written = plot_sweep(
            folder, target, metric=metric, sparse=sparse, formats=kinds, dpi=dpi
        )
    else:
        if which not in ("best", "last", None):
            raise ConfigError(f"--which {which!r} must be best or last")
        place = resolve_device(device)
        runs = [
            load_run(path, which=_weights(path, which), device=place)
            for path in (folder, *(compare or []))
        ]
        pictures = RunPictures(
            runs[0], users=users, clusters=clusters, seed=seed, sparse=sparse, compare=runs[1:],
            user=user,
        )
        names = None if only is None else [name.strip() for name in only.split(",")]
        left: list[str] = []
        with waiting("drawing"):
            written = plot_run(
                pictures, target, only=names, formats=kinds, dpi=dpi, skipped=left.append
            )
        for why in left:
            tell(f"left out: {why}", err)
    for path in written:
        out.print(str(path), markup=False, soft_wrap=True)


def _weights(folder: Path, which: str | None) -> Literal["best", "last"]:
    """A run that diverged, or was stopped, before its first validation has no best weights."""
    if which is None and not (folder / "best").exists() and (folder / "last").exists():
        said = f"{folder}: no validation yet, drawn from last/"
        tell(said, err)
        return "last"
    return "last" if which == "last" else "best"
