"""Augmented copies of histories, of the same lengths: BASRec's M-Reorder and M-Substitute."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ... import ragged, rng
from ..blocks.augmentation import random_ranks

REORDER, SUBSTITUTE = range(2)


class Copies(NamedTuple):
    """C copies of each of B histories, those of one history side by side.

    Attributes:
        items: int64 ``[N, C]``, what stands at each token's place in each copy.
        ratio: float64 ``[B, C]``, the share r of a history that its copy changes.
    """

    items: Tensor
    ratio: Tensor


def copies(
    values: Tensor, offsets: Tensor, draws: Tensor, similar: Tensor, number: int,
    ratios: tuple[float, float],
) -> Copies:
    """Each copy by one of two operators, each as likely, with r uniform in ``ratios``:

    * M-Reorder: int(r n) consecutive items are shuffled, never the last one;
    * M-Substitute: max(int(r n), 1) items are replaced by the most similar ones; one that has none
      by any item.

    Args:
        values: int64 ``[N]``.
        offsets: int64 ``[B+1]``.
        draws: int64 ``[3]``, a step's seed at the place of these histories.
        similar: int64 ``[V+1]``, see :func:`..blocks.similarity.most_similar`.
        number: C.
        ratios: least and greatest r.
    """
    tokens, batch = values.shape[0], offsets.shape[0] - 1
    levels, further = range(number), range(number, 2 * number)
    sequence = torch.arange(batch, device=values.device) + rng.first_sequence(draws)
    size = ragged.lengths(offsets)[:, None]
    kind = rng.below(rng.level_words(draws, sequence, rng.STREAM_AUGMENT_CHOICE, levels), 2)
    uniform = rng.to_uniform(
        rng.level_words(draws, sequence, rng.STREAM_AUGMENT_CHOICE, further), torch.float64
    )
    ratio = ratios[0] + (ratios[1] - ratios[0]) * uniform
    window = (size * ratio).long()
    word = rng.level_words(draws, sequence, rng.STREAM_AUGMENT_PLACE, levels)
    start = rng.below(word, size - window)
    window = torch.where(kind == SUBSTITUTE, window.clamp(min=1), window)

    owner = ragged.sequence_ids(offsets, tokens)
    real, owner = (owner < batch)[:, None], owner.clamp(max=max(batch - 1, 0))
    index = torch.arange(tokens, device=values.device)
    begin = offsets[owner]
    place = (index - begin)[:, None]
    kind, window, start = kind[owner], window[owner], start[owner]
    inside = (place >= start) & (place < start + window)
    bucket = torch.where((kind == REORDER) & inside, start, place)
    bucket = torch.where(real & (kind == SUBSTITUTE), 0, bucket)
    rank = random_ranks(draws, begin, bucket, levels)

    whole = values[:, None].expand(-1, number)
    moved = torch.empty_like(whole).scatter_(0, begin[:, None] + rank, whole)
    word = rng.level_words(
        draws, index + rng.first_token(draws), rng.STREAM_AUGMENT_PLACE, further
    )
    anything = 1 + rng.below(word, similar.shape[0] - 1)
    other = torch.where(similar[whole] > 0, similar[whole], anything)
    replaced = torch.where(rank < window, other, whole)
    items = torch.where(kind == REORDER, moved, replaced)
    return Copies(torch.where(real, items, whole), ratio)


def sample_weights(alpha: Tensor, ratio: Tensor, valid: Tensor | None = None) -> Tensor:
    """1 / (alpha r), of each copy brought to 0..1 by its least and greatest over the batch; 1 where
    all are equal.

    Args:
        alpha: float64 ``[B, C]``, shares of the history itself, which may be tiny.
        ratio: float64 ``[B, C]``.
        valid: bool ``[B]``; other rows only fill up.
    """
    raw = 1 / (alpha * ratio)
    there = torch.ones_like(raw, dtype=torch.bool) if valid is None else valid[:, None]
    least = torch.where(there, raw, float("inf")).amin(0)
    greatest = torch.where(there, raw, 0.0).amax(0)
    spread = greatest - least
    return torch.where(spread > 0, (raw - least) / spread.clamp(min=1e-30), 1.0)
