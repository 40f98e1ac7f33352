"""What may be recommended: items to leave out, items to choose from, and rules as masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ragged
from ..packed.score_topk import ordered
from .own_ids import Ids, is_list_of_lists


class Allowed(NamedTuple):
    """Which items may come: those that every part that is there allows.

    Attributes:
        everybody: bool ``[V+1]``, the same for all.
        masks: bool ``[B, V+1]``, or None.
        lists: packed items for every user, or None.
    """

    everybody: Tensor
    masks: Tensor | None
    lists: ragged.Jagged | None

    @property
    def shared(self) -> bool:
        """Whether it is the same for all."""
        return self.masks is None and self.lists is None

    def rows(self, first: int, last: int, device: torch.device) -> Tensor:
        """Bool ``[1 or last - first, V+1]`` of some users, on a device."""
        found = self.everybody[None]
        if self.masks is not None:
            found = found & self.masks[first:last]
        if self.lists is not None:
            values, offsets = ragged.rows(self.lists, first, last)
            listed = torch.zeros(last - first, found.shape[1], dtype=torch.bool)
            listed[ragged.sequence_ids(offsets, values.shape[0]), values] = True
            found = found & listed
        return found.to(device)


class Limits(NamedTuple):
    """What a question leaves to choose from.

    Attributes:
        exclude: packed items for every user, on the CPU, or None.
        allowed: None where all may come.
    """

    exclude: ragged.Jagged | None
    allowed: Allowed | None

    @classmethod
    def of(
        cls, ids: Ids, users: int, num_items: int, *, exclude: Any, allow: Any, mask: Any
    ) -> Limits:
        """Read and check the arguments of ``recommend``.

        Raises:
            ValueError, DataError: an id that is unknown, lists or a mask for another number of
                users or items, or of another type.
        """
        left_out, lists = None, None
        for name, given in (("exclude", exclude), ("allow", allow)):
            if given is not None and (
                not isinstance(given, Iterable) or isinstance(given, (str, bytes, Mapping))
            ):
                raise ValueError(
                    f"{name} is a {type(given).__name__}; it must be a list of item ids, or a list "
                    "of them for every user"
                )
        if exclude is not None:
            left_out = _for_each(ids, exclude, "exclude", users, num_items)
        if allow is None and mask is None:
            return cls(left_out, None)
        everybody, masks = torch.ones(num_items + 1, dtype=torch.bool), None
        everybody[0] = False
        if mask is not None:
            rule = _mask(mask, users, num_items)
            if rule.dim() == 1:
                everybody &= rule
            else:
                masks = rule
        if allow is not None and is_list_of_lists(allow):
            lists = _for_each(ids, allow, "allow", users, num_items)
        elif allow is not None:
            listed = torch.zeros_like(everybody)
            listed[ids.flat(allow, "allow", num_items)] = True
            everybody &= listed
        return cls(left_out, Allowed(everybody, masks, lists))


def best_allowed(
    scores: Tensor, allowed: Tensor, seen: Tensor, seen_offsets: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k best of scores over the catalogue; among equal ones the lower index comes first.

    Args:
        scores: ``[B, V+1]``, written over.
        allowed: bool ``[1 or B, V+1]``.
        seen: int64 ``[N]``, what to leave out besides, packed.
        seen_offsets: int64 ``[B+1]``.
        k: 1..V.

    Returns:
        Scores ``[B, k]``, falling, -inf behind the last item that may come, and items.
    """
    scores.masked_fill_(~allowed, float("-inf"))
    scores[ragged.sequence_ids(seen_offsets, seen.shape[0]), seen] = float("-inf")
    best, order = ordered(scores[:, 1:], k)
    return best, order + 1


def _for_each(ids: Ids, given: Any, name: str, users: int, num_items: int) -> ragged.Jagged:
    """Lists for every user; one list is for everybody."""
    if not is_list_of_lists(given):
        values = ids.flat(given, name, num_items)
        return ragged.Jagged(values.repeat(users), torch.arange(users + 1) * values.shape[0])
    lists = ids.rows(given, name, num_items)
    found = lists.offsets.shape[0] - 1
    if found != users:
        raise ValueError(f"{name} has {found} lists for {users} users; give one for each")
    return lists


def _mask(mask: Any, users: int, num_items: int) -> Tensor:
    """Bool ``[V+1]`` or ``[B, V+1]`` on the CPU."""
    right = (
        f"it must be bool, True where an item may come: [{num_items}] as in item_vocabulary.ids, "
        f"or [{num_items + 1}] by index, or [{users}, either] for the users"
    )
    try:
        rule = mask.detach().cpu() if isinstance(mask, Tensor) else torch.from_numpy(
            np.ascontiguousarray(np.asarray(mask))
        )
    except (TypeError, ValueError):  # of text, of ragged lists
        raise ValueError(f"mask is a {type(mask).__name__}; {right}") from None
    fits = rule.dim() == 1 or (rule.dim() == 2 and rule.shape[0] == users)
    if rule.dtype is not torch.bool or not fits or rule.shape[-1] not in (num_items, num_items + 1):
        raise ValueError(f"mask is {rule.dtype} {list(rule.shape)}; {right}")
    if rule.shape[-1] == num_items:
        return F.pad(rule, (1, 0))
    rule = rule.clone()
    rule[..., 0] = False  # padding is no item
    return rule
