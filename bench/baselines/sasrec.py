"""SASRec in plain PyTorch on packed tokens, as a user would write it: a peer's epoch.

Everything but attention runs on the tokens that exist. For attention a batch is padded on the right
to its longest history, where the causal mask keeps padding from ever being a key of a real token,
so that torch's own ``scaled_dot_product_attention`` takes it. Dropout is torch's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adarec_fast import ADARec, ragged
from adarec_fast.models.encoders.sasrec import SASRecEncoder
from adarec_fast.models.encoders.transformer_layer import TransformerLayer

from .packed import cross_entropy


class PackedSASRec(nn.Module):
    """The backbone of a model and its item embeddings, trained alone.

    Args:
        model: an ADARec with the built-in backbone and ``supervision="all"``, whose parameters
            are used and not copied.

    Raises:
        ValueError: another backbone or supervision.
    """

    def __init__(self, model: ADARec) -> None:
        super().__init__()
        if not isinstance(model.backbone, SASRecEncoder):
            raise ValueError("backbone: the baseline is written for the built-in SASRec encoder")
        if model.config.supervision != "all":
            raise ValueError(
                f"supervision={model.config.supervision!r}: the baseline is written for 'all'"
            )
        self.items, self.encoder = model.item_embedding, model.backbone

    def _layer(
        self, layer: TransformerLayer, x: Tensor, rows: Tensor, batch: int, longest: int
    ) -> Tensor:
        """A post-LN layer on ``x [N, D]``; ``rows [N]`` are the tokens' places in ``[B * L]``."""
        w, size, training = layer.weights(), x.shape[1], self.training
        padded = x.new_zeros(batch * longest, 3 * size)
        padded = padded.index_copy(0, rows, F.linear(x, w.qkv_w, w.qkv_b))
        q, k, v = padded.view(batch, longest, 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(
            q, k, v, dropout_p=layer.attention_dropout if training else 0.0, is_causal=True
        )
        context = context.transpose(1, 2).reshape(batch * longest, size)[rows]
        projected = F.dropout(
            F.linear(context, w.out_w, w.out_b), layer.hidden_dropout, training
        )
        middle = F.layer_norm(x + projected, (size,), w.ln1_w, w.ln1_b, layer.eps)
        hidden = F.linear(F.gelu(F.linear(middle, w.ff1_w, w.ff1_b)), w.ff2_w, w.ff2_b)
        hidden = F.dropout(hidden, layer.hidden_dropout, training)
        return F.layer_norm(middle + hidden, (size,), w.ln2_w, w.ln2_b, layer.eps)

    def forward(
        self, item_ids: Tensor, offsets: Tensor, targets: Tensor, longest: int
    ) -> Tensor:
        """Full-catalogue cross entropy, every position predicting its next item.

        Args:
            item_ids, targets: int64 ``[N]``.
            offsets: int64 ``[B+1]``.
            longest: of the batch's histories.
        """
        encoder, tokens = self.encoder, item_ids.shape[0]
        sequence = ragged.sequence_ids(offsets, tokens)
        place = torch.arange(tokens, device=item_ids.device)
        rows = sequence * longest + place - offsets[sequence]
        x = self.items(item_ids) + encoder.position(offsets[1:][sequence] - 1 - place)
        x = F.layer_norm(x, x.shape[-1:], encoder.norm.weight, encoder.norm.bias, encoder.eps)
        x = F.dropout(x, encoder.dropout, self.training)
        for layer in encoder.layers:
            assert isinstance(layer, TransformerLayer)
            x = self._layer(layer, x, rows, offsets.shape[0] - 1, longest)
        return cross_entropy(x, self.items.weight, targets)
