"""A data set with a planted two-level hierarchy of intents, and writers for any data set."""

from __future__ import annotations

import csv
import io
import itertools
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..defaults import on_cpu
from ..files import replacing
from .dataset import InteractionData, PlantedLabels
from .errors import DataError
from .flat import lengths_to_offsets
from .vocabulary import Vocabulary

# Distribution of history lengths of Amazon Beauty (5-core; Beauty.txt of the public repository
# yueliu1999/ELCRec): number of users among 22,363 whose history is at most so long.
_LENGTHS = (4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 25, 30, 35, 40, 50,
            70, 100, 150, 204)  # fmt: skip
_USERS_UP_TO = (0, 7162, 11383, 14063, 15874, 17240, 18121, 18816, 19374, 19813, 20174, 20436,
                20643, 20856, 20997, 21115, 21227, 21428, 21641, 21882, 22010, 22113, 22210,
                22295, 22346, 22359, 22363)  # fmt: skip

_FOLLOW = 0.35  # probability that the next item is the successor of the last one
_SUBTHEME, _THEME = 0.6, 0.25  # else: from the user's sub-theme, its theme, or anywhere
_ZIPF = 1.0  # popularity of the r-th item of a sub-theme is proportional to 1 / r ** _ZIPF
_REDRAWS = 8
_CHUNK_CELLS = 1 << 25  # of the table of who has seen what, in bytes


