"""Caser's inference graph in ATen's own ops alone, for export."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import UserGraph
from ..encoders.graph import with_spare_column
from ..evaluating import evaluating


class CaserGraph(UserGraph):
    """Users of padded histories, of whom nothing else is known.

    Args:
        model: a :class:`Caser`, in whatever mode.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = evaluating(model)

    def forward(self, item_ids: Tensor) -> Tensor:
        length = self.model.config.max_length
        item_ids, _, lengths = with_spare_column(item_ids)
        place = torch.arange(length, device=item_ids.device) + lengths[:, None] - length
        # The last items at the right; those that are missing take the column of padding in front.
        last = F.pad(item_ids, (1, 0)).gather(1, (place + 1).clamp(min=0))
        users: Tensor = self.model._of_last(last, None, None)
        return users

    def settled(self, values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`UserGraph.settled`; nothing here is decided by rounding."""
        users = offsets.shape[0] - 1
        clear = torch.ones(users, dtype=torch.bool, device=values.device)
        return self.model.represent(values, offsets), clear
