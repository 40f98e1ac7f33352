"""From items to E, by whatever encoder a model has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from ... import ops
from ..featured import FeaturedItems
from .foreign import ForeignBackbone
from .sasrec import SASRecEncoder

if TYPE_CHECKING:
    from ...distributed.items import ShardedItems


def encode(
    backbone: SASRecEncoder | ForeignBackbone,
    items: nn.Embedding | ShardedItems,
    values: Tensor,
    offsets: Tensor,
    seed: Tensor | None,
    backend: str,
    places: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """E ``[N, D]``, and the item table for the loss where that is not the parameter itself.

    Args:
        backbone: the encoder.
        items: the item table ``[V+1, D]``.
        values: int64 ``[N]``, item ids.
        offsets: int64 ``[B+1]``.
        seed: of dropout; None draws none.
        backend: who runs the ops.
        places: int64 ``[N]``, positions of the tokens instead of their counts from the end; for
            the built-in encoder alone.
    """
    made: Tensor | None = None
    if isinstance(items, FeaturedItems):
        # Once a step, for the histories and the loss.
        made = items.weight if seed is None else items.composed(seed)
    if (
        places is None
        and isinstance(backbone, SASRecEncoder)
        and isinstance(items, nn.Embedding)
    ):
        table = items.weight if made is None else made
        if ops.has_kernel("embedding", backend, values.device.type, table.dtype):
            return backbone.of_items(values, table, offsets, seed=seed, backend=backend)
    embedded = items(values) if made is None else F.embedding(values, made)
    if isinstance(backbone, ForeignBackbone):
        return backbone(values, embedded, offsets), made
    return backbone(embedded, offsets, seed=seed, backend=backend, places=places), made
