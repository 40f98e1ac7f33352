"""SASRec's inference graph in ATen's own ops alone, for export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..base import UserGraph
from ..encoders.graph import at, encode, with_spare_column
from ..evaluating import evaluating

if TYPE_CHECKING:
    from ..encoders.sasrec import SASRecEncoder


class SASRecGraph(UserGraph):
    """Users of padded histories.

    Args:
        model: a :class:`SASRec`, in whatever mode.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = evaluating(model)
        self.encoder: SASRecEncoder = self.model.backbone

    def forward(self, item_ids: Tensor) -> Tensor:
        item_ids, valid, lengths = with_spare_column(item_ids)
        embeddings = encode(self.encoder, self.model.item_embedding, item_ids, valid, lengths)
        rows = at(embeddings[None], lengths - 1)[0]
        users: Tensor = self.model.ranking_vectors(rows)
        return users

    def settled(self, values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`UserGraph.settled`; nothing here is decided by rounding."""
        users = offsets.shape[0] - 1
        clear = torch.ones(users, dtype=torch.bool, device=values.device)
        return self.model.represent(values, offsets), clear
