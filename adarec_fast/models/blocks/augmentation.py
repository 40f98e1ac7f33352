"""Views of a history by CL4SRec's operators (Xie et al., ICDE 2022), as ICLRec's code has them.

Each view picks one of three operators, each as likely:

* crop: int(crop n) consecutive items, at least one;
* mask: int(mask n) items become padding. Padding is a key for nobody, so they are left out, and the
  others keep their positions;
* reorder: int(reorder n) consecutive items are shuffled.

Where a window has items at all, it begins at one of 0 .. n - m - 1, so that the last item is never
in it. A crop of nothing keeps one random item. Histories are those of the batch, already cut to
``max_length``; the public code cuts afterwards, which differs for longer ones alone.

IOCRec's public code has them otherwise (``mask_id``): a masked item becomes a token that is read
like any other, and windows begin at one of 0 .. n - m, so that the last item may be in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ragged, rng

CROP, MASK, REORDER = range(3)


class Ratios(NamedTuple):
    """Shares of a history that an operator takes."""

    crop: float = 0.2
    mask: float = 0.7
    reorder: float = 0.2


class Views(NamedTuple):
    """C views of each of B histories, those of one history side by side.

    Attributes:
        values: int64 ``[M]``, items; on a GPU M is C N, and what lies behind the last is capacity.
        offsets: int64 ``[B C + 1]``; view c of history b is sequence b C + c.
        places: int64 ``[M]``, positions from the end; a masked item leaves its own unused.
        each: C.
    """

    values: Tensor
    offsets: Tensor
    places: Tensor
    each: int


def counts(lengths: Tensor, ratio: float) -> Tensor:
    """int(ratio n) as Python's double arithmetic gives it, int64."""
    return (lengths.double() * ratio).long()


def augmented(
    values: Tensor, offsets: Tensor, draws: Tensor, levels: Sequence[int], ratios: Ratios,
    mask_id: int | None = None,
) -> Views:
    """Views of packed histories, without waiting for a GPU.

    Args:
        values: int64 ``[N]``.
        offsets: int64 ``[B+1]``, no history empty.
        draws: int64 ``[3]``, a step's seed at the place of these histories.
        levels: the draw that each of C views is made of; equal ones give equal views.
        ratios: of the operators.
        mask_id: what stands for a masked item, with windows as IOCRec's code has them; None: it is
            left out.
    """
    tokens, batch, views = values.shape[0], offsets.shape[0] - 1, len(levels)
    sequence = torch.arange(batch, device=values.device) + rng.first_sequence(draws)
    size = ragged.lengths(offsets)[:, None]
    kind, window, start = _chosen(draws, sequence, size, levels, ratios, mask_id is not None)

    # From here on everything is [N, C]; tokens of capacity belong to no history and are not kept.
    owner = ragged.sequence_ids(offsets, tokens)
    real, owner = owner < batch, owner.clamp(max=max(batch - 1, 0))
    place = (torch.arange(tokens, device=values.device) - offsets[owner])[:, None]
    kind_of, window_of, start_of = kind[owner], window[owner], start[owner]
    inside = (place >= start_of) & (place < start_of + window_of)
    # Tokens of one bucket end up in random order: those of a window, or all of a masked view.
    bucket = torch.where((kind_of == REORDER) & inside, start_of, place)
    bucket = torch.where(kind_of == MASK, 0, bucket)
    bucket = torch.where(real[:, None], bucket, place)
    rank = random_ranks(draws, offsets[owner], bucket, levels)
    hidden = (kind_of == MASK) & (rank < window_of)
    kept = torch.where(kind_of == CROP, inside, True)
    items = values[:, None].expand(-1, views)
    if mask_id is None:
        kept = kept & ~hidden
    else:
        items = items.masked_fill(hidden, mask_id)
    kept = kept & real[:, None]

    before = F.pad(kept.cumsum(0), (0, 0, 1, 0))
    length = before[offsets[1:]] - before[offsets[:-1]]
    new_offsets = F.pad(length.flatten().cumsum(0), (1, 0))
    local = before[:-1] - before[offsets[:-1]][owner]
    local = torch.where(kind_of == REORDER, rank, local)
    column = torch.arange(views, device=values.device)
    to = new_offsets[:-1][owner[:, None] * views + column] + local
    from_end = torch.where(kind_of == MASK, size[owner] - 1 - place, length[owner] - 1 - local)

    # On a CPU nothing waits for a number; on a GPU there is room for all.
    room = int(new_offsets[-1]) if values.device.type == "cpu" else tokens * views
    to = torch.where(kept, to, room).flatten()
    found = []
    for source in (items, from_end):
        target = source.new_zeros(room + 1)
        found.append(target.index_copy_(0, to, source.flatten())[:room])
    return Views(found[0], new_offsets, found[1], views)


def _chosen(
    draws: Tensor, sequence: Tensor, size: Tensor, levels: Sequence[int], ratios: Ratios,
    to_the_last: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Operator, length of its window and where it begins, int64 ``[B, C]`` each."""
    kind = rng.below(rng.level_words(draws, sequence, rng.STREAM_AUGMENT_CHOICE, levels), 3)
    counted = [counts(size, ratio) for ratio in ratios]
    window = torch.where(kind == CROP, counted[CROP], counted[REORDER])
    word = rng.level_words(draws, sequence, rng.STREAM_AUGMENT_PLACE, levels)
    start = rng.below(word, size - window + to_the_last).minimum(size - 1)
    window = torch.where(kind == CROP, window.clamp(min=1), window)
    return kind, torch.where(kind == MASK, counted[MASK], window), start


def random_ranks(draws: Tensor, begin: Tensor, bucket: Tensor, levels: Sequence[int]) -> Tensor:
    """Places of the tokens in their histories, int64 ``[N, C]``, by bucket and then at random: of a
    masked view a rank in a random order, of a reordered one the new place, of a crop the old one.

    Args:
        draws: the step's seed ``[3]``.
        begin: int64 ``[N]``, where the history of each token begins.
        bucket: int64 ``[N, C]``, 0 .. the history's length - 1; larger behind the last history.
        levels: as for :func:`augmented`.
    """
    index = torch.arange(begin.shape[0], device=begin.device)
    word = rng.level_words(
        draws, index + rng.first_token(draws), rng.STREAM_AUGMENT_ORDER, levels
    )
    order = word.argsort(dim=0, stable=True)
    # Behind the tokens of one history those of the next, whatever their buckets.
    keyed = (begin[:, None] + bucket).gather(0, order)
    order = order.gather(0, keyed.argsort(dim=0, stable=True))
    places = index[:, None].expand_as(order)
    return torch.empty_like(order).scatter_(0, order, places) - begin[:, None]
