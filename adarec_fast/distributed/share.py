"""A worker's share of a batch, and what makes the shares' losses those of the whole batch.

Every part of a loss is a mean: over targets, over tokens times levels, over pairs, over users. The
mean over the whole batch is not the mean of the shares' means, since these count differently. So
each share's mean is weighted by its count over the whole count, and gradients are added up over
workers, not averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..data import Batch

if TYPE_CHECKING:
    from .items import ShardedItems
    from .workers import Workers


class Share(NamedTuple):
    """Where a share lies in its batch.

    Attributes:
        workers: those who share the batch.
        place: int64 ``[2]`` on the device, tokens and sequences of the batch before this share.
        examples: sequences of the whole batch.
        most_examples: sequences of the largest share.
        most_tokens: tokens of the largest share.
        gather_negatives: whether Eq. 6 compares with the users of all shares.
    """

    workers: Workers
    place: Tensor
    examples: int
    most_examples: int
    most_tokens: int
    gather_negatives: bool

    def of_whole_batch(
        self, means: Mapping[str, Tensor], counts: Mapping[str, Tensor], *further: Tensor
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Losses with the value of the whole batch and the gradient of this share.

        Args:
            means: each loss, a mean over this share, or over the whole batch.
            counts: how many things each was averaged over in this share, at least one of them;
                what has none is of the whole batch already, and keeps its gradient.
            further: 1-dim tensors to add up over workers by the way.

        Returns:
            The losses, and the further sums, float64. Added over workers, the gradients are the
            whole batch's.
        """
        names = list(counts)
        number = torch.stack([counts[name] for name in names]).double()
        mean = torch.stack([means[name].detach().double() for name in names])
        # One small sum over workers; nothing here waits for the device.
        packed = torch.cat([mean * number, number, *(tensor.double() for tensor in further)])
        sums, numbers, *rest = self.workers.sum(packed).split(
            [len(names), len(names), *(tensor.shape[0] for tensor in further)]
        )
        whole, weight = sums / numbers.clamp(min=1), number / numbers.clamp(min=1)
        result = dict(means)
        for index, name in enumerate(names):
            share = means[name] * weight[index].to(means[name].dtype)
            result[name] = share + (whole[index].to(share.dtype) - share).detach()
        return result, rest

    def gather(self, tensor: Tensor, most: int) -> Tensor:
        """Rows of all shares ``[W * most, ...]`` of this share's ``[n, ...]``; zeros fill up.

        The gradient that comes back is this share's part of the worker's own: for results that
        every worker computes from all rows.
        """
        rows: Tensor = _Gather.apply(tensor, most, self.workers)
        return rows

    def negatives(
        self, z: Tensor, depth: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What Eq. 6 compares ``[K, B, D]``, depths and targets of all shares.

        A user that fills up has depth 0: no pair, and nobody's negative.
        """
        everyone = self.gather(z.transpose(0, 1), self.most_examples).transpose(0, 1)
        ids = self.gather(torch.stack([depth, targets], 1), self.most_examples)
        return everyone.contiguous(), ids[:, 0].contiguous(), ids[:, 1].contiguous()

    def cross_entropy(
        self, items: ShardedItems, hidden: Tensor, targets: Tensor, label_smoothing: float, *,
        everywhere: bool,
    ) -> Tensor:
        """Eq. 13 of the whole batch over a split catalogue; see :class:`ShardedItems`.

        ``everywhere``: there is a row a token, not a row a sequence.
        """
        most = self.most_tokens if everywhere else self.most_examples
        return items.cross_entropy(
            self.gather(hidden, most), self.gather(targets, most), label_smoothing
        )


class SharedBatch(NamedTuple):
    """A worker's sequences of a batch, and where they lie in it."""

    batch: Batch
    share: Share


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, most: int, workers: Workers) -> Tensor:
        ctx.rows, ctx.begin = tensor.shape[0], workers.rank * most
        filled = tensor.new_zeros(most, *tensor.shape[1:])
        filled[: ctx.rows] = tensor
        return workers.gather(filled).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return grad[ctx.begin : ctx.begin + ctx.rows], None, None
