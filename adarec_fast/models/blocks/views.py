"""Contrast of two views of every history, by one process or by workers that share a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from .auxiliary import Step
from .contrast import Tokens, concatenated, overlap_products, pair_infonce


def place_of(step: Step, offsets: Tensor, each: int = 1) -> Tensor | None:
    """Where sequences made of a share lie among those of the whole batch: tokens and sequences
    before them, int64 ``[2]``; None where nobody shares the batch.

    Args:
        step: the batch.
        offsets: int64 ``[B each + 1]`` of the sequences.
        each: of each history.
    """
    share = step.share
    if share is None:
        return None
    # How many tokens those of the shares before have is known to these alone.
    tokens = share.workers.gather(offsets[-1:])[: share.workers.rank].sum()
    return torch.stack([tokens, share.place[1] * each])


def is_user(step: Step) -> Tensor | None:
    """Which rows of a gathered batch are users, bool ``[W most]``; None where it is not shared."""
    if step.share is None:
        return None
    there = torch.ones_like(step.batch.users)
    return step.share.gather(there, step.share.most_examples) > 0


def contrast_of_positions(
    step: Step, x: Tensor, tokens: Tokens, each: int, temperature: float
) -> Tensor:
    """NT-Xent over concatenations of all positions, the same on all workers.

    Args:
        step: the batch, of B histories.
        x: ``[M, D']``, a vector for each token; what lies at tokens of no sequence is not read.
        tokens: where they lie; of 2 B C sequences 2i and 2i + 1 are a pair.
        each: C, pairs of each history.
        temperature: tau.
    """
    share = step.share
    if share is None:
        return pair_infonce(overlap_products(x, tokens), temperature)
    wide = torch.promote_types(x.dtype, torch.float32)
    x = torch.where((tokens.rows < tokens.sequences)[:, None], x.to(wide), 0.0)
    dense = share.gather(concatenated(x, tokens), 2 * each * share.most_examples)
    with torch.autocast(x.device.type, enabled=False):
        products = dense @ dense.T
    valid = is_user(step)
    assert valid is not None
    return pair_infonce(products, temperature, valid=valid.repeat_interleave(each))
