"""x_0 of GlobalDiff: which items go with the next one, drawn anew for every example."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import ragged, rng
from ...data import Batch
from ...data.flat import range_positions
from ..blocks.similarity import similarities


class Related(nn.Module):
    """Cosines S of the columns of who has what; buffers that ``state_dict`` leaves out.

    Args:
        values: int64 ``[N]``, the training histories' items, on the CPU.
        offsets: int64 ``[U+1]``.
        num_items: V.
        last: items of each history that count, its last ones; 0: all.

    Attributes:
        begins: int64 ``[V+2]``, where each item's row begins.
        items: int64 ``[P]``, the columns of S that are not 0, the item itself among them.
        cosines: float32 ``[P]``.
    """

    begins: Tensor
    items: Tensor
    cosines: Tensor

    def __init__(self, values: Tensor, offsets: Tensor, num_items: int, last: int = 0) -> None:
        super().__init__()
        if last:
            values, offsets = ragged.keep_last(values, offsets, last)
        first, others, cosine = similarities(values, offsets, num_items, inverse_frequency=False)
        own = torch.arange(1, num_items + 1)
        first, others = torch.cat([first, own]), torch.cat([others, own])
        cosine = torch.cat([cosine, torch.ones(num_items, dtype=cosine.dtype)])
        order = (first * (num_items + 1) + others).argsort()
        begins = torch.zeros(num_items + 2, dtype=torch.int64)
        begins[1:] = torch.bincount(first, minlength=num_items + 1).cumsum(0)
        self.num_items = num_items
        self.register_buffer("begins", begins, persistent=False)
        self.register_buffer("items", others[order], persistent=False)
        self.register_buffer("cosines", cosine[order].float(), persistent=False)

    def chances(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of each example the items that may be 1 in x_0, and how likely: rows and items int64
        ``[M]`` and chances ``[M]``. How many that are is read on the host.

        It is S[target], where the history's own items count (1 + 1.5 / (1 + d)) times as much, d
        being their distance to the target, of repeated ones the least; never more than 1.
        """
        width, rows = self.num_items + 1, batch.targets.shape[0]
        sizes = self.begins[batch.targets + 1] - self.begins[batch.targets]
        places, offsets = range_positions(self.begins[batch.targets], sizes)
        row = ragged.sequence_ids(offsets, places.shape[0])
        tokens = batch.item_ids.shape[0]
        owner = ragged.sequence_ids(batch.offsets, tokens).clamp(max=max(rows - 1, 0))
        distance = ragged.from_end(batch.offsets, tokens) + 1
        more = self.cosines.new_ones(rows * width)
        at = owner * width + batch.item_ids  # capacity holds item 0, whose column nothing reads
        more.scatter_reduce_(0, at, boost(distance).to(more.dtype), "amax")
        items = self.items[places]
        return row, items, (self.cosines[places] * more[row * width + items]).clamp(max=1.0)

    def drawn(self, batch: Batch, draws: Tensor) -> Tensor:
        """x_0 ``[B, V+1]`` of zeros and ones.

        Args:
            batch: the examples.
            draws: the step's seed ``[3]``, at their place.
        """
        row, items, chance = self.chances(batch)
        index = (row + rng.first_sequence(draws)) * (self.num_items + 1) + items
        word = rng.words(draws, index, rng.STREAM_LATENT, 0)
        x0 = self.cosines.new_zeros(batch.targets.shape[0], self.num_items + 1)
        x0[row, items] = (rng.to_uniform(word, chance.dtype) < chance).to(x0.dtype)
        return x0


def boost(distance: Tensor) -> Tensor:
    """1 + 1.5 / (1 + d) of distances."""
    return 1 + 1.5 / (1 + distance)
