"""Jagged batches: many short sequences in one flat tensor, with no padding between them.

``values [N, ...]`` holds the tokens of all sequences, ``offsets [B+1]`` (int64, from 0, not
decreasing) where each begins. N may exceed ``offsets[B]``: the rows behind are capacity, which no
op reads or writes, so that a captured graph can serve batches of different token counts. Nothing
here reads a tensor on the host, except where the docstring says so.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Jagged(NamedTuple):
    """``values [N, ...]`` and ``offsets`` int64 ``[B+1]``."""

    values: Tensor
    offsets: Tensor


def lengths(offsets: Tensor) -> Tensor:
    """int64 ``[B]``."""
    return offsets[1:] - offsets[:-1]


def sequence_ids(offsets: Tensor, num_tokens: int) -> Tensor:
    """int64 ``[N]``: the sequence of each token; B for capacity rows behind ``offsets[B]``."""
    tokens = torch.arange(num_tokens, device=offsets.device)
    return torch.searchsorted(offsets[1:].contiguous(), tokens, right=True)


def positions(offsets: Tensor, num_tokens: int) -> Tensor:
    """int64 ``[N]``: place of each token in its sequence, from 0."""
    tokens = torch.arange(num_tokens, device=offsets.device)
    return tokens - offsets[sequence_ids(offsets, num_tokens)]


def from_end(offsets: Tensor, num_tokens: int) -> Tensor:
    """int64 ``[N]``: place of each token from the end of its sequence, 0 of its last one and at
    capacity."""
    ends = torch.cat([offsets[1:], offsets[-1:]])[sequence_ids(offsets, num_tokens)]
    return (ends - 1 - torch.arange(num_tokens, device=offsets.device)).clamp(min=0)


def last_tokens(offsets: Tensor) -> Tensor:
    """int64 ``[B]``: the last token of each sequence (of length >= 1)."""
    return offsets[1:] - 1


def padding_mask(offsets: Tensor, max_length: int) -> Tensor:
    """Bool ``[B, max_length]``: True at valid places (sequences begin at the left)."""
    return torch.arange(max_length, device=offsets.device) < lengths(offsets)[:, None]


def to_padded(values: Tensor, offsets: Tensor, max_length: int, *, dim: int = 0) -> Tensor:
    """Pad with zeros: ``[..., N, *rest] -> [..., B, max_length, *rest]``, N being axis ``dim``."""
    batch = offsets.numel() - 1
    num_tokens = values.shape[dim]
    sequence = sequence_ids(offsets, num_tokens)
    place = (torch.arange(num_tokens, device=offsets.device) - offsets[sequence]).clamp(
        max=max_length - 1
    )
    # Row B takes the capacity behind the last sequence and is cut off again.
    flat = sequence * max_length + place
    moved = values.movedim(dim, 0)
    padded = moved.new_zeros((batch + 1) * max_length, *moved.shape[1:])
    padded = padded.index_copy(0, flat, moved)[: batch * max_length]
    return padded.view(batch, max_length, *moved.shape[1:]).movedim((0, 1), (dim, dim + 1))


def from_padded(padded: Tensor, offsets: Tensor, num_tokens: int, *, dim: int = 0) -> Tensor:
    """Inverse of :func:`to_padded`: ``[..., B, L, *rest] -> [..., N, *rest]``.

    Capacity rows behind ``offsets[B]`` become zero.
    """
    max_length = padded.shape[dim + 1]
    sequence = sequence_ids(offsets, num_tokens)
    place = torch.arange(num_tokens, device=offsets.device) - offsets[sequence]
    flat = padded.movedim((dim, dim + 1), (0, 1)).flatten(0, 1)
    flat = torch.cat([flat, flat.new_zeros(1, *flat.shape[1:])])
    batch = offsets.numel() - 1
    index = torch.where(sequence < batch, sequence * max_length + place, batch * max_length)
    return flat[index].movedim(0, dim)


def row_of_tokens(rows: Tensor, offsets: Tensor, num_tokens: int, *, dim: int = 0) -> Tensor:
    """Spread one row a sequence to its tokens along ``dim``; zero for capacity rows."""
    pad_shape = list(rows.shape)
    pad_shape[dim] = 1
    padded = torch.cat([rows, rows.new_zeros(pad_shape)], dim)
    return padded.index_select(dim, sequence_ids(offsets, num_tokens))


def described(tensor: Tensor) -> str:
    """A tensor's dtype, shape and first value, for errors: ``torch.float32 [1, 2], row 0: 1.5``."""
    if tensor.layout != torch.strided:
        return f"a tensor of layout {tensor.layout}"
    text = f"{tensor.dtype} {list(tensor.shape)}"
    if tensor.numel() and not tensor.is_meta and tensor.dim():
        text += f", row 0: {tensor.flatten()[0].item()}"
    return text


