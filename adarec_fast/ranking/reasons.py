"""Why an item was recommended: what its score loses when an item of the history had not been."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ragged
from ..data import EvaluationBatch
from ..histories import check_histories, pack_lists
from ..models.base import SequenceModel
from ..models.evaluating import evaluating
from ..precision import ranking

# Scores of a chunk of histories over the whole catalogue, as many as this holds.
_CHUNK_SCORES = 2**23


def score_differences(
    model: SequenceModel, history: Sequence[int], items: Sequence[int]
) -> Tensor:
    """The score with the whole history less the score without one of its places, memory included.

    Exact: the model answers n + 1 histories, at most ``max_length`` + 1. Differences need not add
    up to the score. Of more items than ``max_length`` the earlier ones are not read unless a later
    one is left out, and the score loses nothing without them. With one item nothing can be left
    out, and its difference is the score itself.

    Args:
        model: in whatever mode.
        history: n >= 1 items 1..num_items, oldest first.
        items: k >= 0 items 1..num_items, of which to tell.

    Returns:
        float32 ``[k, n]`` on the CPU.

    Raises:
        ValueError: an empty history, or an id outside the catalogue.
    """
    found = scores_without(model, history, items)
    return differences(found)


def differences(scores: Tensor) -> Tensor:
    """``[k, n]`` of what :func:`scores_without` found."""
    return (scores[:1] - scores[1:] if scores.shape[0] > 1 else scores).T


@torch.inference_mode()
def scores_without(
    model: SequenceModel, history: Sequence[int], items: Sequence[int]
) -> Tensor:
    """Scores of items with the whole history, and without each of its places where it has several.

    Arguments and errors are those of :func:`score_differences`.

    Returns:
        float32 ``[n + 1, k]``, or ``[1, k]`` of one place, on the CPU.
    """
    model = evaluating(model)
    cpu, config = torch.device("cpu"), model.config
    whole = list(history)
    if not whole:
        raise ValueError("history is empty; it must hold one item or more")
    # Places before these are not read: of what is left, the last items are the same.
    unread = max(0, len(whole) - config.max_length)
    before = max(0, unread - 1)  # leaving one out lets one more in
    without = [
        whole[before:place] + whole[place + 1 :] for place in range(unread, len(whole))
    ]
    values, offsets = check_histories(
        pack_lists([whole, *(left for left in without if left)], cpu), None,
        num_items=config.num_items, crop=config.max_length,
    )  # fmt: skip
    wanted = torch.zeros(0, dtype=torch.int64)
    if items:
        wanted, _ = check_histories(
            pack_lists([list(items)], cpu), None, num_items=config.num_items, crop=None
        )
    users = offsets.shape[0] - 1
    many = max(1, _CHUNK_SCORES // (config.num_items + 1))
    found = torch.cat([
        _scores(model, ragged.rows(ragged.Jagged(values, offsets), first, min(users, first + many)))
        [:, wanted.to(model.device)].float().cpu()
        for first in range(0, users, many)
    ])  # fmt: skip
    return torch.cat([found[:1], found[:1].expand(unread, -1), found[1:]])


def _scores(model: SequenceModel, histories: ragged.Jagged) -> Tensor:
    """``[B, V+1]``, the memory's share included."""
    values, offsets = (tensor.to(model.device) for tensor in histories)
    with ranking(model.config.precision, model.device.type):
        scores = model.scores(EvaluationBatch.of_nobody(values, offsets))
    if model.memory is not None:
        model.memory.add_to(scores, values, offsets)
    return scores
