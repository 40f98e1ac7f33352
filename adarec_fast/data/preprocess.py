"""Filters on interaction data; every one is vectorised and returns new data."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .dataset import Dropped, InteractionData
from .errors import DataError
from .flat import gather_ranges, lengths_to_offsets
from .vocabulary import Vocabulary

Deduplicate = Literal["consecutive", "all"]


def select_interactions(data: InteractionData, keep: Tensor) -> InteractionData:
    """The interactions where ``keep`` (bool [num_interactions]) is true.

    Users and items that are left with no interaction leave the vocabularies; the others keep
    their order.
    """
    owners = owners_of(data)
    lengths = torch.bincount(owners[keep], minlength=data.num_users)
    return _part(data, data.values[keep], lengths, owners, keep)


def select_users(data: InteractionData, chosen: Tensor) -> InteractionData:
    """The whole histories of the users where ``chosen`` (bool [num_users]) is true.

    As :func:`select_interactions` of them, but without a mask over all interactions.
    """
    lengths = torch.where(chosen, data.lengths, 0)
    values, _ = gather_ranges(data.values, data.offsets[:-1][chosen], data.lengths[chosen])
    return _part(data, values, lengths)


def _part(
    data: InteractionData, values: Tensor, lengths: Tensor, owners: Tensor | None = None,
    keep: Tensor | None = None,
) -> InteractionData:
    """What each user keeps; which interactions these are must be told if not all of a history."""
    users = torch.nonzero(lengths).flatten()
    items = torch.nonzero(torch.bincount(values, minlength=data.num_items + 1)).flatten()
    new_index = torch.zeros(data.num_items + 1, dtype=torch.int64)
    new_index[items] = torch.arange(1, items.numel() + 1)
    cuts = data.cuts
    if cuts is not None:
        owners = owners_of(data) if owners is None else owners
        cuts = cuts.of(owners, lengths[owners] > 0 if keep is None else keep, users)
    return data.replace(
        values=new_index[values],
        offsets=lengths_to_offsets(lengths[users]),
        items=data.items.take(items.numpy()),
        users=data.users.take(users.numpy()),
        labels=None if data.labels is None else data.labels.take(items, users),
        cuts=cuts,
    )


def k_core(data: InteractionData, k: int) -> InteractionData:
    """The largest part of the data in which every user and item has at least ``k`` interactions.

    ``k = 0`` or 1 leaves the data as they are.

    Raises:
        DataError: ``k`` is negative, or nothing is left.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise DataError(f"k_core={k!r} must be an int of at least 0")
    if k <= 1:
        return data
    users, values = owners_of(data), data.values
    keep = torch.ones(values.numel(), dtype=torch.bool)
    while True:
        per_user = torch.bincount(users[keep], minlength=data.num_users)
        per_item = torch.bincount(values[keep], minlength=data.num_items + 1)
        still = keep & (per_user[users] >= k) & (per_item[values] >= k)
        if torch.equal(still, keep):
            break
        keep = still
    if not bool(keep.any()):
        raise DataError(f"k_core={k} leaves nothing of {data.name}; choose a smaller k")
    return data if bool(keep.all()) else select_interactions(data, keep)


