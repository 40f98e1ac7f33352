"""``adarec-fast evaluate``, and the table of metrics."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..config import ConfigError
from .console import command, err, out

if TYPE_CHECKING:
    from ..data import Split
    from ..ranking.evaluation import EvaluationResult
    from ..training import Run


class Part(str, enum.Enum):
    """Held-out parts."""

    TEST = "test"
    VALID = "valid"


class Targets(str, enum.Enum):
    """What is relevant."""

    NEXT = "next"
    ALL = "all"


class SeenMask(str, enum.Enum):
    """What is done to items of the history."""

    NEG_INF = "neg-inf"
    OFFICIAL = "official"
    OFF = "off"


@command
def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a training run.", metavar="RUN_DIR")],
    part: Annotated[
        Part,
        typer.Option(help="Which held-out item to predict."),
    ] = Part.TEST,
    seen_mask: Annotated[
        SeenMask | None,
        typer.Option(help="Score of seen items: -inf, 0, or untouched; by default as in training."),
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Also popularity and a Markov chain.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, ...")] = "auto",
    targets: Annotated[
        Targets,
        typer.Option(help="What is relevant of all that came behind a cut: the next item, or all."),
    ] = Targets.NEXT,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Interactions that came after those of the run, to test on in the "
            "place of its own; may be repeated.",
        ),
    ] = None,
) -> None:
    """Rank the whole catalogue for every user: HR, NDCG, MRR, for all and for sparse users.

    With --data a known user is asked for its first new item, from its whole history in the run; a
    new one for the item behind its first. Columns are read as for the run.
    """
    from ..models.registry import build, config_type
    from ..ranking.evaluation import evaluate as run_evaluation
    from ..training import load_run
    from ..training.loop import resolve_device

    if data and part is Part.VALID:
        raise ConfigError("--part valid: what came after the run is a test; leave it out")
    run = load_run(run_dir, device=resolve_device(device))
    split, later = run.split, None
    if data:
        split, later = _later(run, data)
    mask = run.train_config.seen_mask if seen_mask is None else seen_mask.value
    models: list[tuple[Any, str | None]] = [(run.model, None)]
    if baselines:
        for system, name in (("popularity", "popularity"), ("markov", "markov chain")):
            model = build(config_type(system).create(num_items=run.data.num_items))
            model.prepare(run.split)
            models.append((model.to(run.model.device), name))
    with err.status("ranking the catalogue"):
        results = [
            run_evaluation(
                model,
                split,
                "valid" if part is Part.VALID else "test",
                seen_mask=mask,
                batch_size=run.train_config.evaluation_batch_size,
                name=name,
                targets="all" if targets is Targets.ALL else "next",
            )
            for model, name in models
        ]
    if as_json:
        answer = {"run": str(run_dir), "results": [result.to_dict() for result in results]}
        print(json.dumps(answer if later is None else {**answer, "later": later}, indent=2))
    else:
        if later is not None:
            out.print(
                f"{split.data.name}: {later['interactions']:,} interactions of "
                f"{later['known_users']:,} known and {later['new_users']:,} new users; "
                f"{later['new_items']:,} new items", markup=False, soft_wrap=True,
            )  # fmt: skip
        out.print(report(results))


def _later(run: Run, files: Sequence[Path]) -> tuple[Split, dict[str, Any]]:
    """What came after a run's data as its test, and what was new in it."""
    from ..data import Split
    from ..data.configured import columns_of, load_more
    from ..data.extend import followed

    names = [str(path) for path in files]
    section = {**columns_of(run.source.get("source")), "data": names if names[1:] else names[0]}
    found = followed(run.data, load_more(section))
    assert found.cuts is not None
    return Split(found), dict(found.cuts.facts)


def report(results: Sequence[EvaluationResult]) -> RenderableType:
    """Metrics of several models side by side, then what the first one tells of itself."""
    first = results[0]
    title = (
        f"{first.part}: {first.num_users:,} users, {first.num_sparse:,} of them sparse; "
        f"seen items masked: {first.seen_mask}"
        + (", all items behind the cut relevant" if first.targets == "all" else "")
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    columns: list[dict[str, float]] = []
    for result in results:
        for users, metrics in (("all", result.overall), ("sparse", result.sparse)):
            if metrics is not None:
                table.add_column(Text(f"{result.name}\n{users}"), justify="right")
                columns.append(metrics)
    # One target a user: Recall is HR.
    for metric in ("HR", "NDCG", "MRR", *(["Recall"] if first.targets == "all" else [])):
        for k in first.ks:
            name = f"{metric}@{k}"
            values = (f"{metrics[name]:.4f}" for metrics in columns)
            table.add_row(name, *values, end_section=k == first.ks[-1])
    notes = list(first.notes)
    if first.nmi is not None:
        nmi = "  ".join(f"{name}: {value:.2f}" for name, value in first.nmi.items())
        notes.append(f"NMI with planted labels {nmi}")
    masked = first.num_unreachable - first.num_unseen
    if masked:
        notes.append(f"unreachable targets     {masked:,} (in the history already)")
    if first.num_unseen:
        notes.append(f"unseen targets          {first.num_unseen:,} (not in training; misses)")
    if first.num_cold:
        notes.append(f"cold users              {first.num_cold:,} (no history; not evaluated)")
    # A title of the table would be broken to the table's width.
    return Group(Text(title), table, *(Text(" " + note) for note in notes))
