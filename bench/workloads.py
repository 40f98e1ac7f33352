"""The workloads: batches whose lengths follow the histories of Amazon Beauty.

``train`` and ``large`` are training batches under ``"prefix"`` supervision (every prefix of a
history is an example), ``serve-1`` and ``serve-1024`` are whole histories to recommend from, all
cut to their last 50 items. They come from :func:`adarec_fast.data.synthetic`, which draws lengths
from the real distribution; the catalogue is as large as Beauty's. Depths are uniform on 0..T.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adarec_fast import ragged
from adarec_fast.data import (
    Batch,
    EvaluationBatch,
    EvaluationBatches,
    Split,
    TrainingBatches,
    synthetic,
)

MAX_LENGTH = 50
MAX_DEPTH = 8
NUM_ITEMS = 12_101  # Amazon Beauty's catalogue
SIZES = (64, 128)
_NUM_USERS = 4096
_MOST_USERS = 4 * 8192  # where an example is a whole history, as many large batches as anyone asks
_SEED = 20


@dataclass(frozen=True)
class Workload:
    """A batch size, and whether it is trained on (dropout, noise, gradients) or served."""

    name: str
    batch: int
    training: bool

    @property
    def directions(self) -> tuple[str, ...]:
        """What is timed of an op."""
        return ("forward", "forward+backward") if self.training else ("forward",)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("train", 256, True),
        Workload("large", 8192, True),
        Workload("serve-1", 1, False),
        Workload("serve-1024", 1024, False),
    )
}


@dataclass(frozen=True)
class Histories:
    """A packed batch with a depth for each history.

    Attributes:
        item_ids: int64 ``[N]``, 1..NUM_ITEMS.
        offsets: int64 ``[B+1]``.
        targets: int64 ``[B]``, the next item; or ``[N]``, that of every position.
        depth: int64 ``[B]``, uniform on 0..MAX_DEPTH.
        every_position: which of the two targets are.
    """

    item_ids: Tensor
    offsets: Tensor
    targets: Tensor
    depth: Tensor
    every_position: bool = False

    @property
    def batch(self) -> int:
        return self.depth.numel()

    @property
    def tokens(self) -> int:
        """N."""
        return self.item_ids.numel()

    @property
    def lengths(self) -> Tensor:
        return ragged.lengths(self.offsets)

    @property
    def level_tokens(self) -> int:
        """Tokens times the levels 0..depth that exist for them."""
        return int((self.lengths * (self.depth + 1)).sum())

    @property
    def level_sequences(self) -> int:
        """Sequences times their levels."""
        return int((self.depth + 1).sum())

    def part(self, start: int, stop: int) -> Histories:
        """The histories ``start .. stop - 1``."""
        low, high = int(self.offsets[start]), int(self.offsets[stop])
        targets = self.targets[low:high] if self.every_position else self.targets[start:stop]
        return replace(
            self,
            item_ids=self.item_ids[low:high],
            offsets=self.offsets[start : stop + 1] - low,
            targets=targets,
            depth=self.depth[start:stop],
        )

    def to(self, device: str) -> Histories:
        """The same batch on another device."""
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)

    def padded_ids(self) -> Tensor:
        """int64 ``[B, MAX_LENGTH]``, padded with 0 on the right."""
        return ragged.to_padded(self.item_ids, self.offsets, MAX_LENGTH)

    def as_batch(self) -> Batch:
        """What ``ADARec.loss`` takes."""
        return Batch(
            self.item_ids, self.offsets, self.targets,
            torch.arange(self.batch, device=self.offsets.device),
        )


def remembered(generator: torch.Generator, neighbours: int) -> tuple[Tensor, Tensor]:
    """A memory's rows int64 ``[NUM_ITEMS + 2]`` and its neighbours int32, as many of every item.

    One of each stretch of the catalogue, so that they rise and none comes twice.
    """
    step = NUM_ITEMS // neighbours
    drawn = torch.randint(0, step, (NUM_ITEMS, neighbours), generator=generator)
    found = 1 + drawn + step * torch.arange(neighbours)
    rows = torch.cat(
        [torch.zeros(1).long(), torch.arange(0, NUM_ITEMS * neighbours + 1, neighbours)]
    )
    return rows, found.flatten().int()



@functools.cache
def _split(users: int) -> Split:
    return Split(
        synthetic(users, NUM_ITEMS, num_themes=40, subthemes_per_theme=5, seed=_SEED)
    )


def _batches(
    workload: Workload, count: int, generator: torch.Generator, supervision: str
) -> Iterator[Batch | EvaluationBatch]:
    # A prefix is an example, so that few users give many.
    enough = supervision == "prefix" or count * workload.batch <= _NUM_USERS
    split = _split(_NUM_USERS if enough else _MOST_USERS)
    if workload.training:
        yield from TrainingBatches(
            *split.inputs("train"), batch_size=workload.batch, max_length=MAX_LENGTH, seed=_SEED,
            supervision=supervision,
        ).epoch(0)  # fmt: skip
    else:
        users = torch.randperm(split.num_users, generator=generator)[: count * workload.batch]
        yield from EvaluationBatches(
            split, "test", batch_size=workload.batch, max_length=MAX_LENGTH, users=users
        )


@functools.cache
def histories(
    name: str, count: int = 1, *, every_position: bool = False
) -> tuple[Histories, ...]:
    """``count`` different batches of a workload; the same ones in every run and on every machine.

    Args:
        name: of the workload.
        count: how many.
        every_position: training batches of whole histories, each position with its target.

    Raises:
        ValueError: an unknown workload, or every position of one that is not trained on.
    """
    if name not in WORKLOADS:
        raise ValueError(f"workload={name!r} is unknown; choose from {', '.join(WORKLOADS)}")
    workload = WORKLOADS[name]
    if every_position and not workload.training:
        raise ValueError(f"workload={name!r} is not trained on: it has one target a history")
    generator = torch.Generator().manual_seed(_SEED)
    made = []
    supervision = "all" if every_position else "prefix"
    for batch in itertools.islice(_batches(workload, count, generator, supervision), count):
        depth = torch.randint(0, MAX_DEPTH + 1, (workload.batch,), generator=generator)
        if workload.batch == 1:
            # A single draw says little: the middle one stands for all.
            depth = torch.full((1,), MAX_DEPTH // 2)
        made.append(
            Histories(batch.item_ids, batch.offsets, batch.targets, depth, every_position)
        )
    assert len(made) == count, f"{count} batches of {workload.batch} are more than there are"
    return tuple(made)
