"""All histories of a batch on every worker, as mixtures across histories need them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ragged, rng
from ..blocks.auxiliary import Step


class Everyone(NamedTuple):
    """The tokens of a whole batch of B histories.

    Attributes:
        hidden: ``[M, D]``; each worker's gradient stops at its own rows.
        table: items ``[V+1, D]``, whose gradient is this worker's part.
        targets: int64 ``[M]``; 0 at rows that only fill up.
        negatives: int64 ``[M, 1]``, or None.
        owner: int64 ``[M]``, the history of each.
        back: int64 ``[M]``, its place from the end.
        starts: int64 ``[B]``, the row of each history's first token.
        lengths: int64 ``[B]``.
        seed: int64 ``[3]``, the step's, at the place of the first history.
    """

    hidden: Tensor
    table: Tensor
    targets: Tensor
    negatives: Tensor | None
    owner: Tensor
    back: Tensor
    starts: Tensor
    lengths: Tensor
    seed: Tensor

    def token_index(self) -> Tensor:
        """int64 ``[M]``: which token of the batch each row is."""
        ends = self.lengths.cumsum(0)
        return ends[self.owner] - 1 - self.back

    def partners(self, others: Tensor) -> tuple[Tensor, Tensor]:
        """The row that stands at the same place from the end in another history, int64 ``[M]``, and
        whether there is one; where there is none, the row itself.

        Args:
            others: int64 ``[B]``, the other history of each.
        """
        other = others[self.owner]
        there = self.lengths[other] > self.back
        row = self.starts[other] + self.lengths[other] - 1 - self.back
        return torch.where(there, row, torch.arange(row.shape[0], device=row.device)), there


def everyone(step: Step) -> Everyone:
    """The whole batch of a step, gathered where several workers share it."""
    values, offsets, targets, _ = step.batch
    tokens, share = values.shape[0], step.share
    seed = rng.at_place(step.draws[:1])
    owner = ragged.sequence_ids(offsets, tokens).clamp(max=max(offsets.shape[0] - 2, 0))
    back = ragged.from_end(offsets, tokens)
    lengths = ragged.lengths(offsets)
    if share is None:
        # What a row of capacity holds may not even be a number.
        hidden = torch.where((targets > 0)[:, None], step.embeddings, 0.0)
        return Everyone(
            hidden, step.table, targets, step.negatives, owner, back, offsets[:-1], lengths, seed
        )
    size, most = share.workers.size, share.most_tokens
    hidden = share.gather(step.embeddings, most)
    told = [targets, owner + share.place[1], back]
    if step.negatives is not None:
        told.append(step.negatives[:, 0])
    targets, owner, back, *negatives = share.gather(torch.stack(told, 1), most).unbind(1)
    # Histories are shared in runs: worker r has those from examples r // W on.
    cuts = [share.examples * rank // size for rank in range(size + 1)]
    sizes = share.gather(lengths, share.most_examples).view(size, -1)
    parts = [sizes[rank, : cuts[rank + 1] - cuts[rank]] for rank in range(size)]
    starts = [F.pad(part.cumsum(0), (1, 0))[:-1] + rank * most for rank, part in enumerate(parts)]
    # All workers compute all of it: each gives the table its part of the gradient.
    table = step.table.detach() + (step.table - step.table.detach()) / size
    return Everyone(
        hidden, table, targets, negatives[0][:, None] if negatives else None, owner, back,
        torch.cat(starts), torch.cat(parts), seed,
    )  # fmt: skip
