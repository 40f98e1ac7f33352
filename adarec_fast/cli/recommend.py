"""``adarec-fast recommend``, and the table that ends a training run."""

from __future__ import annotations

import csv
import enum
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from ..config import ConfigError
from .console import command, err, out, print_exactly, words

if TYPE_CHECKING:
    from ..data import Dropped, InteractionData, Split, Vocabulary
    from ..models.base import SequenceModel

_SHOWN_HISTORY = 5
_SHOWN_REASONS = 3
_SHORT_ID = 20  # characters; such a column is not made narrower


class Part(str, enum.Enum):
    """What of a user's history is held out."""

    VALID = "valid"
    TEST = "test"


class Output(str, enum.Enum):
    """Forms of an answer."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


class UnknownItems(str, enum.Enum):
    """What happens to items that nobody knows."""

    REFUSE = "refuse"
    IGNORE = "ignore"


class Recommendation(NamedTuple):
    """What one history leads to; ids are external.

    Attributes:
        reasons: of each item, what its score loses without each place of the history; None where
            nobody asked.
    """

    user: str | int | None
    history: list[str | int]
    diagnostics: dict[str, int | float]
    items: list[str | int]
    scores: list[float]
    reasons: list[list[float]] | None = None

    def why(self, place: int) -> list[dict[str, Any]]:
        """The history's items by what the item at a place of the ranking owes them."""
        assert self.reasons is not None
        owed = zip(self.history, self.reasons[place], strict=True)
        return [
            {"item": item, "difference": difference}
            for item, difference in sorted(owed, key=lambda pair: -pair[1])
        ]

    def to_json(self) -> dict[str, Any]:
        ranked = enumerate(zip(self.items, self.scores, strict=True))
        return {
            "user": self.user,
            "history": self.history,
            **self.diagnostics,
            "items": [
                {"item": item, "score": score}
                | ({} if self.reasons is None else {"why": self.why(place)})
                for place, (item, score) in ranked
            ],
        }


