"""``adarec-fast recommend``."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated

import typer

from ..config import ConfigError
from .answers import as_csv, heading, ranking_table
from .answers import recommend_for as recommend_for
from .console import command, err, out, print_exactly, words
from .ids import (
    AllowFile,
    Device,
    ExcludeFile,
    UnknownItems,
    is_dropped,
    items_of_file,
    kept,
    known_items,
    known_users,
    read_ids,
)


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
    users_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default=False,
            help="Users of the training data: a text file of ids, one a line.",
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
        typer.Option(
            help="What to do with items of a --history, --allow-file or --exclude-file that the "
            "catalogue does not have."
        ),
    ] = UnknownItems.REFUSE,
    allow_file: AllowFile = None,
    exclude_file: ExcludeFile = None,
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
    device: Device = "auto",
) -> None:
    """Recommend items to known users, or to anyone by a history."""
    if not (user or history or all_users or users_file):
        raise ConfigError(
            "recommend needs --users-file FILE, --user ID, --history ITEM,ITEM,... or --all-users"
        )
    if all_users and users_file is not None:
        raise ConfigError("--users-file and --all-users name different users; give one of them")
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

    named = [(own_id, "--user") for own_id in user or []]
    if users_file is not None:
        named += read_ids(users_file, "--users-file")
    run = load_current(run_dir, device=resolve_device(device))
    ignore = unknown_items is UnknownItems.IGNORE
    allow = items_of_file(run.data.items, allow_file, "--allow-file", ignore)
    exclude = items_of_file(run.data.items, exclude_file, "--exclude-file", ignore)
    if k is None:
        k = min(20, len(run.data.items))
    dropped = [(own_id, place) for own_id, place in named if is_dropped(run.data, own_id)]
    for own_id, place in dropped:
        if file is not None or part is not None:
            left = "--file" if file is not None else "--part"
            raise DataError(f"{place}: {kept(run.data).why(own_id)}; leave out {left}")
    gone = set(dropped)
    known = known_users(run.data.users, [pair for pair in named if pair not in gone])
    if file is not None:
        from ..ranking.frames import write_recommendations

        rows = write_recommendations(
            run.model, run.data, file, format="csv" if output is Output.CSV else "parquet", k=k,
            exclude_seen=exclude_seen, part=None if part is None else part.value,
            users=None if all_users else known, allow=allow, exclude=exclude,
        )  # fmt: skip
        err.print(words("{} rows in {}", f"{rows:,}", file), soft_wrap=True)
        return
    people: list[str | int | None] = []
    histories: list[list[int]] = []
    values, offsets = run.data.values, run.data.offsets
    if part is not None:
        values, offsets = Split(run.data).inputs(part.value)
    for own_id, _ in dropped:
        people.append(kept(run.data).known(own_id))
        histories.append(run.data.history_of(own_id).tolist())
        err.print(kept(run.data).told(own_id), markup=False, soft_wrap=True)
    people += run.data.users.decode(known)
    for index in known:
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
        histories.append(known_items(run.data, ids, ignore))
    answers = recommend_for(
        run.model, run.data.items, people, histories, k, exclude_seen, why=why, exclude=exclude,
        allow=allow,
    )  # fmt: skip
    if output is Output.JSON:
        print(json.dumps([answer.to_json() for answer in answers], indent=2))
    elif output is Output.CSV:
        from ..models.answers import COLUMNS

        ranked = [(a.user, a.items, a.scores) for a in answers]
        print_exactly(as_csv(COLUMNS, ranked), "--output csv")
    else:
        for answer in answers:
            out.print(heading(answer), soft_wrap=True)
            out.print(ranking_table(answer))
