"""What the backbone reads: item and position embeddings, added and normalised."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .. import ragged


def embedding(
    embedded: Tensor,
    offsets: Tensor,
    positions: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    places: Tensor | None = None,
) -> Tensor:
    """LayerNorm(item + position), before dropout; rows of capacity take position 0.

    Positions count back from the end of a history: its last item has position 0.

    Args:
        embedded: ``[N, D]``, the items' embeddings.
        offsets: int64 ``[B+1]``.
        positions: ``[L, D]``.
        norm_weight, norm_bias: ``[D]``.
        eps: LayerNorm's.
        places: int64 ``[N]``, the position of each token instead of its count from the end.

    Returns:
        ``[N, D]``.
    """
    if places is None:
        places = ragged.from_end(offsets, embedded.shape[0])
    x = embedded + F.embedding(places, positions)
    return F.layer_norm(x, (x.shape[1],), norm_weight, norm_bias, eps)
