"""``adarec-fast export``: a run as files that serve without this package."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from .console import command, formerly, out, waiting

if TYPE_CHECKING:
    from ..export import Exported


class Format(str, enum.Enum):
    """What can be made."""

    TORCH = "torch"
    AOTI = "aoti"
    ONNX = "onnx"
    EMBEDDINGS = "embeddings"
    ANN = "ann"


class Program(str, enum.Enum):
    """How a program can be kept."""

    TORCH = "torch"
    AOTI = "aoti"
    ONNX = "onnx"


class StoredType(str, enum.Enum):
    """Number formats of stored embeddings."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


@command
@formerly(output="to")
def export(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    format: Annotated[
        list[Format] | None,
        typer.Option(help="What to make; may be repeated. By default torch."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Where the folders go; by default RUN_DIR/export."
        ),
    ] = None,
    k: Annotated[int, typer.Option(help="Items a user.", min=1)] = 20,
    exclude_seen: Annotated[
        bool,
        typer.Option(
            "--exclude-seen/--include-seen",
            help="Whether the program takes a second input, items that must not come again.",
        ),
    ] = True,
    max_batch: Annotated[int, typer.Option(help="Most users at once.", min=2)] = 1024,
    users: Annotated[
        int, typer.Option(help="Users of the data that the check compares.", min=1)
    ] = 1000,
    dtype: Annotated[
        StoredType, typer.Option(help="Of stored item embeddings.")
    ] = StoredType.FLOAT32,
    user_model: Annotated[
        Program, typer.Option(help="The user model's format beside embeddings.")
    ] = Program.TORCH,
    index: Annotated[
        str, typer.Option(help="faiss's description of the index (--format ann).")
    ] = "HNSW32",
    search: Annotated[
        str, typer.Option(help="faiss's search parameters, kept in the index.")
    ] = "efSearch=128",
    min_recall: Annotated[
        float, typer.Option(help="An index with a lower recall@k is refused.", min=0, max=1)
    ] = 0.95,
    device: Annotated[str, typer.Option(help="Where it will run: auto, cpu, cuda, ...")] = "cpu",
) -> None:
    """Export a run for serving without this package; each file is checked against the model."""
    with waiting("starting"):
        from ..export import ExportOptions, export_run
        from ..training import load_run
        from ..training.loop import resolve_device

    options = ExportOptions(
        k=k, exclude_seen=exclude_seen, max_batch=max_batch, users=users, dtype=dtype.value,
        user_model=user_model.value, index=index, search=search, min_recall=min_recall,
    )  # fmt: skip
    formats: list[Any] = [entry.value for entry in dict.fromkeys(format or [Format.TORCH])]
    with waiting("reading the run"):
        run = load_run(run_dir, device=resolve_device(device))
    target = run_dir / "export" if to is None else to
    with waiting(f"exporting and checking {', '.join(formats)}"):
        made = export_run(run, target, formats, options)
    out.print(_table(made, k))
    # In a table of 80 columns a path would be broken.
    for entry in made:
        out.print(str(entry.folder), markup=False, soft_wrap=True)


def _table(made: list[Exported], k: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("format", no_wrap=True)
    for column in ("MiB", "users checked", "one user, ms", f"index recall@{k}", "its search, ms"):
        table.add_column(column, justify="right")
    for entry in made:
        index = entry.index
        table.add_row(
            entry.format,
            f"{entry.size / 2**20:.1f}",
            f"{entry.outcome.users:,}",
            f"{entry.outcome.latency_ms:.2f}",
            "" if index is None else f"{index.recall:.4f}",
            "" if index is None else f"{index.latency_ms:.3f}",
        )
    return table
