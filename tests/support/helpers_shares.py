"""Workers that are threads of one process: what a share of a batch computes, without processes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch
from torch import Tensor

from adarec_fast.data import TrainingBatches
from adarec_fast.distributed.batches import SharedBatches
from adarec_fast.distributed.share import SharedBatch


class Thread:
    """One worker: its place among the others, and the sums and gathers that losses ask for."""

    def __init__(self, rank: int, size: int, barrier: Barrier, board: list[Any]) -> None:
        self.rank, self.size = rank, size
        self._barrier, self._board = barrier, board

    def _all(self, tensor: Tensor) -> list[Tensor]:
        self._board[self.rank] = tensor.clone()
        self._barrier.wait(30)
        found = list(self._board)
        self._barrier.wait(30)
        return found

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(torch.stack(self._all(tensor)).sum(0))

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._all(tensor))


def shares(
    batches: TrainingBatches, size: int, job: Callable[[SharedBatch], Any], epoch: int = 0
) -> list[Any]:
    """What ``job`` gives for each worker's share of the first batch of an epoch, by rank."""
    barrier, board = Barrier(size), [None] * size

    def work(rank: int) -> Any:
        workers: Any = Thread(rank, size, barrier, board)
        shared = SharedBatches(batches, workers, gather_negatives=True)
        try:
            return job(next(iter(shared.epoch(epoch))))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, range(size)))


def check_shares(
    batches: TrainingBatches, make: Callable[[], Any], size: int = 3, rtol: float = 1e-9
) -> None:
    """Shares of a batch have the losses of the whole one, and gradients that add up to its own.

    ``make`` gives a fresh model in training mode, ready for a loss.
    """
    whole = make()
    expected = whole.loss(next(iter(batches.epoch(0))))
    expected.total.backward()

    def job(shared: SharedBatch) -> Any:
        model = make()
        output = model.loss(shared.batch, shared.share)
        output.total.backward()
        return output, dict(model.named_parameters())

    found = shares(batches, size, job)
    for output, _ in found:
        assert output.parts.keys() == expected.parts.keys()
        for name, part in {**expected.parts, "total": expected.total.detach()}.items():
            mine = {**output.parts, "total": output.total.detach()}[name]
            torch.testing.assert_close(
                mine, part, rtol=rtol, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
            )
    for name, parameter in whole.named_parameters():
        gradients = [p[name].grad for _, p in found if p[name].grad is not None]
        if parameter.grad is None:
            assert not gradients, name
            continue
        torch.testing.assert_close(
            torch.stack(gradients).sum(0), parameter.grad, rtol=100 * rtol, atol=1e-12,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip
