"""``adarec-fast tune``: measure the tiles of the Triton kernels ahead of their use."""

from __future__ import annotations

import enum
import os
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from .console import command, out, waiting


class Precision(str, enum.Enum):
    """Of the matrix products."""

    IEEE = "ieee"
    TF32 = "tf32"
    BF16 = "bf16"


@command
def tune(
    hidden_size: Annotated[int, typer.Option(min=1, help="D.")] = 64,
    max_depth: Annotated[int, typer.Option(min=1, help="T_max.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Histories a step.")] = 256,
    num_items: Annotated[int, typer.Option(min=1, help="Items in the catalogue.")] = 12101,
    precision: Annotated[
        Precision, typer.Option(help="IEEE float32, TF32, or bfloat16 under autocast.")
    ] = Precision.IEEE,
) -> None:
    """Measure the kernels' tiles for a model and batch size, and keep them for later runs.

    Runs that are to use them are started with ADAREC_FAST_AUTOTUNE=1. Needs a CUDA device.
    """
    import torch

    from ..config import TrainConfig
    from ..models.registry import create_config
    from ..ops import BackendError
    from ..ops._library import implementation
    from ..training.exercise import exercise

    if not torch.cuda.is_available():
        raise BackendError("tiles are measured on a CUDA device, and torch finds none here")
    from ..kernels import _autotune

    os.environ[_autotune.ENVIRONMENT] = "1"
    implementation.cache_clear()
    config = create_config({
        "num_items": num_items, "hidden_size": hidden_size, "max_depth": max_depth,
        "precision": precision.value,
    })  # fmt: skip
    training = TrainConfig.create(batch_size=batch_size)
    device = torch.device("cuda")
    with waiting("measuring; most of the time goes into compiling"):
        exercise(config, training, device, supervisions=("prefix", "all"))
    tiles = _autotune.Tiles(torch.cuda.get_device_name(device))
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("kernel, architecture, D, precision, rows", "fixed, ms", "best, ms", "tile"):
        table.add_column(column, justify="right" if column.endswith("ms") else "left")
    for key, entry in tiles.read().items():
        table.add_row(
            Text(key), f"{entry['fixed_milliseconds']:.4f}", f"{entry['milliseconds']:.4f}",
            ", ".join(f"{name} {v}" for name, v in _autotune.tile_of(entry)._asdict().items()),
        )  # fmt: skip
    out.print(table)
    out.print(str(tiles.path), markup=False, soft_wrap=True)
