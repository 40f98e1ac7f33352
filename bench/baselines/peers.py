"""Comparison systems in plain PyTorch on padded tensors, as their public code computes them.

Parameters are the models' own, used and not copied; dropout is torch's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adarec_fast import ragged
from adarec_fast.data import Batch
from adarec_fast.models.bert4rec.cloze import hidden_counts
from adarec_fast.models.bert4rec.model import BERT4Rec
from adarec_fast.models.caser.model import Caser
from adarec_fast.models.encoders.transformer_layer import TransformerLayer


class PaddedBERT4Rec(nn.Module):
    """Histories padded on the right to the longest that the model reads, as in its public code."""

    def __init__(self, model: BERT4Rec) -> None:
        super().__init__()
        self.model = model

    def _layer(self, layer: TransformerLayer, x: Tensor, seen: Tensor) -> Tensor:
        w, size, training = layer.weights(), x.shape[-1], self.training
        batch, length, _ = x.shape
        q, k, v = (
            F.linear(x, w.qkv_w, w.qkv_b)
            .view(batch, length, 3, layer.heads, -1)
            .permute(2, 0, 3, 1, 4)
        )
        context = F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, dropout_p=layer.attention_dropout if training else 0.0
        )
        context = context.transpose(1, 2).flatten(2)
        projected = F.linear(context, w.out_w, w.out_b)
        projected = F.dropout(projected, layer.hidden_dropout, training)
        x = F.layer_norm(x + projected, (size,), w.ln1_w, w.ln1_b, layer.eps)
        inner = F.linear(F.gelu(F.linear(x, w.ff1_w, w.ff1_b)), w.ff2_w, w.ff2_b)
        inner = F.dropout(inner, layer.hidden_dropout, training)
        return F.layer_norm(x + inner, (size,), w.ln2_w, w.ln2_b, layer.eps)

    def forward(self, batch: Batch, hidden: Tensor | None = None) -> Tensor:
        """The loss of a cloze; ``hidden`` bool ``[N]``, or None to draw one."""
        model, encoder = self.model, self.model.backbone
        length = model.config.max_length
        ids = ragged.to_padded(batch.item_ids, batch.offsets, length)
        valid = ids > 0
        if hidden is None:
            rank = torch.rand(ids.shape, device=ids.device).masked_fill(~valid, 2.0)
            rank = rank.argsort(1).argsort(1)
            counts = hidden_counts(ragged.lengths(batch.offsets), model.config.mask_share)
            covered = rank < counts[:, None]
        else:
            covered = ragged.to_padded(hidden, batch.offsets, length)
        x = torch.where(covered[..., None], model.mask, model.item_embedding(ids))
        x = x + encoder.position.weight
        x = F.layer_norm(x, x.shape[-1:], encoder.norm.weight, encoder.norm.bias, encoder.eps)
        x = F.dropout(x, encoder.dropout, self.training)
        for layer in encoder.layers:
            assert isinstance(layer, TransformerLayer)
            x = self._layer(layer, x, valid[:, None, None])
        u = model.transform_norm(F.gelu(model.transform(x[covered])))
        logits = F.linear(u, model.item_embedding.weight, model.item_bias)[:, 1:]
        return F.cross_entropy(logits, ids[covered] - 1)


class ConvolvedCaser(nn.Module):
    """Convolutions by torch's own, a filter's height after the other, as in its public code."""

    def __init__(self, model: Caser) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """The cross entropy over all items."""
        model, length = self.model, self.model.config.max_length
        ids = ragged.to_padded(*ragged.keep_last(batch.item_ids, batch.offsets, length), length)
        # To the right, as the windows of its public code stand.
        place = torch.arange(length, device=ids.device) - (length - (ids > 0).sum(1)[:, None])
        ids = torch.where(place >= 0, ids.gather(1, place.clamp(min=0)), 0)
        image = model.item_embedding(ids)[:, None]
        down = model.vertical.weight[:, None, :, None]
        parts = [F.conv2d(image, down, model.vertical.bias).flatten(1)]
        for height, part in enumerate(model.horizontal, start=1):
            assert isinstance(part, nn.Linear)
            across = part.weight.view(part.out_features, 1, height, -1)
            met = F.relu(F.conv2d(image, across, part.bias).squeeze(3))
            parts.append(F.max_pool1d(met, met.shape[2]).squeeze(2))
        features = F.dropout(torch.cat(parts, 1), model.config.dropout, self.training)
        x = F.relu(model.hidden(features))
        logits = F.linear(x, model.output, model.output_bias)[:, 1:]
        return F.cross_entropy(logits, batch.targets - 1)
