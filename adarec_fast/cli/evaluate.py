"""``adarec-fast evaluate``, and the table of metrics."""

from __future__ import annotations

import csv
import enum
import io
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
from .console import command, out, tell, waiting

if TYPE_CHECKING:
    from ..data import Split
    from ..ranking.evaluation import EvaluationResult

_CUT_OFFS = 3  # side by side in 80 columns


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
    ks: Annotated[
        str, typer.Option("--ks", metavar="K,K,...", help="Cut-offs of all metrics.")
    ] = "5,10,20",
    lists: Annotated[
        bool,
        typer.Option(help="Also the lists' coverage, novelty, diversity, popularity and Gini."),
    ] = True,
    segments: Annotated[
        list[str] | None,
        typer.Option(metavar="WHICH", help="Metrics of groups of users, too: by history, by "
                     "popularity of what they take, by whether it is cold, or by a column, as in "
                     "users.csv:country; may be repeated."),
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also all figures as a table.")
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
    with waiting("starting"):
        from ..config import read_cutoffs
        from ..models.registry import build, config_type
        from ..ranking.evaluation import evaluate as run_evaluation
        from ..ranking.segments import COLD, read_segments
        from ..training import load_run
        from ..training.checkpoint import write_atomically
        from ..training.further import came_later
        from ..training.loop import resolve_device

    cuts = read_cutoffs(ks, "--ks")
    if csv_file is not None and not csv_file.absolute().parent.is_dir():
        raise ConfigError(f"--csv {csv_file}: there is no folder {csv_file.parent}")
    if data and part is Part.VALID:
        raise ConfigError("--part valid: what came after the run is a test; leave it out")
    with waiting("reading the run"):
        run = load_run(run_dir, device=resolve_device(device))
        split: Split = run.split
        later: dict[str, Any] | None = None
        if data:
            split = came_later(run, data)
            assert split.data.cuts is not None
            later = dict(split.data.cuts.facts)
    mask = run.train_config.seen_mask if seen_mask is None else seen_mask.value
    wanted = list(segments or [])
    if run.data.features is not None and COLD not in wanted:
        wanted.append(COLD)
    groups = read_segments(wanted, split, part.value, run.split)
    # One geometry for all models, for their diversities to be comparable.
    learned = lists and run.model.by_products and not run.model.fitted
    vectors = run.model.table() if learned else None
    models: list[tuple[Any, str | None]] = [(run.model, None)]
    with waiting("ranking the catalogue"):
        if baselines:
            for system, name in (("popularity", "popularity"), ("markov", "markov chain")):
                model = build(config_type(system).create(num_items=run.data.num_items))
                model.prepare(run.split)
                models.append((model.to(run.model.device), name))
        results = [
            run_evaluation(
                model,
                split,
                "valid" if part is Part.VALID else "test",
                ks=cuts,
                seen_mask=mask,
                batch_size=run.train_config.evaluation_batch_size,
                name=name,
                lists=lists,
                item_vectors=vectors,
                segments=groups,
                targets="all" if targets is Targets.ALL else "next",
                trained_on=run.split,
            )
            for model, name in models
        ]
    if csv_file is not None:
        write_atomically(csv_file, _csv(results))
    if as_json:
        answer = {"run": str(run_dir), "results": [result.to_dict() for result in results]}
        print(json.dumps(answer if later is None else {**answer, "later": later}, indent=2))
    else:
        if later is not None:
            tell(
                f"{split.data.name}: {later['interactions']:,} interactions of "
                f"{later['known_users']:,} known and {later['new_users']:,} new users; "
                f"{later['new_items']:,} new items", out,
            )  # fmt: skip
        out.print(report(results))


def report(results: Sequence[EvaluationResult]) -> RenderableType:
    """Metrics of several models side by side, then what the first one tells of itself."""
    from ..ranking.lists import MEASURES

    first = results[0]
    title = (
        f"{first.part}: {first.num_users:,} users, {first.num_sparse:,} of them sparse; "
        f"seen items masked: {first.seen_mask}"
        + (", all items behind the cut relevant" if first.targets == "all" else "")
    )
    # Three models beside each other, whole, in 80 columns.
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("", no_wrap=True)
    columns: list[dict[str, float]] = []
    for result in results:
        for users, metrics, lists in (
            ("all", result.overall, result.lists), ("sparse", result.sparse, result.sparse_lists)
        ):  # fmt: skip
            if metrics is not None:
                table.add_column(Text(f"{result.name}\n{users}"), justify="right")
                columns.append({**metrics, **(lists or {})})
    # One target a user: Recall is HR.
    for metric in ("HR", "NDCG", "MRR", *(["Recall"] if first.targets == "all" else [])):
        for k in first.ks:
            name = f"{metric}@{k}"
            values = (f"{metrics[name]:.4f}" for metrics in columns)
            table.add_row(name, *values, end_section=k == first.ks[-1])
    of_lists = first.lists or {}
    for measure in MEASURES:
        names = [f"{measure}@{k}" for k in first.ks if f"{measure}@{k}" in of_lists]
        for name in names:
            values = (f"{found[name]:.4g}" if name in found else "" for found in columns)
            table.add_row(name, *values, end_section=name == names[-1])
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
    told = (Text(" " + note) for note in notes)
    tables = (
        _segments(name, results, first.ks[begin : begin + _CUT_OFFS])
        for name in first.segments
        for begin in range(0, len(first.ks), _CUT_OFFS)
    )
    return Group(Text(title), table, *told, *tables)


def _segments(name: str, results: Sequence[EvaluationResult], ks: Sequence[int]) -> Table:
    """HR and NDCG of each group of users: the group with its size, and below it the models."""
    columns = [f"{metric}@{k}" for k in ks for metric in ("HR", "NDCG")]
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column(Text(f"by {name}"), overflow="fold")
    for header in columns:
        table.add_column(header, justify="right", no_wrap=True)
    for label, group in results[0].segments[name].items():
        table.add_row(Text(f"{label}: {group['users']:,} users"))
        for result in results:
            values = (f"{result.segments[name][label][column]:.4f}" for column in columns)
            table.add_row(Text(f"  {result.name}"), *values, end_section=result is results[-1])
    return table


def _csv(results: Sequence[EvaluationResult]) -> str:
    """A line a model and group of users, a column a metric; what a group has not stays empty."""
    rows = [row for result in results for row in result.records()]
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
