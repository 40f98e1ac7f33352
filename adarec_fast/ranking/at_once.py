"""Requests of a few users as one call into the C++ extension, where its kernels can answer them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..models.base import SequenceModel
from ..ops.serving import MOST_USERS, Serving
from .ranked import Ranking


@torch.inference_mode()
def packed(model: SequenceModel, table: Tensor, screened: bool) -> Serving | None:
    """A model in evaluation mode, and the table its scores are products with, as such calls take
    them; None where the ops run one by one."""
    parts, memory = model.request_parts(), model.memory
    if not Serving.suits(parts, table, model.config.backend, memory is not None):
        return None
    assert parts is not None
    reads = None if memory is None else memory.reads()
    return Serving(parts, table, reads, screened=screened)


def as_given(whole: Serving, histories: Any, k: Any, exclude_seen: bool) -> Ranking | None:
    """The answer to one history in a list, or to a pair of tensors, as it stands; None where it
    needs to be looked at, or refused."""
    if type(histories) is list:
        return _ranking(whole.of_lists(histories, k, exclude_seen))
    if type(histories) is not tuple or len(histories) != 2 or type(k) is not int:
        return None
    values, offsets = histories
    if not (type(values) is type(offsets) is Tensor) or not exclude_seen:
        return None
    return of_tensors(whole, values, offsets, None, None, k)


def of_tensors(
    whole: Serving, values: Tensor, offsets: Tensor, seen: Tensor | None,
    seen_offsets: Tensor | None, k: int,
) -> Ranking | None:
    """The same of packed histories, and of what may not come: None for the histories."""
    if not 2 <= offsets.numel() <= MOST_USERS + 1:
        return None
    return _ranking(whole.answer(values, offsets, seen, seen_offsets, k))


def _ranking(found: tuple[Tensor, Tensor, Tensor] | None) -> Ranking | None:
    if found is None:
        return None
    scores, items, depth = found
    return Ranking(items, scores, {"depth": depth} if depth.shape[0] else {})
