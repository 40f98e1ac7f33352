"""BERT4Rec's inference graph in ATen's own ops alone, for export."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import UserGraph
from ..encoders.graph import at, layer, with_spare_column
from ..encoders.transformer_layer import TransformerLayer
from ..evaluating import evaluating


class BERT4RecGraph(UserGraph):
    """Users of padded histories; the spare column has room for the mask.

    Args:
        model: a :class:`BERT4Rec`, in whatever mode.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = evaluating(model)

    def forward(self, item_ids: Tensor) -> Tensor:
        model, encoder = self.model, self.model.backbone
        item_ids, _, lengths = with_spare_column(item_ids)
        kept = lengths.clamp(max=model.config.max_length - 1)[:, None]
        place = torch.arange(item_ids.shape[1], device=item_ids.device)
        # The last items at the left, the mask behind them.
        source = (lengths[:, None] - kept + place).clamp(max=item_ids.shape[1] - 1)
        known = model.item_embedding(item_ids.gather(1, source))
        x = torch.where((place == kept)[..., None], model.mask, known)
        back = (kept - place).clamp(min=0)
        if model.config.positions == "left":
            back = place.clamp(max=model.config.max_length - 1).expand_as(source)
        x = x + encoder.position(back)
        x = F.layer_norm(x, x.shape[-1:], encoder.norm.weight, encoder.norm.bias, encoder.eps)
        for each in encoder.layers:
            assert isinstance(each, TransformerLayer)
            x = layer(each, x, place <= kept)
        users: Tensor = model._users(at(x[None], kept[:, 0])[0])
        return users

    def settled(self, values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`UserGraph.settled`; nothing here is decided by rounding."""
        users = offsets.shape[0] - 1
        clear = torch.ones(users, dtype=torch.bool, device=values.device)
        return self.model.represent(values, offsets), clear
