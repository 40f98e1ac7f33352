"""Interaction data in memory: flat arrays of contiguous indices and their vocabularies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import Tensor

from ..documents import shown
from .cuts import Cuts
from .errors import DataError
from .features import ItemFeatures
from .vocabulary import ExternalId, Vocabulary

_SHOWN_ITEMS, _SHOWN_ID = 5, 24

__all__ = ["DataError", "Dropped", "InteractionData", "PlantedLabels", "ReadReport", "Vocabulary"]


@dataclass(frozen=True, eq=False)
class PlantedLabels:
    """The intents that a synthetic data set was generated from; all tensors int64.

    Sub-themes are numbered through all themes, so sub-theme ``s`` belongs to theme
    ``s // subthemes_per_theme``.

    Attributes:
        item_theme: [num_items + 1], theme of each item; -1 at index 0 (padding).
        item_subtheme: [num_items + 1], sub-theme of each item; -1 at index 0.
        user_theme: [num_users], the theme each user prefers.
        user_subtheme: [num_users], the sub-theme each user prefers, inside that theme.
    """

    item_theme: Tensor
    item_subtheme: Tensor
    user_theme: Tensor
    user_subtheme: Tensor

    def take(self, items: Tensor, users: Tensor) -> PlantedLabels:
        """Labels of a selection: item indices (>= 1) and user indices, in their new order."""
        padding = torch.zeros(1, dtype=torch.int64)
        items = torch.cat([padding, items])
        return PlantedLabels(
            self.item_theme[items],
            self.item_subtheme[items],
            self.user_theme[users],
            self.user_subtheme[users],
        )


@dataclass(frozen=True)
class ReadReport:
    """What reading and preprocessing did to a data set.

    Attributes:
        format: the format that was read, such as ``"sequences"`` or ``"csv"``.
        num_read: interactions in the source, with those that were left out.
        num_duplicates: interactions removed by ``deduplicate``.
        num_k_core_users: users removed by ``k_core``.
        num_k_core_items: items removed by ``k_core``.
        num_dropped_short: users removed because their history was under ``min_length``.
        num_missing_users: interactions left out because they had no user id.
        num_missing_items: interactions left out because they had a user id but no item id.
        num_other_events: rows left out because their event was none to keep.
        num_lost_items: items that only users had who were removed as short.
        num_cut: interactions that ``truncate`` cut off.
        num_ties: interactions read whose time is that of the one before in the same history; the
            order of the source counts among them.
        columns: names of the columns of ``user``, ``item`` and ``time`` (empty for the order of
            the source); nothing where the format has no named columns.
        why: for each of these, why it is this one.
    """

    format: str
    num_read: int
    num_duplicates: int = 0
    num_k_core_users: int = 0
    num_k_core_items: int = 0
    num_dropped_short: int = 0
    num_missing_users: int = 0
    num_missing_items: int = 0
    num_other_events: int = 0
    num_lost_items: int = 0
    num_cut: int = 0
    num_ties: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)
    why: Mapping[str, str] = field(default_factory=dict)

    def chosen(self) -> list[str]:
        """Which columns are users, items and times, and why, in words."""
        if not self.columns:
            return ["the order of the lines, since pairs have no times"] * (self.format == "pairs")
        named = {role: f"{name!r} ({self.why[role]})" for role, name in self.columns.items()}
        words = [f"users from {named['user']}", f"items from {named['item']}"]
        if not self.columns["time"]:
            return [*words, f"the order of the rows ({self.why['time']})"]
        ties = f"; {self.num_ties:,} tie and keep the order of the rows" if self.num_ties else ""
        return [*words, f"sorted by {named['time']}{ties}"]

    def left_out(self) -> list[str]:
        """How many interactions, users and items are not in the data, and why, in words."""
        counts = {
            "interactions without a user id": self.num_missing_users,
            "interactions without an item id": self.num_missing_items,
            "rows of other events": self.num_other_events,
            "repeated interactions": self.num_duplicates,
            "users outside the k-core": self.num_k_core_users,
            "items outside the k-core": self.num_k_core_items,
            "users with too short a history": self.num_dropped_short,
            "items that only such users had": self.num_lost_items,
            "interactions cut off long histories": self.num_cut,
        }
        return [f"{count:,} {what}" for what, count in counts.items() if count]


@dataclass(frozen=True, eq=False)
class Dropped:
    """Users and items of a source that filters took out of the data.

    Attributes:
        histories: of the users, with a catalogue of their own.
        items: ids of items that no history of the data holds any more.
        min_length, k_core: of the filters.
    """

    histories: InteractionData
    items: Vocabulary
    min_length: int
    k_core: int

    def known(self, user: ExternalId) -> ExternalId | None:
        """A dropped user's id as the data has it; None for others."""
        found = self.histories.users.find([user])
        return None if found[0] < 0 else self.histories.users.decode(found)[0]

    def why(self, user: ExternalId) -> str:
        """How many items a dropped user has, and what that was too few for."""
        found = int(self.histories.users.encode([user])[0])
        filters = f"min_length={self.min_length}" + (
            f" and k_core={self.k_core}" if self.k_core > 1 else ""
        )
        return (
            f"user {user!r} is in the data, with {int(self.histories.lengths[found])} items, and "
            f"was dropped by {filters}"
        )

    def told(self, user: ExternalId) -> str:
        """What goes with an answer to a dropped user."""
        return f"{self.why(user)}; answered by those in the catalogue"