def brief(value: object) -> str:
    """What a tensor is in a line of others: its type and shape; other things as they are."""
    if not isinstance(value, Tensor):
        return repr(value)
    if not value.dim() and type(value) is Tensor and not value.is_meta:
        return f"{value.item():.6g}"
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def check_offsets(offsets: Tensor, num_tokens: int, *, max_length: int | None = None) -> None:
    """Validate ``offsets`` against the number of tokens. Reads ``offsets`` on the host.

    Raises:
        ValueError: wrong dtype or shape, not from 0, decreasing, beyond the tokens, an empty
            sequence, or one longer than ``max_length``.
    """
    strided = offsets.layout == torch.strided
    if not strided or offsets.dtype != torch.int64 or offsets.dim() != 1 or offsets.numel() < 1:
        raise ValueError(f"offsets must be int64 [B+1], got {described(offsets)}")
    if num_tokens < 0 or int(offsets[0]) != 0:
        raise ValueError(f"offsets must begin at 0, got {int(offsets[0])}")
    sizes = lengths(offsets)
    if sizes.numel() == 0:
        return
    shortest, longest, end = int(sizes.min()), int(sizes.max()), int(offsets[-1])
    if shortest < 1:
        where = int((sizes < 1).nonzero()[0])
        raise ValueError(
            f"offsets: sequence {where} has length {shortest}; each needs at least one item"
        )
    if end > num_tokens:
        raise ValueError(f"offsets end at {end}, beyond the {num_tokens} tokens there are")
    if max_length is not None and longest > max_length:
        raise ValueError(f"a sequence has {longest} items, more than max_length={max_length}")


def are_offsets(offsets: Tensor, num_tokens: int) -> Tensor:
    """Whether ``[B+1]`` offsets begin at 0, rise by at least 1 and end within ``num_tokens``, as
    a bool scalar of tensor operations alone."""
    return (offsets[0] == 0) & (offsets[-1] <= num_tokens) & (offsets.diff() >= 1).all()


