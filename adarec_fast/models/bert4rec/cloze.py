"""Which items of a history a cloze hides."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import ragged, rng

# Levels of the stream: a word a token, and a word a sequence.
_ORDER, _LAST = 0, 1


def hidden_counts(lengths: Tensor, share: float) -> Tensor:
    """int64: max(1, round(share * n)) of lengths n, halves up."""
    return (share * lengths.double() + 0.5).floor().long().clamp(min=1)


def hidden_items(
    offsets: Tensor, tokens: int, seed: Tensor, *, share: float, last_share: float
) -> Tensor:
    """Bool ``[N]``, True at hidden items, without waiting for the device.

    Of a sequence of n items :func:`hidden_counts` are hidden, every choice as likely; or, with
    probability ``last_share``, the last one alone, as when the model ranks.

    Args:
        offsets: int64 ``[B+1]``.
        tokens: N, with capacity.
        seed: int64 ``[1]`` or ``[3]``, the step's.
        share: 0 < share <= 1.
        last_share: 0 <= last_share <= 1.
    """
    owner = ragged.sequence_ids(offsets, tokens)  # B at capacity
    token = torch.arange(tokens, device=offsets.device)
    word = rng.words(seed, token + rng.first_token(seed), rng.STREAM_CLOZE, _ORDER)
    # The rank of a token's word among those of its sequence.
    order = torch.argsort((owner << 32) | word, stable=True)
    rank = torch.empty_like(token)
    rank[order] = token - offsets[owner[order]]
    sizes = ragged.lengths(offsets)
    sequence = torch.arange(sizes.shape[0], device=offsets.device)
    chosen = rng.words(seed, sequence + rng.first_sequence(seed), rng.STREAM_CLOZE, _LAST)
    last_alone = chosen < rng.dropout_threshold(last_share)
    counts = hidden_counts(sizes, share)
    # A row more: nothing is hidden at capacity.
    counts, last_alone = (torch.cat([x, x.new_zeros(1)]) for x in (counts, last_alone))
    ends = torch.cat([offsets[1:], offsets[-1:]])
    is_last = (token == ends[owner] - 1) & (owner < sizes.shape[0])
    return torch.where(last_alone[owner], is_last, rank < counts[owner])
