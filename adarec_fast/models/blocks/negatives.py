"""Negative items, uniform over those that a user has not met, drawn without rejection.

Of a user with the distinct items s_0 < s_1 < ... of V, let g_j = s_j - 1 - j, the number of items
below s_j that the user lacks; it does not fall with j. The r-th of the items that the user lacks,
r from 0, is r + 1 + #{j : g_j <= r}: one uniform number and one binary search a draw.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ... import ragged, rng
from ...config import ConfigError
from ...data import Split
from ...data.flat import lengths_to_offsets

Excluded = Literal["train", "all"]


class NegativeSampler(nn.Module):
    """Draws items that are none of a user's; buffers that ``state_dict`` leaves out.

    Args:
        values: int64 ``[N]``, items that users have, on the CPU, in any order.
        offsets: int64 ``[U+1]``.
        num_items: V.

    Raises:
        ConfigError: a user has every item, so that there is no negative for them.
    """

    keys: Tensor
    begins: Tensor
    counts: Tensor

    def __init__(self, values: Tensor, offsets: Tensor, num_items: int) -> None:
        super().__init__()
        users = offsets.shape[0] - 1
        owner = ragged.sequence_ids(offsets, values.shape[0])
        distinct = torch.unique(owner * (num_items + 1) + values)  # sorted by user, then by item
        owner, items = distinct // (num_items + 1), distinct % (num_items + 1)
        taken = torch.bincount(owner, minlength=users)
        if users and int(taken.max()) >= num_items:
            raise ConfigError(
                "loss='original' draws items that a user has not met, and user number "
                f"{int(taken.argmax())} has met all {num_items}; use loss='full_ce', or more items"
            )
        begins = torch.zeros(users + 1, dtype=torch.int64)
        torch.cumsum(taken, 0, out=begins[1:])
        lacking = items - 1 - (torch.arange(items.shape[0]) - begins[owner])
        self.num_items = num_items
        self.register_buffer("keys", owner * (num_items + 1) + lacking, persistent=False)
        self.register_buffer("begins", begins[:-1].clone(), persistent=False)
        self.register_buffer("counts", num_items - taken, persistent=False)

    @classmethod
    def of(cls, split: Split, excluded: Excluded) -> NegativeSampler:
        """For the users of a split; of items with features only those that training has.

        Args:
            split: of the interactions.
            excluded: ``"train"``: a user's training items are no negatives; ``"all"``: nor are the
                two that are held out, as in the public code of the S3-Rec family, which so tells
                the model a little of them.
        """
        features = split.data.features
        if excluded == "train":
            items = split.num_items if features is None else features.trained
            return cls(*split.inputs("train"), items)
        values, offsets = split.data.values, split.data.offsets
        if features is None:
            return cls(values, offsets, split.num_items)
        # Cold items are in no training table, and so are none to draw.
        owner = ragged.sequence_ids(offsets, values.shape[0])
        there = values <= features.trained
        lengths = torch.bincount(owner[there], minlength=offsets.shape[0] - 1)
        return cls(values[there], lengths_to_offsets(lengths), features.trained)

    def nth(self, users: Tensor, r: Tensor) -> Tensor:
        """The items that users lack: int64, the shape of ``r``.

        Args:
            users: int64, broadcasts with ``r``.
            r: int64, which of them, 0 .. what the user lacks - 1.
        """
        wanted = users * (self.num_items + 1) + r
        before = torch.searchsorted(self.keys, wanted, right=True) - self.begins[users]
        return r + 1 + before

    def forward(self, seed: Tensor, users: Tensor, first: Tensor | int, each: int = 1) -> Tensor:
        """Negatives of some rows, int64 ``[R, each]``, without waiting for the device.

        Args:
            seed: int64 ``[1]`` or ``[3]``, the step's.
            users: int64 ``[R]``.
            first: rows of the whole batch before these: ``rng.first_token(seed)`` where a row is a
                token, ``rng.first_sequence(seed)`` where it is a sequence.
            each: M, negatives a row.
        """
        row = torch.arange(users.shape[0], device=users.device) + first
        index = row[:, None] * each + torch.arange(each, device=users.device)
        word = rng.words(seed, index, rng.STREAM_NEGATIVE, 0)
        return self.nth(users[:, None], rng.below(word, self.counts[users][:, None]))
