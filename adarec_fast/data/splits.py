"""What trains, validates and tests: leave-one-out, or the cuts that the data come with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .cuts import PARTS
from .dataset import InteractionData
from .errors import DataError
from .flat import gather_ranges, lengths_to_offsets

Part = Literal["train", "valid", "test"]
_HELD_OUT = {"train": 2, "valid": 2, "test": 1}
_TARGET_FROM_END = {"valid": 2, "test": 1}


@dataclass(frozen=True, eq=False)
class Split:
    """The split of interaction data: leave-one-out, unless the data have ``cuts`` of their own.

    For a history i_1 … i_n: training sees i_1 … i_(n-2); validation predicts i_(n-1) from
    i_1 … i_(n-2); test predicts i_n from i_1 … i_(n-1). With cuts (``load(..., split="time")``),
    training sees what lies before the first, validation predicts a user's first item behind it
    from what lies before it, and test the first item behind the second cut likewise; users who
    have nothing before or nothing behind a cut are not asked there.

    Raises:
        DataError: a history has fewer than 3 items (``load`` drops those), and there are no cuts.

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
        if self.data.cuts is None and int(lengths.min()) < 3:
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

    @property
    def holds_out(self) -> bool:
        """Whether anything is held out; if not, all of the data trains and nothing can be told."""
        return self.data.cuts is None or self.data.cuts.kind != "none"

    def inputs(self, part: Part) -> tuple[Tensor, Tensor]:
        """Histories that predictions of ``part`` start from, never cut to a maximum length.

        Returns:
            Jagged ``(values [N], offsets [num_users + 1])``, int64. ``"train"`` and
            ``"valid"`` are the same histories. Where the data have cuts, some are empty.

        Example:
            >>> values, offsets = split.inputs("test")
            >>> data.items.decode(values[: offsets[1]]) == data[0][:-1]
            True
        """
        held_out = _HELD_OUT[_checked(part, _HELD_OUT)]
        starts, cuts = self.data.offsets[:-1], self.data.cuts
        if cuts is None:
            return gather_ranges(self.data.values, starts, self.data.lengths - held_out)
        return gather_ranges(
            self.data.values, starts, cuts.test if part == "test" else cuts.valid
        )

    def stepped_on(self) -> tuple[Tensor, Tensor]:
        """The histories that training steps are taken on, jagged as ``inputs``: those of
        ``"train"``, or of them only those that fine-tuning is about; the others are empty.

        Example:
            >>> torch.equal(split.stepped_on()[0], split.inputs("train")[0])
            True
        """
        cuts = self.data.cuts
        if cuts is None or cuts.trained is None:
            return self.inputs("train")
        return gather_ranges(
            self.data.values, self.data.offsets[:-1], torch.where(cuts.trained, cuts.valid, 0)
        )

    def users(self, part: Literal["valid", "test"]) -> Tensor:
        """int64, rising: indices of the users who are asked in ``part``.

        They have a history and something to predict. Of leave-one-out it is everybody.

        Example:
            >>> split.users("test").numel() == split.num_users
            True
        """
        row, cuts = PARTS.index(_checked(part, _TARGET_FROM_END)), self.data.cuts
        if cuts is None:
            return torch.arange(self.num_users)
        before = cuts.test if part == "test" else cuts.valid
        behind = self.data.lengths if part == "test" else cuts.test
        return torch.nonzero((before > 0) & ((behind > before) | cuts.lost[row])).flatten()

    def cold_users(self, part: Literal["valid", "test"]) -> int:
        """How many have something to predict in ``part`` but no history, and are not asked.

        Example:
            >>> split.cold_users("test")
            0
        """
        cuts = self.data.cuts
        known = {} if cuts is None else cuts.facts.get(_checked(part, _TARGET_FROM_END), {})
        return int(known.get("cold", 0))

    def targets(self, part: Literal["valid", "test"]) -> Tensor:
        """int64 [num_users]: the item that each user's prediction should rank first.

        0, padding, where there is none, and where it is none of the catalogue.

        Example:
            >>> data.items.decode(split.targets("test")[:1]) == data[0][-1:]
            True
        """
        from_end, cuts = _TARGET_FROM_END[_checked(part, _TARGET_FROM_END)], self.data.cuts
        if cuts is None:
            return self.data.values[self.data.offsets[1:] - from_end]
        before = cuts.test if part == "test" else cuts.valid
        behind = self.data.lengths if part == "test" else cuts.test
        there = (behind > before) & ~cuts.lost[PARTS.index(part)]
        targets = torch.zeros(self.num_users, dtype=torch.int64)
        targets[there] = self.data.values[(self.data.offsets[:-1] + before)[there]]
        return targets

    def relevant(self, part: Literal["valid", "test"]) -> tuple[Tensor, Tensor, Tensor]:
        """All that each user takes in ``part``, where ``targets`` has the first of it.

        Returns:
            Jagged ``(values [N], offsets [num_users + 1])``, int64, each item once a user, rising;
            and int64 [num_users], how many items each takes that are none of the catalogue. Of
            leave-one-out the one target.

        Example:
            >>> values, offsets, unknown = split.relevant("test")
            >>> torch.equal(values, split.targets("test")), int(unknown.sum())
            (True, 0)
        """
        cuts, ids = self.data.cuts, torch.arange(self.num_users)
        if cuts is None:
            targets = self.targets(part)
            return targets, torch.arange(self.num_users + 1), torch.zeros_like(targets)
        row = PARTS.index(_checked(part, _TARGET_FROM_END))
        before = cuts.test if part == "test" else cuts.valid
        behind = self.data.lengths if part == "test" else cuts.test
        starts = self.data.offsets[:-1] + before
        values, offsets = gather_ranges(self.data.values, starts, behind - before)
        owner, items = torch.unique(
            torch.stack([torch.repeat_interleave(ids, offsets.diff()), values]), dim=1
        )
        counts = torch.bincount(owner, minlength=self.num_users)
        return items, lengths_to_offsets(counts), cuts.unseen[row]

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
        cuts = self.data.cuts
        return (self.data.lengths - 1 if cuts is None else cuts.test) <= limit

    def training_prefixes(self) -> int:
        """Number of (prefix, next item) examples inside the training histories.

        Example:
            >>> split.training_prefixes() == int((data.lengths - 3).sum())
            True
        """
        offsets = self.stepped_on()[1]
        return int((offsets.diff() - 1).clamp(min=0).sum())

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
