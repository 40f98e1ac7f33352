"""More interactions for data that are known: later ones of known users, new users, new items."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .dataset import InteractionData
from .errors import DataError
from .vocabulary import Vocabulary


class Extended(NamedTuple):
    """What :func:`extended` made.

    Attributes:
        data: all of it; indices of known users and items are what they were.
        new_users, new_items: how many there were not before.
        interactions: how many were added.
    """

    data: InteractionData
    new_users: int
    new_items: int
    interactions: int


def extended(data: InteractionData, more: InteractionData) -> Extended:
    """The histories of ``more`` behind those of ``data``, a user's by its id.

    Args:
        data: what is known.
        more: what came later; its histories may be of any length.

    Raises:
        DataError: ids are numbers in one of the two and text in the other.
    """
    items, item_of = _joined(data.items, more.items, "item")
    users, user_of = _joined(data.users, more.users, "user")
    owner = torch.repeat_interleave(torch.arange(data.num_users), data.lengths)
    new_owner = torch.repeat_interleave(torch.from_numpy(user_of), more.lengths)
    new_values = torch.from_numpy(item_of)[more.values - 1]
    owners = torch.cat([owner, new_owner])
    order = torch.argsort(owners, stable=True)
    values = torch.cat([data.values, new_values])[order]
    lengths = torch.bincount(owners, minlength=len(users))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    made = InteractionData.from_flat(values, offsets, items, users, data.name)
    return Extended(
        made, len(users) - data.num_users, len(items) - data.num_items, more.num_interactions
    )


def _joined(
    known: Vocabulary, more: Vocabulary, what: str
) -> tuple[Vocabulary, NDArray[np.int64]]:
    """Both vocabularies as one, and the index there of each entry of ``more``."""
    found = known.find(more.ids)
    new = found < 0
    ids = [more.ids[i] for i in np.nonzero(new)[0]]
    if ids and known.kind != more.kind:
        words = {"int": "whole numbers", "str": "text"}
        raise DataError(
            f"{what} ids are {words[known.kind]} in the known data, such as {known.ids[0]!r}, and "
            f"{words[more.kind]} in the new, such as {ids[0]!r}"
        )
    found[new] = known.first + len(known) + np.arange(len(ids))
    return Vocabulary([*known.ids, *ids], known.first), found
