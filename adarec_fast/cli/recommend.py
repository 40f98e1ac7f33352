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
from .console import command, err, formerly, hint, out, print_exactly, tell, waiting, words
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


class Format(str, enum.Enum):
    """Forms of an answer."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


@command
@formerly(output="format", file="to")
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
    format: Annotated[Format, typer.Option(help="Of the answer.")] = Format.TABLE,
    all_users: Annotated[
        bool, typer.Option("--all-users", help="Every user of the data, to a file.")
    ] = False,
    to: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write CSV or Parquet there: user, item, score, rank."
        ),
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
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON on stdout, as --format json.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Recommend items to known users, or to anyone by a history."""
    if not (user or history or all_users or users_file):
        raise ConfigError(
            "recommend needs --users-file FILE, --user ID, --history ITEM,ITEM,... or --all-users"
        )
    if all_users and users_file is not None:
        raise ConfigError("--users-file and --all-users name different users; give one of them")
    if as_json:
        if format not in (Format.TABLE, Format.JSON):
            raise ConfigError(f"--json and --format {format.value}: choose one of the two")
        format = Format.JSON
    if to is None and (all_users or format is Format.PARQUET):
        raise ConfigError("--all-users and --format parquet need --out FILE")
    if to is not None and (history or format not in (Format.CSV, Format.PARQUET)):
        raise ConfigError("--out takes --format csv or parquet, and users of the data alone")
    if why and format not in (Format.TABLE, Format.JSON):
        raise ConfigError(f"--why goes with --format table or json, not {format.value}")
    if part is not None and history:
        raise ConfigError("--part takes users of the data; a --history is read as it is")
    with waiting("starting"):
        from ..data import DataError, Split
        from ..data.text import split_ids
        from ..training.loop import resolve_device
        from ..training.updated import load_current

    named = [(own_id, "--user") for own_id in user or []]
    if users_file is not None:
        named += read_ids(users_file, "--users-file")
    with waiting("reading the run"):
        run = load_current(run_dir, device=resolve_device(device))
    ignore = unknown_items is UnknownItems.IGNORE
    allow = items_of_file(run.data.items, allow_file, "--allow-file", ignore)
    exclude = items_of_file(run.data.items, exclude_file, "--exclude-file", ignore)
    if k is None:
        k = min(20, len(run.data.items))
    dropped = [(own_id, place) for own_id, place in named if is_dropped(run.data, own_id)]
    for own_id, place in dropped:
        if to is not None or part is not None:
            left = "--out" if to is not None else "--part"
            raise DataError(f"{place}: {kept(run.data).why(own_id)}; leave out {left}")
    gone = set(dropped)
    known = known_users(run.data.users, [pair for pair in named if pair not in gone])
    if to is not None:
        from ..ranking.frames import write_recommendations

        with waiting("ranking the catalogue"):
            rows = write_recommendations(
                run.model, run.data, to, format="csv" if format is Format.CSV else "parquet", k=k,
                exclude_seen=exclude_seen, part=None if part is None else part.value,
                users=None if all_users else known, allow=allow, exclude=exclude,
            )  # fmt: skip
        hint(words("{} rows in {}", f"{rows:,}", to))
        return
    people: list[str | int | None] = []
    histories: list[list[int]] = []
    values, offsets = run.data.values, run.data.offsets
    if part is not None:
        values, offsets = Split(run.data).inputs(part.value)
    for own_id, _ in dropped:
        people.append(kept(run.data).known(own_id))
        histories.append(run.data.history_of(own_id).tolist())
        tell(kept(run.data).told(own_id), err)
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
    with waiting("ranking the catalogue"):
        answers = recommend_for(
            run.model, run.data.items, people, histories, k, exclude_seen, why=why,
            exclude=exclude, allow=allow,
        )  # fmt: skip
    if format is Format.JSON:
        print(json.dumps([answer.to_json() for answer in answers], indent=2))
    elif format is Format.CSV:
        from ..models.answers import COLUMNS

        ranked = [(a.user, a.items, a.scores) for a in answers]
        print_exactly(as_csv(COLUMNS, ranked), "--format csv")
    else:
        for answer in answers:
            tell(heading(answer), out)
            out.print(ranking_table(answer))
