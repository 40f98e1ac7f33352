"""Leave-one-out: the last item of a history tests, the one before it validates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .dataset import InteractionData
from .errors import DataError
from .flat import gather_ranges

Part = Literal["train", "valid", "test"]
_HELD_OUT = {"train": 2, "valid": 2, "test": 1}
_TARGET_FROM_END = {"valid": 2, "test": 1}


@dataclass(frozen=True, eq=False)
class Split:
    """The leave-one-out split of interaction data.

    For a history i_1 … i_n: training sees i_1 … i_(n-2); validation predicts i_(n-1) from
    i_1 … i_(n-2); test predicts i_n from i_1 … i_(n-1).

    Raises:
        DataError: a history has fewer than 3 items (``load`` drops those).

    Example:
        >>> split = af.Split(data)
        >>> len(split.inputs("train")[0]) == data.num_interactions - 2 * data.num_users
        True
    """

    data: InteractionData

    def __post_init__(self) -> None:
        if not isinstance(self.data, InteractionData):
            raise DataError(f"data is a {type(self.data).__name__}; it must be an InteractionData")
        lengths = self.data.lengths
        if lengths.numel() == 0:
            raise DataError(f"{self.data.name} has no users to split")
        if int(lengths.min()) < 3:
            user = int(lengths.argmin())
            raise DataError(
                f"{self.data.name}: user {self.data.users.decode([user])[0]!r} has "
                f"{int(lengths[user])} items; leave-one-out needs at least 3 "
                "(load(..., min_length=3) drops shorter histories)"
            )

    def __repr__(self) -> str:
        return (
            f"Split of {self.data.name!r}, leave-one-out: {self.num_users:,} users, "
            f"{self.num_items:,} items, {self.training_prefixes():,} training prefixes"
        )

    @property
    def num_users(self) -> int:
        return self.data.num_users

    @property
    def num_items(self) -> int:
        return self.data.num_items

    def inputs(self, part: Part) -> tuple[Tensor, Tensor]:
        """Histories that predictions of ``part`` start from, never cut to a maximum length.

        Returns:
            Jagged ``(values [N], offsets [num_users + 1])``, int64. ``"train"`` and
            ``"valid"`` are the same histories.

        Example:
            >>> values, offsets = split.inputs("test")
            >>> data.items.decode(values[: offsets[1]]) == data[0][:-1]
            True
        """
        held_out = _HELD_OUT[_checked(part, _HELD_OUT)]
        starts = self.data.offsets[:-1]
        return gather_ranges(self.data.values, starts, self.data.lengths - held_out)

    def targets(self, part: Literal["valid", "test"]) -> Tensor:
        """int64 [num_users]: the item that each user's prediction should rank first.

        Example:
            >>> data.items.decode(split.targets("test")[:1]) == data[0][-1:]
            True
        """
        from_end = _TARGET_FROM_END[_checked(part, _TARGET_FROM_END)]
        return self.data.values[self.data.offsets[1:] - from_end]

    def seen(self, part: Part) -> tuple[Tensor, Tensor]:
        """Items to mask when ranking for ``part``: its whole input history, jagged as ``inputs``.

        A target that is already in the history (6.7% of the test targets of Yelp, none of the
        Amazon sets) becomes unreachable; the published results mask in the same way.

        Example:
            >>> all(map(torch.equal, split.seen("test"), split.inputs("test")))
            True
        """
        return self.inputs(part)

    def sparse_users(self, limit: int = 5) -> Tensor:
        """bool [num_users]: users whose history at test time has at most ``limit`` items.

        That is the "natural" sparse subset: everything but the test item counts, so
        ``n - 1 <= limit``. On Amazon Beauty it holds 50.9% of the users, on Toys 53.6%.

        Example:
            >>> int(split.sparse_users(limit=5).sum()) <= split.num_users
            True
        """
        return self.data.lengths - 1 <= limit

    def training_prefixes(self) -> int:
        """Number of (prefix, next item) examples inside the training histories.

        Example:
            >>> split.training_prefixes() == int((data.lengths - 3).sum())
            True
        """
        return int((self.data.lengths - 3).sum())

    def repeated_targets(self, part: Literal["valid", "test"]) -> Tensor:
        """bool [num_users]: the target occurs in its own input history already.

        Example:
            >>> split.repeated_targets("test").shape == (split.num_users,)
            True
        """
        values, offsets = self.inputs(part)
        lengths = offsets[1:] - offsets[:-1]
        hit = values == torch.repeat_interleave(self.targets(part), lengths)
        owner = torch.repeat_interleave(torch.arange(self.num_users), lengths)
        return torch.bincount(owner[hit], minlength=self.num_users) > 0


def _checked(part: str, known: dict[str, int]) -> str:
    if not isinstance(part, str) or part not in known:
        raise ValueError(f"part={part!r} must be one of {', '.join(map(repr, known))}")
    return part
