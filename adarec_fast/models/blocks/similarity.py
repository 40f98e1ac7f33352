"""ItemCF-IUF: which item most resembles which, by who has both.

    C_ij = sum over users with i and j of 1 / log(1 + n_u),    s_ij = C_ij / sqrt(N_i N_j)

where n_u counts a user's distinct items and N_i the users that have i (Breese et al. 1998).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import ragged
from ...data.flat import range_positions

_PAIRS = 1 << 22  # counted at once


def similarities(
    values: Tensor, offsets: Tensor, num_items: int, *, inverse_frequency: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Every s_ij > 0 with i != j, by i and then by j: int64 ``[P]`` i, j, and float64 ``[P]``.

    Args:
        values: int64 ``[N]``, items 1..num_items, on the CPU.
        offsets: int64 ``[U+1]``.
        num_items: V.
        inverse_frequency: as above; False: each user counts 1, and s is the cosine of the columns
            of who has what.
    """
    width = num_items + 1
    owner = ragged.sequence_ids(offsets, values.shape[0])
    distinct = torch.unique(owner * width + values)
    owner, items = distinct // width, distinct % width
    users = offsets.shape[0] - 1
    sizes = torch.bincount(owner, minlength=users)
    begins = sizes.cumsum(0) - sizes
    keys = torch.zeros(0, dtype=torch.int64)
    counts = torch.zeros(0, dtype=torch.float64)
    # Users in runs of so many pairs; a user alone may have more.
    run = (sizes.square().cumsum(0) - 1).clamp(min=0) // _PAIRS
    for part in run.unique_consecutive():
        chosen = (run[owner] == part).nonzero()[:, 0]
        mine = owner[chosen]
        others, _ = range_positions(begins[mine], sizes[mine])
        first = chosen.repeat_interleave(sizes[mine])
        apart = first != others
        first, others = first[apart], others[apart]
        found = items[first] * width + items[others]
        weight = torch.ones(first.shape, dtype=torch.float64)
        if inverse_frequency:
            weight /= torch.log1p(sizes[owner[first]].double())
        keys, which = torch.unique(torch.cat([keys, found]), return_inverse=True)
        counts = torch.zeros(keys.shape, dtype=torch.float64).index_add_(
            0, which, torch.cat([counts, weight])
        )
    had = torch.bincount(items, minlength=width).double()
    first, others = keys // width, keys % width
    return first, others, counts / (had[first] * had[others]).sqrt()


def most_similar(values: Tensor, offsets: Tensor, num_items: int) -> Tensor:
    """The item most similar to each, int64 ``[V+1]``; of equals the lowest; 0: it has none.

    Example:
        >>> lists = torch.tensor([1, 2, 1, 2, 3, 2, 3]), torch.tensor([0, 2, 5, 7])
        >>> most_similar(*lists, num_items=3)
        tensor([0, 2, 1, 2])
    """
    first, others, similarity = similarities(values, offsets, num_items)
    best = torch.zeros(num_items + 1, dtype=torch.float64)
    best.scatter_reduce_(0, first, similarity, "amax")
    top = similarity == best[first]
    found = torch.full((num_items + 1,), num_items + 1)
    found.scatter_reduce_(0, first[top], others[top], "amin")
    return torch.where(found > num_items, 0, found)