@command
def recommend(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    user: Annotated[
        list[str] | None,
        typer.Option(
            help="External id of a user of the training data; may be repeated. One that "
            "preprocessing dropped is answered by its items.",
        ),
    ] = None,
    history: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ITEM,ITEM,...",
            help="Items of a user never seen, oldest first; may be repeated. An item with a comma "
            'stands in double quotes, as in CSV: \'"a,1",b\'.',
        ),
    ] = None,
    unknown_items: Annotated[
        UnknownItems,
        typer.Option(help="What to do with items of a --history that the catalogue does not have."),
    ] = UnknownItems.REFUSE,
    k: Annotated[
        int | None,
        typer.Option(
            help="How many items to recommend.", min=1, show_default="20, or all if there are fewer"
        ),
    ] = None,
    exclude_seen: Annotated[
        bool,
        typer.Option(
            "--exclude-seen/--include-seen", help="Whether items of the history may come again."
        ),
    ] = True,
    output: Annotated[Output, typer.Option(help="Form of the answer.")] = Output.TABLE,
    all_users: Annotated[
        bool, typer.Option("--all-users", help="Every user of the data, to a file.")
    ] = False,
    file: Annotated[
        Path | None, typer.Option(help="Write CSV or Parquet there: user, item, score, rank.")
    ] = None,
    why: Annotated[
        bool,
        typer.Option(
            "--why",
            help="Say which items of the history carried each item's score: what it loses without "
            "them.",
        ),
    ] = False,
    part: Annotated[
        Part | None,
        typer.Option(
            help="For users of the data: the lists that this part of the split judges, from the "
            "history before its target. Without it the whole history is read, the last items "
            "included, and all of it is left out of the lists.",
            show_default="the whole history",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Recommend items to known users, or to anyone by a history."""
    if not (user or history or all_users):
        raise ConfigError("recommend needs --user ID, --history ITEM,ITEM,... or --all-users")
    if file is None and (all_users or output is Output.PARQUET):
        raise ConfigError("--all-users and --output parquet need --file PATH")
    if file is not None and (history or output not in (Output.CSV, Output.PARQUET)):
        raise ConfigError("--file takes --output csv or parquet, and users of the data alone")
    if why and output not in (Output.TABLE, Output.JSON):
        raise ConfigError(f"--why goes with --output table or json, not {output.value}")
    if part is not None and history:
        raise ConfigError("--part takes users of the data; a --history is read as it is")
    from ..data import DataError, Split
    from ..data.text import split_ids
    from ..training.loop import resolve_device
    from ..training.updated import load_current

    run = load_current(run_dir, device=resolve_device(device))
    if k is None:
        k = min(20, len(run.data.items))
    if file is not None:
        for name in user or []:
            if _is_dropped(run.data, name):
                raise DataError(f"--user: {_kept(run.data).why(name)}; leave out --file")
        from ..ranking.frames import write_recommendations

        rows = write_recommendations(
            run.model, run.data, file, format="csv" if output is Output.CSV else "parquet", k=k,
            exclude_seen=exclude_seen, part=None if part is None else part.value,
            users=None if all_users else _encode(run.data.users, user or [], "--user"),
        )  # fmt: skip
        err.print(words("{} rows in {}", f"{rows:,}", file), soft_wrap=True)
        return
    people: list[str | int | None] = []
    histories: list[list[int]] = []
    values, offsets = run.data.values, run.data.offsets
    dropped = [name for name in user or [] if _is_dropped(run.data, name)]
    if part is not None:
        for name in dropped:
            raise DataError(f"--user: {_kept(run.data).why(name)}; leave out --part")
        values, offsets = Split(run.data).inputs(part.value)
    for name in dropped:
        people.append(_kept(run.data).known(name))
        histories.append(run.data.history_of(name).tolist())
        told = f"{_kept(run.data).why(name)}; answered by those in the catalogue"
        err.print(told, markup=False, soft_wrap=True)
    user = [name for name in user or [] if name not in dropped]
    for index in _encode(run.data.users, user or [], "--user"):
        people.append(run.data.users.decode([index])[0])
        histories.append(values[int(offsets[index]) : int(offsets[index + 1])].tolist())
        if not histories[-1]:
            raise DataError(
                f"--user {people[-1]}: has no history before that part; leave out --part"
            )
    for text in history or []:
        people.append(None)
        try:
            ids = split_ids(text)
        except DataError as error:
            raise DataError(f"--history: {error}") from None
        if not ids:
            raise ConfigError(f"--history {text!r} names no item; write ITEM,ITEM,...")
        histories.append(_known_items(run.data, ids, unknown_items is UnknownItems.IGNORE))
    answers = recommend_for(
        run.model, run.data.items, people, histories, k, exclude_seen, why=why
    )
    if output is Output.JSON:
        print(json.dumps([answer.to_json() for answer in answers], indent=2))
    elif output is Output.CSV:
        from ..ranking.frames import COLUMNS

        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        for answer in answers:
            for rank, pair in enumerate(zip(answer.items, answer.scores, strict=True), 1):
                writer.writerow((answer.user, *pair, rank))
        print_exactly(table.getvalue(), "--output csv")
    else:
        for answer in answers:
            out.print(_heading(answer), soft_wrap=True)
            out.print(_ranking(answer))


def recommend_for(
    model: SequenceModel,
    items: Vocabulary,
    users: list[str | int | None],
    histories: list[list[int]],
    k: int,
    exclude_seen: bool = True,
    *,
    why: bool = False,
) -> list[Recommendation]:
    """Ranked items for histories of item indices; fewer than ``k`` where no more are left.

    With ``why`` each says what it owes to the history.

    Raises:
        ConfigError: ``k`` is larger than the catalogue.
    """
    import torch

    from ..ranking.reasons import score_differences
    from ..ranking.recommender import Recommender

    if k > len(items):
        raise ConfigError(f"k={k} is more than the catalogue holds; at most {len(items)}")
    ranking = Recommender(model).recommend(histories, k, exclude_seen=exclude_seen)
    chosen, scores = ranking.items, ranking.scores
    told = {name: tensor.tolist() for name, tensor in ranking.diagnostics.items()}
    answers = []
    for row, user in enumerate(users):
        left = torch.isfinite(scores[row])
        best = chosen[row][left]
        owed = score_differences(model, histories[row], best.tolist()).tolist() if why else None
        answers.append(
            Recommendation(
                user,
                items.decode(histories[row]),
                {name: column[row] for name, column in told.items()},
                items.decode(best),
                scores[row][left].tolist(),
                owed,
            )
        )
    return answers


def samples(model: SequenceModel, split: Split, count: int = 5, k: int = 5) -> Table:
    """A few test users: history, the model's diagnostics, recommendations, and what came next."""
    asked = split.users("test")
    users = asked[_spread(asked.numel(), count)].tolist()
    values, offsets = split.inputs("test")
    histories = [values[int(offsets[u]) : int(offsets[u + 1])].tolist() for u in users]
    names = split.data.users.decode(users)
    items = split.data.items
    answers = recommend_for(model, items, names, histories, min(k, len(items)))
    truth = [items.decode([target])[0] if target else "an item that is new"
             for target in split.targets("test")[users].tolist()]  # fmt: skip
    table = Table(box=box.SIMPLE_HEAD, title="Some users of the test set", title_justify="left")
    longest = max((len(str(answer.user)) for answer in answers), default=0)
    table.add_column("user", overflow="fold", no_wrap=longest <= _SHORT_ID)
    table.add_column("history, latest last", overflow="fold", ratio=3)
    for name in answers[0].diagnostics if answers else ():
        table.add_column(Text(name), justify="right")
    table.add_column("recommended", overflow="fold", ratio=3)
    table.add_column("next was", overflow="fold")
    for answer, target in zip(answers, truth, strict=True):
        older = len(answer.history) - _SHOWN_HISTORY
        shown = [Text(f"{older} more", "dim")] if older > 0 else []
        shown += [Text(str(item)) for item in answer.history[-_SHOWN_HISTORY:]]
        ranked = [Text(str(i), "bold green" if i == target else "") for i in answer.items]
        table.add_row(
            Text(str(answer.user)),
            Text(", ").join(shown),
            *map(_number, answer.diagnostics.values()),
            Text(", ").join(ranked),
            Text(str(target)),
        )
    return table


def _heading(answer: Recommendation) -> Text:
    who = "a new user" if answer.user is None else f"user {answer.user}"
    latest = ", ".join(str(item) for item in answer.history[-_SHOWN_HISTORY:])
    older = "… " if len(answer.history) > _SHOWN_HISTORY else ""
    told = "".join(f"{name} {_number(value)}, " for name, value in answer.diagnostics.items())
    return words(
        "[bold]{}[/], {}", who, f"{told}{len(answer.history)} items, latest last: {older}{latest}"
    )


def _ranking(answer: Recommendation) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("rank", justify="right")
    table.add_column("item", overflow="fold")
    table.add_column("score", justify="right")
    if answer.reasons is not None:
        table.add_column("without", overflow="fold")
    for rank, (item, score) in enumerate(zip(answer.items, answer.scores, strict=True), 1):
        told = [] if answer.reasons is None else [_because(answer.why(rank - 1))]
        table.add_row(str(rank), Text(str(item)), f"{score:.3f}", *told)
    return table


def _because(reasons: list[dict[str, Any]]) -> Text:
    """The strongest of them, and what the score loses without each."""
    shown = [
        f"{reason['item']} {-reason['difference']:+.3f}"
        for reason in reasons[:_SHOWN_REASONS] if reason["difference"] > 0
    ]  # fmt: skip
    return Text(", ".join(shown)) if shown else Text("none of the history", "dim")


def _number(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _spread(size: int, count: int) -> list[int]:
    """``count`` indices spread evenly over ``range(size)``."""
    count = min(count, size)
    return [index * size // count for index in range(count)]


def _kept(data: InteractionData) -> Dropped:
    assert data.dropped is not None
    return data.dropped


def _is_dropped(data: InteractionData, user: str) -> bool:
    """Whether preprocessing dropped a user; one who came back later is a user like others."""
    dropped = data.dropped
    return dropped is not None and user not in data.users and dropped.known(user) is not None


def _known_items(data: InteractionData, ids: list[str], ignore: bool) -> list[int]:
    """Indices of the items of a history, without unknown ones if they are to be ignored."""
    from ..data import DataError

    found = data.items.find(ids)
    unknown = [item for item, index in zip(ids, found.tolist(), strict=True) if index < 0]
    if not unknown:
        return found.tolist()
    if ignore and len(unknown) < len(ids):
        told = f"not in the catalogue, left out: {', '.join(unknown)}"
        err.print(told, markup=False, soft_wrap=True)
        return found[found >= 0].tolist()
    if ignore:
        raise DataError(f"--history: none of its items is in the catalogue: {', '.join(unknown)}")
    if data.dropped is not None and unknown[0] in data.dropped.items:
        raise DataError(
            f"--history: item {unknown[0]!r} is in the data and was dropped with the few who have "
            "it; --unknown-items ignore leaves such items out"
        )
    return _encode(data.items, ids, "--history")


def _encode(vocabulary: Vocabulary, ids: list[str], option: str) -> list[int]:
    """Indices of external ids; an unknown one names the option it came from."""
    from ..data import DataError

    try:
        indices: list[int] = vocabulary.encode(ids).tolist()
    except DataError as error:
        quoted = ""
        if option == "--history" and any("," in str(known) for known in vocabulary.ids):
            quoted = "; an id with a comma stands in double quotes: '\"a,1\",b'"
        if option == "--history":
            quoted += "; --unknown-items ignore leaves such items out"
        raise DataError(f"{option}: {error}{quoted}") from None
    return indices
