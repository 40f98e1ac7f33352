"""Losses that a system has beside the one that ranks, as a module that its encoder is handed to.

An encoder's auxiliary losses are written once: for the system itself, and for a model that builds
on its encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ... import ops, ragged
from ...data import Batch, Split
from ...data.flat import gather_ranges
from ..base import Label

if TYPE_CHECKING:
    from ...distributed.share import Share

_USERS = 4096  # encoded at once between two epochs


class Encodes(Protocol):
    """What auxiliary losses ask of a model."""

    training: bool
    config: Any
    backbone: Any

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def encoded(
        self, values: Tensor, offsets: Tensor, seed: Tensor | None, places: Tensor | None = None
    ) -> Tensor:
        """E ``[N, D]`` of packed histories; ``seed`` of dropout, None: none."""
        ...


class Step(NamedTuple):
    """A batch in the middle of its loss.

    Attributes:
        batch: the histories.
        embeddings: E ``[N, D]`` of them, with the step's own dropout.
        draws: the step's seed ``[3]``, at the place of the batch.
        share: where the batch lies in one that workers share, or None.
        table: items ``[V+1, D]``.
        negatives: int64 ``[R, 1]`` of the targets, or None under the full cross entropy.
    """

    batch: Batch
    embeddings: Tensor
    draws: Tensor
    share: Share | None
    table: Tensor
    negatives: Tensor | None


class Parts(NamedTuple):
    """Losses by name, and how many things each is a mean of; one without is of the whole batch
    already, the same on all workers."""

    means: Mapping[str, Tensor]
    counts: Mapping[str, Tensor] = {}


class Auxiliary(nn.Module):
    """Losses beside the one that ranks.

    Attributes:
        labels: the parts that are not switched off, as pictures name them.
        weights: of each part in the total.
    """

    def __init__(self, labels: Mapping[str, Label], weights: Mapping[str, float]) -> None:
        super().__init__()
        on = [name for name in labels if weights[name]]
        self.labels = {name: labels[name] for name in on}
        self.weights = {name: weights[name] for name in on}

    @property
    def leaves_some_unused(self) -> bool:
        """Whether a step leaves parameters of this module without a gradient."""
        return not self.weights and next(self.parameters(), None) is not None

    def begin_training(self, model: Encodes, split: Split) -> None:
        """As :meth:`SequenceModel.begin_training`."""

    def begin_epoch(self, model: Encodes, epoch: int) -> None:
        """As :meth:`SequenceModel.begin_epoch`."""

    def losses(self, model: Encodes, step: Step) -> Parts:
        """The parts of a batch, before their weights."""
        raise NotImplementedError


class Histories(nn.Module):
    """The training histories that predict something, a user each, less their last item; buffers
    that ``state_dict`` leaves out.

    Args:
        split: of the interactions.
        max_length: longer ones keep their last items.
    """

    values: Tensor
    offsets: Tensor

    def __init__(self, split: Split, max_length: int) -> None:
        super().__init__()
        values, offsets = split.inputs("train")
        sizes = ragged.lengths(offsets) - 1
        users = (sizes > 0).nonzero()[:, 0]
        kept = sizes[users].clamp(max=max_length)
        found, begins = gather_ranges(values, offsets[1:][users] - 1 - kept, kept)
        self.register_buffer("values", found, persistent=False)
        self.register_buffer("offsets", begins, persistent=False)

    @property
    def number(self) -> int:
        """How many there are."""
        return self.offsets.shape[0] - 1

    @torch.no_grad()
    def means(self, model: Encodes) -> Tensor:
        """E's mean over each history, float32 ``[U, D]``, without dropout."""
        found = []
        for begin in range(0, self.number, _USERS):
            part = ragged.rows(
                ragged.Jagged(self.values, self.offsets), begin, min(begin + _USERS, self.number)
            )
            found.append(pooled(model, model.encoded(*part, None), part.offsets).float())
        return torch.cat(found)


def pooled(model: Encodes, embeddings: Tensor, offsets: Tensor) -> Tensor:
    """The mean over each sequence's tokens, ``[B, D]`` of ``[N, D]``."""
    return ops.level_pool(
        embeddings[None], offsets, None, max_length=model.config.max_length,
        backend=model.config.backend,
    )[0]  # fmt: skip
