"""Ids that the command line names: in options, and in files of one a line."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import err, tell

if TYPE_CHECKING:
    from ..data import Dropped, InteractionData, Vocabulary

AllowFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", show_default=False,
        help="Choose from the items of this file alone: a text file of ids, one a line.",
    ),
]
ExcludeFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Leave out the items of this file.", show_default=False),
]
Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, ...")]


class UnknownItems(str, enum.Enum):
    """What happens to items that nobody knows."""

    REFUSE = "refuse"
    IGNORE = "ignore"


def read_ids(path: Path, option: str) -> list[tuple[str, str]]:
    """Ids of a text file, which may be compressed, one a line; blank lines count for nothing.

    Returns:
        Ids, each with its ``option FILE:LINE``.

    Raises:
        DataError: it cannot be read, or names nobody.
    """
    from ..data import DataError
    from ..data.sources import open_source
    from ..data.text import checked_text

    try:
        text = checked_text(path, open_source(path).content).decode()
    except DataError as error:
        raise DataError(f"{option}: {error}") from None
    lines = [(line.strip(), f"{option} {path}:{n}") for n, line in enumerate(text.splitlines(), 1)]
    return [(own_id, place) for own_id, place in lines if own_id]


def items_of_file(
    vocabulary: Vocabulary, path: Path | None, option: str, ignore: bool
) -> list[int] | None:
    """Indices of the items that a file names; None where there is no file.

    Raises:
        DataError: an unknown item that is not to be ignored, or none that is known.
    """
    from ..data import DataError

    if path is None:
        return None
    named = read_ids(path, option)
    found: list[int] = vocabulary.find([own_id for own_id, _ in named]).tolist()
    unknown = [pair for pair, index in zip(named, found, strict=True) if index < 0]
    if unknown and not ignore:
        encode(vocabulary, [unknown[0][0]], unknown[0][1], may_ignore=True)
    if unknown:
        told = f"{option}: {len(unknown):,} of {len(named):,} ids are not in the catalogue"
        if len(unknown) == len(named):
            raise DataError(f"{told}, so none is left")
        tell(f"{told}, left out, such as {unknown[0][0]}", err)
    return [index for index in found if index >= 0]


def kept(data: InteractionData) -> Dropped:
    """What filters dropped of data where they dropped something."""
    assert data.dropped is not None
    return data.dropped


def is_dropped(data: InteractionData, user: str) -> bool:
    """Whether preprocessing dropped a user; one who came back later is a user like others."""
    dropped = data.dropped
    return dropped is not None and user not in data.users and dropped.known(user) is not None


def known_items(data: InteractionData, ids: list[str], ignore: bool) -> list[int]:
    """Indices of the items of a history, without unknown ones if they are to be ignored."""
    from ..data import DataError

    found = data.items.find(ids)
    unknown = [item for item, index in zip(ids, found.tolist(), strict=True) if index < 0]
    if not unknown:
        return found.tolist()
    if ignore and len(unknown) < len(ids):
        told = f"not in the catalogue, left out: {', '.join(unknown)}"
        tell(told, err)
        return found[found >= 0].tolist()
    if ignore:
        raise DataError(f"--history: none of its items is in the catalogue: {', '.join(unknown)}")
    if data.dropped is not None and unknown[0] in data.dropped.items:
        raise DataError(
            f"--history: item {unknown[0]!r} is in the data and was dropped with the few who have "
            "it; --unknown-items ignore leaves such items out"
        )
    return encode(data.items, ids, "--history")


def known_users(vocabulary: Vocabulary, named: list[tuple[str, str]]) -> list[int]:
    """Indices of users' ids, each with the place that names it, for the error of an unknown one."""
    found: list[int] = vocabulary.find([own_id for own_id, _ in named]).tolist()
    for (own_id, place), index in zip(named, found, strict=True):
        if index < 0:
            encode(vocabulary, [own_id], place)
    return found


def encode(
    vocabulary: Vocabulary, ids: list[str], option: str, may_ignore: bool = False
) -> list[int]:
    """Indices of external ids; an unknown one names the option it came from."""
    from ..data import DataError

    try:
        indices: list[int] = vocabulary.encode(ids).tolist()
    except DataError as error:
        hint = ""
        if option == "--history" and any("," in str(known) for known in vocabulary.ids):
            hint = "; an id with a comma stands in double quotes: '\"a,1\",b'"
        if option == "--history" or may_ignore:
            hint += "; --unknown-items ignore leaves such items out"
        raise DataError(f"{option}: {error}{hint}") from None
    return indices
