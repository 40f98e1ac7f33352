"""The encoder in ATen's own ops alone, on padded histories of any number and length, for export.

It is the reference's mathematics with the encoder's weights; nothing is drawn at random.
"""

from __future__ import annotations

from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...reference.encoder_layer import encoder_layer
from ...reference.local_path import local_path
from .local_path import LocalPath
from .sasrec import SASRecEncoder
from .transformer_layer import TransformerLayer


def with_spare_column(item_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ids ``[B, L+1]``, which of them are items, and lengths ``[B]``, of ids ``[B, L]``.

    An axis that may be 1 makes torch choose between two matrix products while it traces; a column
    of padding spares the choice.
    """
    item_ids = F.pad(item_ids, (0, 1))
    valid = item_ids != 0
    return item_ids, valid, valid.sum(1)


def encode(
    encoder: SASRecEncoder, items: nn.Embedding, item_ids: Tensor, valid: Tensor, lengths: Tensor
) -> Tensor:
    """E ``[B, L, D]``."""
    place = torch.arange(item_ids.shape[1], device=item_ids.device)
    x = items(item_ids)
    x = x + encoder.position((lengths[:, None] - 1 - place).clamp(min=0))
    x = F.layer_norm(x, x.shape[-1:], encoder.norm.weight, encoder.norm.bias, encoder.eps)
    for path, each in zip_longest(encoder.local_paths, encoder.layers):
        assert isinstance(each, TransformerLayer)
        if isinstance(path, LocalPath):
            x = local_path(x, *path.weights(), path.eps, 0.0, None)
        x = layer(each, x, valid)
    return x


def layer(module: TransformerLayer, x: Tensor, valid: Tensor) -> Tensor:
    """One layer of ``[..., L, D]``, without dropout."""
    return encoder_layer(
        x, valid, *module.weights(), module.heads, module.eps, 0.0, 0.0, None, None, None,
        module.causal,
    )


def at(x: Tensor, place: Tensor) -> Tensor:
    """``[K, B, D]``: what ``x [K, B, L, D]`` holds at int64 ``place [B]`` of each sequence."""
    index = place[None, :, None, None].expand(x.shape[0], -1, 1, x.shape[-1])
    return x.gather(2, index)[:, :, 0]