def from_padded_ids(item_ids: Tensor, sequence_lengths: Tensor | None = None) -> Jagged:
    """Pack padded ids. Reads them on the host once, at the border of the model.

    Args:
        item_ids: int64 ``[B, L]``, padded with 0 on the left or on the right.
        sequence_lengths: optional int64 ``[B]``; must agree with the padding.

    Raises:
        ValueError: wrong shape or dtype, an empty row, a 0 inside a history, or lengths that
            disagree with the padding.
    """
    strided = item_ids.layout == torch.strided
    if not strided or item_ids.dim() != 2 or item_ids.dtype != torch.int64:
        raise ValueError(
            f"item_ids must be int64 [B, L] or a pair (values, offsets), got {described(item_ids)}"
        )
    valid = item_ids != 0
    counts = valid.sum(1)
    if sequence_lengths is not None:
        if sequence_lengths.shape != counts.shape or sequence_lengths.dtype != torch.int64:
            raise ValueError(
                f"lengths must be int64 [{counts.numel()}], got {sequence_lengths.dtype} "
                f"{list(sequence_lengths.shape)}"
            )
        wrong = (counts != sequence_lengths).nonzero()
        if wrong.numel():
            row = int(wrong[0])
            raise ValueError(
                f"lengths[{row}]={int(sequence_lengths[row])} disagrees with the padding: "
                f"row {row} has {int(counts[row])} items"
            )
    if counts.numel() and int(counts.min()) < 1:
        raise ValueError(f"item_ids: row {int(counts.argmin())} has no item")
    rises = runs_of_items(item_ids)
    if rises.numel() and int(rises.max()) > 1:
        raise ValueError(
            f"item_ids: row {int(rises.argmax())} has padding (0) between items; "
            f"pad on the left or on the right only"
        )
    offsets = torch.zeros(item_ids.shape[0] + 1, dtype=torch.int64, device=item_ids.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    return Jagged(item_ids[valid], offsets)


def runs_of_items(item_ids: Tensor) -> Tensor:
    """How many runs of items a row of padded ids ``[B, L]`` has, int64 ``[B]``; 1 in a whole one.
    Of tensor operations alone: a run begins where padding, or nothing, is followed by an item."""
    valid = item_ids != 0
    return (valid[:, 1:] & ~valid[:, :-1]).sum(1) + valid[:, :1].sum(1)


def packed_in_place(item_ids: Tensor, limit: int | None = None) -> Jagged:
    """Pack padded ids without reading one on the host, and without checking any.

    Args:
        item_ids: int64 ``[B, L]``, padded with 0 on either side.
        limit: keep the last ``limit`` items of a row, or all.

    Returns:
        Values ``[B L]``, of which those behind the last token are capacity, and offsets.
    """
    kept = item_ids != 0
    if limit is not None:
        kept &= kept.flip(1).cumsum(1).flip(1) <= limit
    offsets = F.pad(kept.sum(1).cumsum(0), (1, 0))
    order = torch.argsort((~kept).flatten().to(torch.int8), stable=True)
    return Jagged(item_ids.flatten()[order], offsets)


def reached_levels(depth: Tensor, levels: int) -> Tensor:
    """Bool ``[levels, B]``: True where level k <= depth of the sequence."""
    return torch.arange(levels, device=depth.device)[:, None] <= depth


def mask_levels(x: Tensor, offsets: Tensor, depth: Tensor | None) -> Tensor:
    """Zero what was never written: levels beyond a sequence's depth, and capacity rows.

    Args:
        x: ``[K, N, D]``.
        offsets: int64 ``[B+1]``.
        depth: int64 ``[B]``, or None where every level of every sequence exists.
    """
    num_tokens = x.shape[1]
    if depth is None:
        real = torch.arange(num_tokens, device=x.device) < offsets[-1]
        return torch.where(real[:, None], x, torch.zeros_like(x))
    reached = reached_levels(depth, x.shape[0])
    real = row_of_tokens(reached, offsets, num_tokens, dim=1)
    return torch.where(real[..., None], x, torch.zeros_like(x))


def keep_last(values: Tensor, offsets: Tensor, limit: int) -> Jagged:
    """The last ``limit`` rows of every sequence. Reads the new token count on the host."""
    sizes = lengths(offsets).clamp(max=limit)
    kept = torch.zeros_like(offsets)
    torch.cumsum(sizes, 0, out=kept[1:])
    total = int(kept[-1])
    owner = torch.repeat_interleave(
        torch.arange(sizes.numel(), device=offsets.device), sizes, output_size=total
    )
    place = torch.arange(total, device=offsets.device) - kept[owner]
    return Jagged(values[(offsets[1:] - sizes)[owner] + place], kept)


def keep_last_in_place(values: Tensor, offsets: Tensor, limit: int) -> Jagged:
    """The last ``limit`` rows of every sequence, without reading one on the host: as many places
    as before, those behind the last row are capacity."""
    sizes = lengths(offsets).clamp(max=limit)
    kept = F.pad(sizes.cumsum(0), (1, 0))
    shift = F.pad(offsets[1:] - sizes - kept[:-1], (0, 1))
    place = torch.arange(values.shape[0], device=values.device)
    source = place + shift[sequence_ids(kept, values.shape[0])]
    return Jagged(values[source.clamp(max=values.shape[0] - 1)], kept)


def rows(jagged: Jagged, start: int, stop: int) -> Jagged:
    """The sequences ``start .. stop - 1`` of a batch without capacity. Reads on the host."""
    low, high = jagged.offsets[[start, stop]].tolist()
    return Jagged(jagged.values[low:high], jagged.offsets[start : stop + 1] - low)


def joined(first: Jagged, second: Jagged) -> Jagged:
    """Each sequence of the first batch with the second's behind it; neither has capacity."""
    offsets = first.offsets + second.offsets
    values = first.values.new_empty(first.values.shape[0] + second.values.shape[0])
    for (source, own), before in ((first, second.offsets[:-1]), (second, first.offsets[1:])):
        sequence = sequence_ids(own, source.shape[0])
        place = torch.arange(source.shape[0], device=source.device) + before[sequence]
        values[place] = source
    return Jagged(values, offsets)