@on_cpu()
def synthetic(
    num_users: int = 2000,
    num_items: int = 500,
    num_themes: int = 8,
    subthemes_per_theme: int = 4,
    seed: int = 0,
) -> InteractionData:
    """Histories drawn from planted intents; the same arguments give the same data.

    Each item belongs to a sub-theme of a theme, each user prefers one sub-theme. A user's next
    item is, with probability 0.35, the successor of the last one (a fixed cycle inside each
    sub-theme); else it is drawn by Zipf popularity from the user's sub-theme (0.6), from its
    theme (0.25) or from all items (0.15). No history repeats an item. Lengths follow the
    histories of Amazon Beauty (mean 8.9, median 6, 5 to 204), cut to half the catalogue.

    Items are called ``t3-s1-i042`` (theme, sub-theme in it, rank of popularity in that), users
    ``u00017``. The catalogue holds all ``num_items`` items, also those that no history has.

    Returns:
        The data with ``labels`` set to what was planted.

    Raises:
        DataError: an argument is out of range: there must be a user, a theme and a sub-theme,
            and at least 10 items and one for each sub-theme.

    Example:
        >>> made = af.synthetic(num_users=20, num_items=40)
        >>> len(made), made.num_items
        (20, 40)
    """
    _check(num_users, num_items, num_themes, subthemes_per_theme, seed)
    rng = np.random.Generator(np.random.PCG64(seed))
    num_subthemes = num_themes * subthemes_per_theme
    # Items of a sub-theme, and so of a theme, are neighbours: first[s] .. first[s + 1] - 1.
    sizes = np.full(num_subthemes, num_items // num_subthemes)
    sizes[: num_items % num_subthemes] += 1
    first = np.concatenate([[0], np.cumsum(sizes)])
    item_subtheme = np.repeat(np.arange(num_subthemes), sizes)
    rank = np.arange(num_items) - first[item_subtheme]
    weight = 1.0 / (rank + 1.0) ** _ZIPF
    cumulative = np.concatenate([[0.0], np.cumsum(weight)])

    # A random cycle through each sub-theme.
    shuffled = np.lexsort((rng.random(num_items), item_subtheme))
    place_after = np.where(rank + 1 < sizes[item_subtheme], np.arange(1, num_items + 1),
                           first[item_subtheme])  # fmt: skip
    successor = np.empty(num_items, dtype=np.int64)
    successor[shuffled] = shuffled[place_after]

    user_subtheme = rng.integers(num_subthemes, size=num_users)
    lengths = _lengths(rng, num_users, num_items // 2)
    offsets = lengths_to_offsets(torch.from_numpy(lengths))
    begins = offsets.numpy()[:-1]
    values = np.zeros(int(offsets[-1]), dtype=np.int64)

    chunk = max(1, _CHUNK_CELLS // num_items)
    for low in range(0, num_users, chunk):
        users = np.arange(low, min(low + chunk, num_users))
        seen = np.zeros((len(users), num_items), dtype=bool)
        last = np.full(len(users), -1)
        for step in range(int(lengths[users].max())):
            rows = np.flatnonzero(lengths[users] > step)
            drawn = _draw(
                rng, rows, seen, last, successor, user_subtheme[users], first,
                cumulative, subthemes_per_theme,
            )  # fmt: skip
            seen[rows, drawn] = True
            last[rows] = drawn
            values[begins[users[rows]] + step] = drawn

    subthemes = torch.from_numpy(np.concatenate([[-1], item_subtheme]))
    preferred = torch.from_numpy(user_subtheme)
    labels = PlantedLabels(
        item_theme=torch.where(subthemes < 0, -1, subthemes // subthemes_per_theme),
        item_subtheme=subthemes,
        user_theme=preferred // subthemes_per_theme,
        user_subtheme=preferred,
    )
    return InteractionData.from_flat(
        torch.from_numpy(values + 1),
        offsets,
        Vocabulary(_item_names(item_subtheme, rank, num_themes, subthemes_per_theme), 1),
        Vocabulary([f"u{u:0{max(5, len(str(num_users - 1)))}}" for u in range(num_users)], 0),
        "synthetic",
        labels,
    )


def _check(num_users: int, num_items: int, num_themes: int, per_theme: int, seed: int) -> None:
    counts = {
        "num_users": num_users,
        "num_items": num_items,
        "num_themes": num_themes,
        "subthemes_per_theme": per_theme,
    }
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError(f"{name}={value!r} must be an int of at least 1")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"seed={seed!r} must be an int of at least 0")
    needed = max(10, num_themes * per_theme)
    if num_items < needed:
        raise DataError(
            f"num_items={num_items} must be at least {needed}: 10, and one item for each of the "
            f"{num_themes} x {per_theme} sub-themes"
        )


def _lengths(rng: np.random.Generator, count: int, longest: int) -> NDArray[np.int64]:
    """Lengths by the inverse of the distribution above, linear between its points."""
    up_to = np.array(_USERS_UP_TO) / _USERS_UP_TO[-1]
    drawn = np.ceil(np.interp(rng.random(count), up_to, _LENGTHS)).astype(np.int64)
    return drawn.clip(5, max(5, longest))


def _draw(
    rng: np.random.Generator,
    rows: NDArray[np.int64],
    seen: NDArray[np.bool_],
    last: NDArray[np.int64],
    successor: NDArray[np.int64],
    subtheme: NDArray[np.int64],
    first: NDArray[np.int64],
    cumulative: NDArray[np.float64],
    per_theme: int,
) -> NDArray[np.int64]:
    """The next item (from 0) of each row, one that the row has not seen."""
    count, num_items = len(rows), len(successor)
    follows = (rng.random(count) < _FOLLOW) & (last[rows] >= 0)
    drawn = successor[last[rows]]
    redo = ~follows | seen[rows, drawn]
    for attempt in range(_REDRAWS):
        again = np.flatnonzero(redo)
        if not len(again):
            return drawn
        own = subtheme[rows[again]]
        scope = rng.random(len(again))
        # A user that has read a sub-theme to its end moves on: every other try is wider.
        near = scope < _SUBTHEME if attempt % 2 == 0 else np.zeros(len(again), dtype=bool)
        theme = own // per_theme * per_theme
        low = np.where(near, own, np.where(scope < _SUBTHEME + _THEME, theme, 0))
        high = np.where(
            near, own + 1, np.where(scope < _SUBTHEME + _THEME, theme + per_theme, len(first) - 1)
        )
        below, above = cumulative[first[low]], cumulative[first[high]]
        point = below + rng.random(len(again)) * (above - below)
        found = np.searchsorted(cumulative, point, side="right") - 1
        # Rounding may carry a point onto the upper end of its range.
        drawn[again] = found.clip(first[low], first[high] - 1)
        redo[again] = seen[rows[again], drawn[again]]
    again = np.flatnonzero(redo)
    keys = np.where(seen[rows[again]], -1.0, rng.random((len(again), num_items)))
    drawn[again] = keys.argmax(axis=1)
    return drawn


def _item_names(
    subtheme: NDArray[np.int64], rank: NDArray[np.int64], num_themes: int, per_theme: int
) -> list[str]:
    """Names of one width, so that their sorted order is that of the indices."""
    widths = [len(str(n)) for n in (num_themes - 1, per_theme - 1, int(rank.max()))]
    widths[2] = max(3, widths[2])
    return [
        f"t{s // per_theme:0{widths[0]}}-s{s % per_theme:0{widths[1]}}-i{r:0{widths[2]}}"
        for s, r in zip(subtheme.tolist(), rank.tolist(), strict=True)
    ]


def write_sequences(data: InteractionData, path: str | os.PathLike[str]) -> None:
    """Write the paper's text format: ``user item item …`` a line, as integers.

    Users are numbered from 1 and items by their indices, so external ids are lost; ``write_csv``
    keeps them. The file appears whole or not at all.

    Raises:
        DataError: the file cannot be written, or a user has no item (a line that no reader takes).
    """
    if data.num_users and int(data.lengths.min()) == 0:
        user = int(data.lengths.argmin())
        raise DataError(f"user {data.users.decode([user])[0]!r} has no item to write")
    numbers = list(map(str, data.values.tolist()))
    bounds = data.offsets.tolist()
    lines = [
        f"{user + 1} {' '.join(numbers[low:high])}\n"
        for user, (low, high) in enumerate(itertools.pairwise(bounds))
    ]
    _write(Path(path), "".join(lines))


def write_csv(data: InteractionData, path: str | os.PathLike[str]) -> None:
    """Write ``user_id,item_id,timestamp`` rows with external ids; the time is the position in
    the history, from 0. The file appears whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    users = np.repeat(np.arange(data.num_users), data.lengths.numpy())
    times = np.arange(data.num_interactions) - data.offsets.numpy()[users]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("user_id", "item_id", "timestamp"))
    rows = zip(data.users.decode(users), data.items.decode(data.values), times.tolist(),
               strict=True)  # fmt: skip
    writer.writerows(rows)
    _write(Path(path), buffer.getvalue())


def _write(path: Path, text: str) -> None:
    try:
        with replacing(path) as fresh:
            fresh.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
