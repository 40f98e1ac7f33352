"""Targets that share their weight with the items that follow them in other histories.

Where a person took one of several things that often come together, the others were nearly right. A
share lambda of the target t goes to the items that t's :mod:`.transitions` lead to, in proportion:

    q = (1 - lambda) [j = t] + lambda R[t, j] / sum_j R[t, j]

The cross entropy of q is that of t and lambda (h e_t - h sum_j R[t, j] e_j / sum_j R[t, j]): one
more product a row, no second pass over the catalogue.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ragged
from ..ops.linear_cross_entropy import target_lead
from .transitions import Recipe, transitions

NEIGHBOURS = 50


class SoftTargets(nn.Module):
    """The items that each target shares its weight with; buffers that ``state_dict`` leaves out.

    Args:
        values: int64 ``[N]``, the training histories' items, on the CPU.
        offsets: int64 ``[U+1]``.
        num_items: V.
        neighbours: M, items that a target shares with, those of the largest weights.

    Attributes:
        items: int64 ``[V+1, M]``; an item that nothing is known of has itself.
        shares: float32 ``[V+1, M]``, rows that sum to 1.
    """

    items: Tensor
    shares: Tensor

    def __init__(
        self, values: Tensor, offsets: Tensor, num_items: int, neighbours: int = NEIGHBOURS
    ) -> None:
        super().__init__()
        found = transitions(values, offsets, num_items, Recipe(), neighbours)
        width = max(1, int(found.rows.diff().max()))
        row = ragged.sequence_ids(found.rows, found.items.shape[0])
        place = torch.arange(row.shape[0]) - found.rows[row]
        items = torch.arange(num_items + 1)[:, None].repeat(1, width)
        shares = torch.zeros(num_items + 1, width, dtype=torch.float32)
        items[row, place] = found.items.long()
        shares[row, place] = found.weights
        shares[shares.sum(1) == 0, 0] = 1.0
        self.register_buffer("items", items, persistent=False)
        self.register_buffer("shares", shares / shares.sum(1, keepdim=True), persistent=False)

    def lead(self, hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        """h e_t - h sum_j R[t, j] e_j / sum_j R[t, j], the mean over the rows.

        Args:
            hidden: ``[R, D]``.
            table: ``[V+1, D]``.
            targets: int64 ``[R]``; rows of target 0 are left out.
        """
        known = targets.clamp(min=1)
        shares = self.shares[known].to(table.dtype)
        others = F.embedding_bag(
            self.items[known], table, mode="sum", per_sample_weights=shares
        )
        return target_lead(hidden, F.embedding(known, table), others, targets)
