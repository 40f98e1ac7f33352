"""The batches of one process, each cut into as many shares as there are workers."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..data import TrainingBatches
from .share import Share, SharedBatch
from .workers import Workers


class SharedBatches:
    """This worker's share of every batch.

    Batch i is the one that a single process would take as its i-th: same examples, same order.
    Worker r has the r-th run of its examples, as many as the others or one fewer, so that no
    example is left out and none comes twice; in a last batch of fewer examples than workers some
    have none.

    Args:
        batches: what one process would train on.
        workers: among whom they are shared.
        gather_negatives: see :class:`Share`.
    """

    def __init__(
        self, batches: TrainingBatches, workers: Workers, *, gather_negatives: bool
    ) -> None:
        self.workers = workers
        self._batches = batches
        self._gather_negatives = gather_negatives

    @property
    def num_examples(self) -> int:
        return self._batches.num_examples

    @property
    def some_are_empty(self) -> bool:
        """Whether the last batch of an epoch leaves a worker without an example."""
        return 0 < self.num_examples % self._batches.batch_size < self.workers.size

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, e: int, start: int = 0) -> Iterator[SharedBatch]:
        """As :meth:`TrainingBatches.epoch`."""
        self._batches.check_start(e, start)
        order = self._batches.order(e)
        rank, size = self.workers.rank, self.workers.size
        begins = torch.arange(len(self)) * self._batches.batch_size
        examples = (self.num_examples - begins).clamp(max=self._batches.batch_size)
        # [batches, W + 1]: the shares of batch i lie between cuts[i, r] and cuts[i, r + 1].
        cuts = begins[:, None] + examples[:, None] * torch.arange(size + 1) // size
        tokens = self._batches.tokens_before(order)[cuts]
        most_examples, most_tokens = cuts.diff().amax(1).tolist(), tokens.diff().amax(1).tolist()
        place = torch.stack([tokens[:, rank] - tokens[:, 0], cuts[:, rank] - cuts[:, 0]], 1)
        place = place.to(self._batches.device)
        mine, totals = cuts[:, rank : rank + 2].tolist(), tokens.diff()[:, rank].tolist()
        counts = examples.tolist()
        order = order.to(self._batches.device)
        for index in range(start, len(self)):
            begin, end = mine[index]
            share = Share(
                self.workers,
                place[index],
                counts[index],
                most_examples[index],
                most_tokens[index],
                self._gather_negatives,
            )
            yield SharedBatch(self._batches.gather(order[begin:end], totals[index]), share)
