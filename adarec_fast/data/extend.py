"""More interactions for data that are known: later ones of known users, new users, new items.

:func:`extended` joins them, :func:`check_not_again` refuses a log that is joined to itself,
:func:`new_held_out` splits what was joined for further training, and
:func:`followed` asks a model that knows none of them what came next.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .cuts import Cuts, distinct
from .dataset import InteractionData
from .errors import DataError
from .flat import gather_ranges, lengths_to_offsets
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


def new_held_out(known: InteractionData, grown: Extended, everything: bool) -> InteractionData:
    """The joined data, split for further training.

    Of a user's items as far as they are new, the last one tests and the one before it validates;
    steps are taken on the histories of users who have something new.

    Args:
        known: the data that were joined to.
        grown: what :func:`extended` made of them.
        everything: hold out nothing.

    Raises:
        DataError: the new interactions begin with those that are known, or nobody can be asked.
    """
    data = grown.data
    before = torch.zeros(data.num_users, dtype=torch.int64)
    before[: known.num_users] = known.lengths
    _check_later(known, data, before)
    new = data.lengths - before
    if everything:
        cuts = Cuts.at("none", data.lengths, data.lengths, {})
    else:
        # The first item of all is history, whoever has it.
        left = torch.minimum(new, data.lengths - 1)
        test = data.lengths - left.clamp(max=1)
        valid = data.lengths - left.clamp(max=2)
        facts = {
            part: {"users": int((end > begin).sum()), "cold": 0}
            for part, begin, end in (("valid", valid, test), ("test", test, data.lengths))
        }
        for part, fact in facts.items():
            if not fact["users"]:
                raise DataError(
                    f"{part}: nobody has enough new interactions for one to be held out; hold out "
                    "nothing (--split none) and say how many epochs"
                )
        cuts = Cuts.at("later", valid, test, facts)
    return data.replace(cuts=dataclasses.replace(cuts, trained=new > 0))


def followed(data: InteractionData, more: InteractionData) -> InteractionData:
    """Later interactions as a test of a model that was trained on ``data``.

    A known user is asked for the first of its new items, from its whole history in ``data``; a
    new user for the item behind its first that the model knows. Items that the model does not
    know are in no history, and a miss where they are asked for.

    Args:
        data: a run's.
        more: what came later; its histories may be of any length.

    Returns:
        Histories with the catalogue and the features of ``data``, of all users who have something
        new; ``cuts`` says what is asked, and its ``facts`` count who and what was new.

    Raises:
        DataError: ids are of another kind, the interactions begin with those that are known, or
            nobody can be asked.
    """
    grown = extended(data, more)
    whole = grown.data
    before = torch.zeros(whole.num_users, dtype=torch.int64)
    before[: data.num_users] = data.lengths
    _check_later(data, whole, before)
    users = torch.repeat_interleave(torch.arange(whole.num_users), whole.lengths)
    place = torch.arange(users.numel()) - whole.offsets[users]
    known = whole.values <= data.num_items
    # Up to the first known item of a new user, all is history.
    first = torch.full_like(before, int(whole.lengths.max()))
    first.scatter_reduce_(0, users[known], place[known], "amin")
    is_new = torch.arange(whole.num_users) >= data.num_users
    cut = torch.where(is_new, torch.minimum(first + 1, whole.lengths), before)
    asked = whole.lengths > cut
    lost = torch.zeros(2, whole.num_users, dtype=torch.bool)
    lost[1, asked] = whole.values[(whole.offsets[:-1] + cut)[asked]] > data.num_items
    inside = torch.bincount(users[known & (place < cut[users])], minlength=whole.num_users)
    warm, touched = asked & (inside > 0), whole.lengths > before
    new_item = whole.values > data.num_items
    unseen = torch.zeros(2, whole.num_users, dtype=torch.int64)
    behind = new_item & (place >= cut[users])
    unseen[1] = distinct(users, whole.values, behind, whole.num_users)
    facts = {
        "interactions": grown.interactions,
        "known_users": int((touched & ~is_new).sum()),
        "new_users": grown.new_users,
        "new_items": grown.new_items,
        "test": {
            "users": int(warm.sum()),
            "cold": int((touched & ~warm).sum()),
            "unseen_targets": int((lost[1] & warm).sum()),
            "unseen_items": grown.new_items,
            "unseen_interactions": int(new_item.sum()),
        },
    }  # fmt: skip
    if not facts["test"]["users"]:  # type: ignore[index]
        raise DataError(
            f"{more.name}: nobody to ask: none of {more.num_users:,} users has both a history of "
            "items that the model knows and something behind it"
        )
    cuts = Cuts("later", inside, inside, lost, unseen, None, facts)
    # Of those who have nothing new, nothing is asked: their histories are left out.
    keep = known & touched[users]
    lengths = torch.bincount(users[keep], minlength=whole.num_users)
    left = torch.nonzero(lengths).flatten()
    return InteractionData.from_flat(
        whole.values[keep], lengths_to_offsets(lengths[left]), data.items,
        whole.users.take(left.numpy()), more.name, features=data.features,
        cuts=dataclasses.replace(
            cuts, valid=inside[left], test=inside[left], lost=lost[:, left],
            unseen=unseen[:, left],
        ),
    )  # fmt: skip


def check_not_again(known: InteractionData, grown: InteractionData) -> None:
    """Refuse a whole log that was joined to itself; a few people may well do the same again.

    Args:
        known: the data that were joined to.
        grown: the data that :func:`extended` made of them.

    Raises:
        DataError: what is new of most known users begins as what is known of them.
    """
    before = torch.zeros(grown.num_users, dtype=torch.int64)
    before[: known.num_users] = known.lengths
    same, _ = _again(known, grown, before)
    if 2 * same > known.num_users:
        raise DataError(_only_later(same, known.num_users))


def _check_later(known: InteractionData, grown: InteractionData, before: Tensor) -> None:
    """Refuse new interactions that begin with the known ones: a whole log, not what came later.

    Raises:
        DataError: the new part of most histories begins as the known part does.
    """
    same, continued = _again(known, grown, before)
    if continued and 2 * same > continued:
        raise DataError(_only_later(same, continued))


def _only_later(same: int, users: int) -> str:
    return (
        f"{same:,} of {users:,} known users begin there as they do in the data that the run was "
        "trained on; give only what came later"
    )


def _again(known: InteractionData, grown: InteractionData, before: Tensor) -> tuple[int, int]:
    """Known users whose new part begins as their known part does, and all who have a new part;
    of one known item nothing is said."""
    old, total = before[: known.num_users], grown.lengths[: known.num_users]
    again = torch.nonzero((total > old) & (old > 1)).flatten()
    long_enough = again[total[again] >= 2 * old[again]]
    starts = grown.offsets[:-1][long_enough]
    sizes = old[long_enough]
    first, _ = gather_ranges(grown.values, starts, sizes)
    second, _ = gather_ranges(grown.values, starts + sizes, sizes)
    owner = torch.repeat_interleave(torch.arange(sizes.numel()), sizes)
    differ = torch.bincount(owner[first != second], minlength=sizes.numel())
    return int((differ == 0).sum()), again.numel()


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
