"""The model's border: histories come in padded, packed or as lists, and leave packed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import ragged

History = Tensor | tuple[Tensor, Tensor]


def pack_lists(histories: Sequence[Sequence[int]], device: torch.device) -> ragged.Jagged:
    """Lists of item ids as a jagged pair on a device."""
    sizes = torch.tensor([0] + [len(history) for history in histories])
    flat = [item for history in histories for item in history]
    values = torch.tensor(flat, dtype=torch.int64, device=device)
    return ragged.Jagged(values, sizes.cumsum(0).to(device))


def check_histories(
    item_ids: History, lengths: Tensor | None, *, num_items: int, crop: int | None
) -> ragged.Jagged:
    """Packed histories, checked, each cut to its last ``crop`` items.

    Reads the input on the host. A graph under compilation trusts it instead, and of a padded one
    keeps all B L places, those behind the last item as capacity; a jagged one is not cut.

    Args:
        item_ids: int64 ``[B, L]`` padded with 0 on one side, or a pair (values ``[N]``,
            offsets ``[B+1]``).
        lengths: optional int64 ``[B]`` for the padded form.
        num_items: ids are 1..num_items.
        crop: longest history, or None to keep all.

    Raises:
        ValueError: a shape, dtype, length or id that does not fit, naming the argument.
    """
    if lengths is not None and not isinstance(item_ids, Tensor):
        raise ValueError("lengths goes with padded item_ids; the offsets already say it")
    if torch.compiler.is_compiling():
        if isinstance(item_ids, Tensor):
            return ragged.packed_in_place(item_ids, crop)
        return ragged.Jagged(*item_ids)
    if isinstance(item_ids, Tensor):
        values, offsets = ragged.from_padded_ids(item_ids, lengths)
    else:
        values, offsets = item_ids
    if values.dtype != torch.int64 or values.dim() != 1:
        raise ValueError(f"item ids must be int64 [N], got {values.dtype} {list(values.shape)}")
    ragged.check_offsets(offsets, values.shape[0])
    end = int(offsets[-1])
    if end:
        low, high = int(values[:end].min()), int(values[:end].max())
        if low < 1 or high > num_items:
            wrong = low if low < 1 else high
            raise ValueError(f"item id {wrong} is outside the catalogue, 1..{num_items}")
    if crop is not None and end and int(ragged.lengths(offsets).max()) > crop:
        return ragged.keep_last(values, offsets, crop)
    return ragged.Jagged(values, offsets)
