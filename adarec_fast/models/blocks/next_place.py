"""Histories with a place behind them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ragged


def with_next(values: Tensor, offsets: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The last ``limit`` items of each history and a place behind them, without waiting for the
    device.

    Returns:
        Items int64 ``[N+B]``, of which those behind the last place are capacity; bool ``[N+B]``,
        True at the new places; offsets int64 ``[B+1]``.
    """
    tokens, batch = values.shape[0] + offsets.shape[0] - 1, offsets.shape[0] - 1
    kept = F.pad((ragged.lengths(offsets).clamp(max=limit) + 1).cumsum(0), (1, 0))
    owner, back = ragged.sequence_ids(kept, tokens), ragged.from_end(kept, tokens)
    behind = (back == 0) & (owner < batch)
    # The item that is `back` before the new place ends up to it; anything at capacity.
    source = torch.cat([offsets[1:], offsets[-1:]])[owner] - back
    items = values[source.clamp(min=0, max=values.shape[0] - 1)]
    return items.masked_fill(behind | (owner == batch), 0), behind, kept
