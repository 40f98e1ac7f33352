"""SASRec with its own loss, ICLRec and ELCRec in plain PyTorch, padded, as their public code is.

Views and negatives are given, drawn and padded beforehand, which public code does for every step in
Python. Padding takes no part, as in ours, so that both compute the same numbers. Dropout is
torch's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adarec_fast import ragged, rng
from adarec_fast.data import Batch
from adarec_fast.models.blocks.augmentation import Views, augmented
from adarec_fast.models.elcrec.losses import LearnedIntents
from adarec_fast.models.encoders.transformer_layer import TransformerLayer
from adarec_fast.models.iclrec.losses import Contrast, IntentContrast


class Padded(NamedTuple):
    """A batch ``[B, L]`` padded on the right with 0: items, positions from the end, what is there,
    targets, negatives; and two or four views of each history, ``[B C, L]``."""

    items: Tensor
    places: Tensor
    there: Tensor
    targets: Tensor
    negatives: Tensor
    views: tuple[Tensor, Tensor, Tensor] | None
    each: int


def padded(
    item_ids: Tensor, offsets: Tensor, targets: Tensor, negatives: Tensor, views: Views | None,
    longest: int,
) -> Padded:
    """From the packed form."""

    def wide(values: Tensor, bounds: Tensor = offsets) -> Tensor:
        return ragged.to_padded(values, bounds, longest)

    made = None
    if views is not None:
        made = (
            wide(views.values, views.offsets), wide(views.places, views.offsets),
            ragged.padding_mask(views.offsets, longest),
        )  # fmt: skip
    return Padded(
        wide(item_ids), wide(ragged.from_end(offsets, item_ids.shape[0])),
        ragged.padding_mask(offsets, longest), wide(targets), wide(negatives[:, 0]), made,
        0 if views is None else views.each,
    )  # fmt: skip


class PaddedSystem(nn.Module):
    """A system's losses on padded batches, with the parameters of a model of ours.

    Args:
        model: a SASRec, ICLRec or ELCRec with ``loss="original"``, used and not copied.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def given(self, batch: Batch, exact: bool = False) -> Any:
        """What a step of the model would read and draw for the batch now."""
        model, views = self.model, None
        draws = rng.at_place(model.noise_seed)
        if isinstance(model.auxiliary, Contrast):
            views = augmented(
                batch.item_ids, batch.offsets, draws, (0, 1, 0, 1), model.auxiliary.ratios
            )
        return padded(
            batch.item_ids, batch.offsets, batch.targets, model._drawn(batch, draws), views,
            model.config.max_length,
        )

    def _layer(self, layer: TransformerLayer, x: Tensor, forbidden: Tensor) -> Tensor:
        w, (batch, longest, size) = layer.weights(), x.shape
        q, k, v = (
            part.view(batch, longest, layer.heads, -1).transpose(1, 2)
            for part in F.linear(x, w.qkv_w, w.qkv_b).chunk(3, -1)
        )
        scores = (q @ k.transpose(-1, -2)) / (size // layer.heads) ** 0.5
        shares = scores.masked_fill(forbidden, -10_000.0).softmax(-1)
        shares = F.dropout(shares, layer.attention_dropout, self.training)
        context = (shares @ v).transpose(1, 2).reshape(batch, longest, size)
        projected = F.dropout(
            F.linear(context, w.out_w, w.out_b), layer.hidden_dropout, self.training
        )
        middle = F.layer_norm(x + projected, (size,), w.ln1_w, w.ln1_b, layer.eps)
        hidden = F.linear(F.gelu(F.linear(middle, w.ff1_w, w.ff1_b)), w.ff2_w, w.ff2_b)
        hidden = F.dropout(hidden, layer.hidden_dropout, self.training)
        return F.layer_norm(middle + hidden, (size,), w.ln2_w, w.ln2_b, layer.eps)

    def _encode(self, items: Tensor, places: Tensor, there: Tensor) -> Tensor:
        return self._through(self.model.item_embedding(items), places, there)

    def _through(self, x: Tensor, places: Tensor, there: Tensor) -> Tensor:
        """E ``[B, L, D]`` of items' vectors."""
        encoder: Any = self.model.backbone
        x = x + encoder.position(places)
        x = F.layer_norm(x, x.shape[-1:], encoder.norm.weight, encoder.norm.bias, encoder.eps)
        x = F.dropout(x, encoder.dropout, self.training)
        longest = x.shape[1]
        later = torch.ones(longest, longest, dtype=torch.bool, device=x.device).triu(1)
        forbidden = later | ~there[:, None, None]
        for layer in encoder.layers:
            x = self._layer(layer, x, forbidden)
        return x

    def forward(self, batch: Any) -> Tensor:
        """The total loss."""
        x = self._encode(batch.items, batch.places, batch.there)
        table, counted = self.model.item_embedding.weight, batch.targets > 0
        up = (x * table[batch.targets]).sum(-1)
        down = (x * table[batch.negatives]).sum(-1)
        total = (F.softplus(-up) + F.softplus(down))[counted].mean()
        beside = self.model.auxiliary
        if beside is None or batch.views is None:
            return total
        users = batch.items.shape[0]
        items, places, there = (v.view(users, batch.each, -1) for v in batch.views)
        first = self._encode(*(v[:, :2].flatten(0, 1) for v in (items, places, there)))
        again = self._encode(*(v[:, 2:].flatten(0, 1) for v in (items, places, there)))
        query = _mean(x, batch.there)
        means = _mean(again, there[:, 2:].flatten(0, 1)).view(users, 2, -1)
        if isinstance(beside, IntentContrast):
            raw, query = beside.centroids, query.detach()
            intents = F.normalize(raw, dim=1)[torch.cdist(query, raw).argmin(1)]
        else:
            assert isinstance(beside, LearnedIntents)
            own = beside.centres[torch.cdist(first.detach(), beside.centres.detach()).argmin(-1)]
            first = torch.cat([first, own], -1) if beside.concatenates else first + own
            query = F.normalize(query, dim=-1)
            apart = torch.cdist(beside.centres, beside.centres).square().mean()
            cluster = torch.cdist(query, beside.centres).square().mean() - apart
            total = total + beside.weights["cluster"] * cluster
            intents = beside.centres[torch.cdist(query, beside.centres).argmin(1)]
        flat = there[:, :2].flatten(0, 1)
        sequence = pairs_loss(_by_place(first, places[:, :2].flatten(0, 1), flat).flatten(1))
        intent = sum(
            pairs_loss(torch.stack([means[:, view], intents], 1).flatten(0, 1)) for view in range(2)
        ) / 2
        return total + beside.weights["sequence"] * sequence + beside.weights["intent"] * intent


def _by_place(x: Tensor, places: Tensor, there: Tensor) -> Tensor:
    """Vectors ``[S, L, D]`` by position from the end, 0 where there is none."""
    row = torch.arange(x.shape[0], device=x.device)[:, None].expand_as(places)
    return torch.zeros_like(x).index_put((row[there], places[there]), x[there])


def _mean(x: Tensor, there: Tensor) -> Tensor:
    return (x * there[..., None]).sum(1) / there.sum(1, keepdim=True)


def pairs_loss(z: Tensor) -> Tensor:
    """NT-Xent of rows 2i and 2i + 1."""
    logits = z @ z.T
    own = torch.eye(z.shape[0], dtype=torch.bool, device=z.device)
    partner = torch.arange(z.shape[0], device=z.device) ^ 1
    return F.cross_entropy(logits.masked_fill(own, float("-inf")), partner)