@dataclass(frozen=True, eq=False)
class InteractionData:
    """Histories of all users, packed: user ``u`` has ``values[offsets[u]:offsets[u + 1]]``.

    Build it with ``from_flat``, which checks everything; the constructor trusts its caller.

    Attributes:
        values: int64 [num_interactions] on the CPU, item indices 1..num_items in time order.
        offsets: int64 [num_users + 1], from 0 to num_interactions.
        items: external item ids, indices from 1.
        users: external user ids, indices from 0.
        name: a short name for logs and run folders.
        labels: planted intents, of synthetic data only.
        report: what reading the source did, None when the data were not read.
        dropped: what filters took out, None where that is nothing or not known.
        cuts: where histories are cut into training, validation and test; None: leave-one-out.
        features: of the items, None where there are none; the items that training has come first
            in the catalogue then.

    Example:
        >>> data = af.load({"ann": ["sku-2", "sku-1", "sku-2"], "bob": ["sku-1", "sku-3", "sku-2"]})
        >>> len(data), data.num_items, data[0]
        (2, 3, ['sku-2', 'sku-1', 'sku-2'])
        >>> data.values.tolist()
        [2, 1, 2, 1, 3, 2]
    """

    values: Tensor
    offsets: Tensor
    items: Vocabulary
    users: Vocabulary
    name: str
    labels: PlantedLabels | None = None
    report: ReadReport | None = None
    dropped: Dropped | None = None
    cuts: Cuts | None = None
    features: ItemFeatures | None = None

    @classmethod
    def from_flat(
        cls,
        values: Tensor,
        offsets: Tensor,
        items: Vocabulary,
        users: Vocabulary,
        name: str,
        labels: PlantedLabels | None = None,
        report: ReadReport | None = None,
        dropped: Dropped | None = None,
        cuts: Cuts | None = None,
        features: ItemFeatures | None = None,
    ) -> InteractionData:
        """Checked construction.

        Raises:
            DataError: dtypes, shapes, offsets, vocabularies or item indices disagree.

        Example:
            >>> items, users = Vocabulary(["sku-1", "sku-2"], first=1), Vocabulary(["ann"], first=0)
            >>> values, offsets = torch.tensor([2, 1, 2]), torch.tensor([0, 3])
            >>> af.InteractionData.from_flat(values, offsets, items, users, "small")[0]
            ['sku-2', 'sku-1', 'sku-2']
        """
        for argument, tensor in (("values", values), ("offsets", offsets)):
            if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64 or tensor.dim() != 1:
                got = (
                    f"{tensor.dtype} {list(tensor.shape)}"
                    if isinstance(tensor, Tensor)
                    else type(tensor).__name__
                )
                raise DataError(f"{argument} must be a 1-D int64 tensor, got {got}")
        if items.first != 1 or users.first != 0:
            raise DataError(
                f"items.first={items.first}, users.first={users.first}: item indices start at 1 "
                "(0 is padding), user indices at 0"
            )
        values, offsets = values.cpu(), offsets.cpu()
        if offsets.numel() != len(users) + 1:
            raise DataError(
                f"offsets has {offsets.numel()} entries for {len(users)} users; "
                f"it must have {len(users) + 1}"
            )
        if int(offsets[0]) != 0 or int(offsets[-1]) != values.numel():
            raise DataError(
                f"offsets run from {int(offsets[0])} to {int(offsets[-1])}; they must run from 0 "
                f"to len(values) = {values.numel()}"
            )
        decreasing = offsets[1:] < offsets[:-1]
        if bool(decreasing.any()):
            user = int(decreasing.int().argmax())
            raise DataError(f"offsets decrease at user index {user}")
        if values.numel():
            low, high = int(values.min()), int(values.max())
            if low < 1 or high > len(items):
                wrong = low if low < 1 else high
                position = int((values == wrong).int().argmax())
                raise DataError(
                    f"item index {wrong} at position {position} is outside the catalogue "
                    f"1..{len(items)}"
                )
        if labels is not None:
            shapes = {
                "item_theme": len(items) + 1,
                "item_subtheme": len(items) + 1,
                "user_theme": len(users),
                "user_subtheme": len(users),
            }
            for field, size in shapes.items():
                tensor = getattr(labels, field)
                if tensor.dtype != torch.int64 or list(tensor.shape) != [size]:
                    raise DataError(
                        f"labels.{field} is {tensor.dtype} {list(tensor.shape)}; "
                        f"it must be torch.int64 [{size}]"
                    )
        if cuts is not None:
            cuts.check(offsets[1:] - offsets[:-1])
        if features is not None and len(features.rows) != len(items):
            raise DataError(
                f"features are of {len(features.rows):,} items, the catalogue has {len(items):,}"
            )
        return cls(values, offsets, items, users, name, labels, report, dropped, cuts, features)

    @property
    def num_users(self) -> int:
        return self.offsets.numel() - 1

    @property
    def num_items(self) -> int:
        """Size of the catalogue, without padding; item indices are 1..num_items."""
        return len(self.items)

    @property
    def num_interactions(self) -> int:
        return self.values.numel()

    @property
    def lengths(self) -> Tensor:
        """int64 [num_users], the length of each history."""
        return self.offsets[1:] - self.offsets[:-1]

    def sequence(self, user_index: int) -> Tensor:
        """int64 item indices of one user's history, oldest first (a view).

        Raises:
            DataError: ``user_index`` is outside 0..num_users-1.

        Example:
            >>> data.items.decode(data.sequence(0)) == data[0]
            True
        """
        if not 0 <= user_index < self.num_users:
            raise DataError(
                f"user_index={user_index} is outside 0..{self.num_users - 1}; "
                "external ids are turned into indices by users.encode"
            )
        return self.values[int(self.offsets[user_index]) : int(self.offsets[user_index + 1])]

    def history_of(self, user: ExternalId) -> Tensor:
        """int64 item indices of a user's history by its external id, oldest first.

        Of a user that filters dropped, those items that are in the catalogue.

        Raises:
            DataError: the user is unknown, or was dropped and none of its items is left.

        Example:
            >>> data.items.decode(data.history_of("u2")) == data[1]
            True
        """
        index = int(self.users.find([user])[0])
        if index >= 0:
            return self.sequence(index)
        if self.dropped is None or self.dropped.known(user) is None:
            self.users.encode([user])  # says what users look like
        assert self.dropped is not None
        old = self.dropped.histories
        ids = old.items.decode(old.sequence(int(old.users.find([user])[0])))
        found = self.items.find(ids)
        if not (found >= 0).any():
            reason = self.dropped.why(user)
            raise DataError(f"{reason}; none of its items is in the catalogue, such as {ids[0]!r}")
        return torch.from_numpy(found[found >= 0])

    def __len__(self) -> int:
        """The number of users."""
        return self.num_users

    @overload
    def __getitem__(self, user_index: int) -> list[ExternalId]: ...
    @overload
    def __getitem__(self, user_index: slice) -> list[list[ExternalId]]: ...
    def __getitem__(
        self, user_index: int | slice
    ) -> list[ExternalId] | list[list[ExternalId]]:
        """The history of a user by index, oldest first, as external ids; a slice gives several."""
        if isinstance(user_index, slice):
            return [self[user] for user in range(*user_index.indices(self.num_users))]
        return self.items.decode(self.sequence(range(self.num_users)[user_index]))

    def __repr__(self) -> str:
        lines = [
            f"InteractionData {self.name!r}: {self.num_users:,} users, {self.num_items:,} items, "
            f"{self.num_interactions:,} interactions"
        ]
        if self.num_users:
            sizes = self.lengths
            lines.append(
                f"  histories of {int(sizes.min()):,} to {int(sizes.max()):,} items, "
                f"{float(sizes.double().mean()):.1f} in the mean"
            )
            latest = ", ".join(shown(item, _SHOWN_ID) for item in self[0][-_SHOWN_ITEMS:])
            user = shown(self.users.decode([0])[0], _SHOWN_ID)
            lines.append(f"  user {user}: {'… ' * (sizes[0] > _SHOWN_ITEMS)}{latest}")
        if self.dropped is not None:
            gone = self.dropped.histories.num_users, len(self.dropped.items)
            lines.append(f"  filters dropped {gone[0]:,} users and {gone[1]:,} items")
        return "\n".join(lines)

    def replace(self, **changes: object) -> InteractionData:
        """A copy with some attributes changed and everything checked again.

        Example:
            >>> data.replace(name="spring").name
            'spring'
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return InteractionData.from_flat(**{**fields, **changes})
