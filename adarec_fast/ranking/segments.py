"""Parts of the users that have their own metrics: by the length of their history, by how popular
what they take next is, by whether training had it, or by a column of a file about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError
from ..data import DataError, Split
from ..data.columns import Columns
from ..data.files import read_files
from ..data.lists import factorise
from ..data.separated import Layout

HISTORY, POPULARITY, COLD = "history", "popularity", "cold"
_LONGEST = (5, 10, 20, 50)  # histories of the first groups; the first one is the sparse users'
_HEAD = 0.2
_MOST = 50
_UNTOLD = "(not told)"


@dataclass(frozen=True, eq=False)
class Segments:
    """Disjoint groups of a split's users.

    Attributes:
        name: of what tells them apart.
        labels: of the groups, in their order.
        index: int64 ``[num_users]``, the group of each user.
    """

    name: str
    labels: tuple[str, ...]
    index: Tensor

    def chosen(self, users: Tensor) -> dict[str, Tensor]:
        """bool ``[U]`` by label, of users ``[U]`` by their index; groups with nobody are left out.
        """
        index = self.index[users]
        found = {label: index == place for place, label in enumerate(self.labels)}
        return {label: mask for label, mask in found.items() if bool(mask.any())}


def by_history(split: Split, part: Literal["valid", "test"]) -> Segments:
    """Users by how many items their prediction starts from: 1-5, 6-10, 11-20, 21-50, more."""
    lengths = split.inputs(part)[1].diff()
    bounds = torch.tensor(_LONGEST)
    firsts = [1, *(longest + 1 for longest in _LONGEST)]
    labels = [f"{a}-{b}" for a, b in zip(firsts, _LONGEST, strict=False)] + [f"{firsts[-1]}+"]
    return Segments(HISTORY, tuple(labels), torch.bucketize(lengths, bounds))


def by_popularity(
    split: Split, part: Literal["valid", "test"], trained_on: Split | None = None
) -> Segments:
    """Users by the item that is to be predicted: of the fifth of the catalogue that is most often
    in the training part (``head``), another (``tail``), or one that is not there (``unseen``).
    Of items as often, the lower index is the more popular. The training part is that of
    ``trained_on`` where ``split`` holds what came later."""
    known = split if trained_on is None else trained_on
    counts = torch.bincount(known.inputs("train")[0], minlength=split.num_items + 1)
    order = torch.sort(counts[1:], descending=True, stable=True).indices + 1
    group = torch.ones(split.num_items + 1, dtype=torch.int64)
    group[order[: max(1, round(_HEAD * split.num_items))]] = 0
    group[counts == 0] = 2
    return Segments(POPULARITY, ("head", "tail", "unseen"), group[split.targets(part)])


def by_training(
    split: Split, part: Literal["valid", "test"], trained_on: Split | None = None
) -> Segments:
    """Users by the item that is to be predicted: one of some training history (``trained``), one
    that is in the catalogue alone (``cold``), or one that is not even there (``unknown``).
    ``trained_on`` is as in :func:`by_popularity`."""
    known = split if trained_on is None else trained_on
    counts = torch.bincount(known.inputs("train")[0], minlength=split.num_items + 1)
    group = (counts == 0).long()
    group[0] = 2
    return Segments(COLD, ("trained", "cold", "unknown"), group[split.targets(part)])


def by_column(split: Split, path: str | Path, column: str, user: str | None = None) -> Segments:
    """Users by a column of a file about them, in any format that interactions are read from.

    Args:
        split: whose users; those that the file does not name, or names without a value, are a
            group of their own.
        path: the file, a user a row. Users of no interaction do not matter.
        column: with the label of each, at most 50 different ones.
        user: the column of the ids; told by its name by default.

    Raises:
        DataError: the file cannot be read, has no such column, gives a user two labels or none of
            the users one, or has too many labels.
    """
    wanted = Columns.create(user, column, "file-order", None, None, "text")
    table = read_files([Path(path)], "auto", wanted, Layout.create(None, None), None)
    labels, codes = factorise(table.items, sort=True)
    if len(labels) > _MOST:
        raise DataError(
            f"{path}: {column} has {len(labels):,} different values; segments are of a column "
            f"with at most {_MOST}, such as a country or a group of ages"
        )
    # A user's label is that of the last row; of two that differ, one row finds another there.
    label = np.empty(len(table.users), dtype=np.int64)
    label[table.codes] = codes
    differs = label[table.codes] != codes
    if differs.any():
        wrong = table.users[int(table.codes[differs.argmax()])]
        raise DataError(
            f"{path}: the user {wrong!r} has several values of {column}; segments need one a user"
        )
    place = torch.from_numpy(split.data.users.find(table.users))
    known = place >= 0
    if not bool(known.any()):
        raise DataError(
            f"{path}: none of its {len(table.users):,} users, such as {table.users[0]!r}, is one "
            f"of the data's, such as {split.data.users.decode([0])[0]!r}"
        )
    index = torch.full((split.num_users,), len(labels))
    index[place[known]] = torch.from_numpy(label)[known]
    return Segments(column, (*map(str, labels), _UNTOLD), index)


_BY_TRAINING = {POPULARITY: by_popularity, COLD: by_training}


def read_segments(
    wanted: Sequence[str], split: Split, part: Literal["valid", "test"],
    trained_on: Split | None = None,
) -> list[Segments]:
    """Segments as an option names them: ``history``, ``popularity``, ``cold``, or ``FILE:COLUMN``.
    ``trained_on`` is as in :func:`by_popularity`.

    Raises:
        ConfigError: one is none of these, or is named twice.
        DataError: as :func:`by_column`.
    """
    found = []
    for text in wanted:
        if text == HISTORY:
            found.append(by_history(split, part))
            continue
        if text in _BY_TRAINING:
            found.append(_BY_TRAINING[text](split, part, trained_on))
            continue
        path, _, column = text.rpartition(":")
        if not path or not column:
            raise ConfigError(
                f"--segments {text}: must be history, popularity, cold, or a file about the users "
                "and one of its columns, as in users.csv:country"
            )
        if not Path(path).is_file():
            raise ConfigError(f"--segments {text}: there is no file {path}")
        found.append(by_column(split, path, column))
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"--segments: {max(names, key=names.count)} is named twice")
    return found