def deduplicate(data: InteractionData, how: Deduplicate) -> InteractionData:
    """Drop repeated items of a history.

    Args:
        data: the data.
        how: ``"consecutive"`` drops an item that equals the one just before it in the same
            history, ``"all"`` keeps only the first occurrence of each item of a history.
    """
    users, values = owners_of(data), data.values
    if how == "consecutive":
        keep = torch.ones(values.numel(), dtype=torch.bool)
        keep[1:] = (values[1:] != values[:-1]) | (users[1:] != users[:-1])
    elif how == "all":
        pairs = users * (data.num_items + 1) + values
        # A stable sort puts the first occurrence of each pair first in its group.
        ordered, order = torch.sort(pairs, stable=True)
        first = torch.ones(values.numel(), dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        keep = torch.empty_like(first)
        keep[order] = first
    else:
        raise DataError(f"deduplicate={how!r} must be 'consecutive', 'all' or None")
    return data if bool(keep.all()) else select_interactions(data, keep)


def drop_short(data: InteractionData, min_length: int) -> tuple[InteractionData, int]:
    """Drop users with fewer than ``min_length`` interactions; also returns how many there were.

    Raises:
        DataError: ``min_length`` is under 1, or no user is left.
    """
    if isinstance(min_length, bool) or not isinstance(min_length, int) or min_length < 1:
        raise DataError(f"min_length={min_length!r} must be an int of at least 1")
    short = data.lengths < min_length
    count = int(short.sum())
    if count == data.num_users:
        longest = int(data.lengths.max()) if data.num_users else 0
        raise DataError(
            f"{data.name}: all {data.num_users} users have fewer than {min_length} items "
            f"(the longest history has {longest}); leave-one-out needs at least 3 a user"
        )
    if count == 0:
        return data, 0
    return select_users(data, ~short), count


class Removed(NamedTuple):
    """What :func:`filtered` took away.

    Attributes:
        duplicates: interactions, by ``deduplicate``.
        core_users, core_items: under ``k_core`` interactions.
        short_users: under ``min_length`` interactions.
        lost_items: items that only short users had.
    """

    duplicates: int
    core_users: int
    core_items: int
    short_users: int
    lost_items: int


def filtered(
    data: InteractionData, how: Deduplicate | None, k: int, min_length: int
) -> tuple[InteractionData, Removed]:
    """Repeats dropped, and the largest part where items and users have enough interactions.

    The filters alternate until all hold together: without its short users an item may have fewer
    than ``k`` interactions, without such items a user may be short, and two interactions with one
    item may come to be neighbours.

    Raises:
        DataError: an argument is out of range, or nothing is left.
    """
    removed = [0, 0, 0, 0, 0]
    while True:
        begin = data
        if how is not None:
            data = deduplicate(data, how)
        removed[0] += begin.num_interactions - data.num_interactions
        before, data = data, k_core(data, k)
        removed[1] += before.num_users - data.num_users
        removed[2] += before.num_items - data.num_items
        before, (data, short) = data, drop_short(data, min_length)
        removed[3] += short
        removed[4] += before.num_items - data.num_items
        if data is begin or (how != "consecutive" and k <= 1):
            return data, Removed(*removed)


def dropped_between(
    before: InteractionData, after: InteractionData, k: int, min_length: int
) -> Dropped | None:
    """What filters took out, None where that is nothing."""
    if (before.num_users, before.num_items) == (after.num_users, after.num_items):
        return None
    gone = torch.from_numpy(_absent(before.users, after.users))
    lost = np.flatnonzero(_absent(before.items, after.items)) + before.items.first
    return Dropped(select_users(before, gone), before.items.take(lost), min_length, k)


def _absent(before: Vocabulary, after: Vocabulary) -> NDArray[np.bool_]:
    """Which ids of a vocabulary are not in another that was made of it."""
    ids = before.array()
    if isinstance(ids, np.ndarray):
        return after.find(ids) < 0
    there = set(after.array())
    return np.fromiter((x not in there for x in ids), dtype=bool, count=len(ids))


def truncate_histories(data: InteractionData, limit: int) -> InteractionData:
    """The "cut" sparse setting: the last ``limit`` training items and both targets of each user.

    A history keeps its last ``limit + 2`` items, so that leave-one-out trains on at most
    ``limit`` and tests on the same targets as before; of a split by time all that comes behind
    the training items stays. The catalogue stays whole: items that no
    cut history holds can still be recommended, and figures compare with those of full ranking.

    Raises:
        DataError: ``limit`` is under 1.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise DataError(f"truncate={limit!r} must be an int of at least 1, or None")
    cuts, lengths = data.cuts, data.lengths.clamp(max=limit + 2)
    if cuts is not None:
        gone = (cuts.valid - limit).clamp(min=0)
        lengths = data.lengths - gone
        cuts = dataclasses.replace(cuts, valid=cuts.valid - gone, test=cuts.test - gone)
    values, offsets = gather_ranges(data.values, data.offsets[1:] - lengths, lengths)
    return data.replace(values=values, offsets=offsets, cuts=cuts)


def owners_of(data: InteractionData) -> Tensor:
    """int64 [num_interactions]: the user index of each interaction."""
    return torch.repeat_interleave(torch.arange(data.num_users), data.lengths)
