"""``memory_topk``: :func:`score_topk` of the catalogue's scores and what a memory adds to them.

A memory adds alpha log(1 + gamma S_j) >= 0 to the score of item j, where
S_j = sum_s decay^s R[i_{n-s}, j] over a history i_1..i_n, and R are item-to-item weights with few
entries a row. So an item of the k best is one of the k best without the memory, or has S_j > 0: the
kernels rank the catalogue first and then those few items that the history leads to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ragged
from ..reference.memory_topk import memory_topk as reference
from ._library import check_index, check_shape, choose, define, require


class TransitionWeights(NamedTuple):
    """R in CSR form, and how it is read.

    Attributes:
        rows: int64 ``[V+2]``: item i's entries lie at ``rows[i]`` to ``rows[i + 1]``; item 0,
            padding, has none.
        neighbours: int32 ``[E]``, their items, 1..V, rising in each row.
        weights: float32 ``[E]``, >= 0.
        widest: of a row, its greatest number of entries.
        alpha, gamma, decay: finite, >= 0.
    """

    rows: Tensor
    neighbours: Tensor
    weights: Tensor
    widest: int
    alpha: float
    gamma: float
    decay: float

    def dense(self) -> Tensor:
        """R as ``[V+1, V+1]``."""
        width = self.rows.shape[0] - 1
        row = ragged.sequence_ids(self.rows, self.neighbours.shape[0])
        matrix = self.weights.new_zeros(width, width)
        return matrix.index_put((row, self.neighbours.long()), self.weights)


def check_factors(alpha: float, gamma: float, decay: float) -> None:
    """Raise ValueError unless all three are finite and at least 0."""
    for name, value in (("alpha", alpha), ("gamma", gamma), ("decay", decay)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}={value} must be finite and at least 0")


def _fake_forward(users: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    k = arguments[9]
    return (
        users.new_empty(users.shape[0], k),
        users.new_empty(users.shape[0], k, dtype=torch.int64),
    )


define(
    "memory_topk",
    "(Tensor users, Tensor items, Tensor values, Tensor offsets, Tensor seen, Tensor seen_offsets, "
    "Tensor rows, Tensor neighbours, Tensor weights, int widest, int k, float alpha, float gamma, "
    "float decay) -> (Tensor, Tensor)",
    None,
    _fake_forward,
    None,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
)


def memory_topk(
    users: Tensor,
    items: Tensor,
    values: Tensor,
    offsets: Tensor,
    seen: Tensor,
    seen_offsets: Tensor,
    memory: TransitionWeights,
    k: int,
    *,
    max_length: int,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The k best items of every user; among equal scores the lower id comes first. No gradient.

    Args:
        users: ``[B, D]`` float.
        items: ``[V+1, D]``; row 0 is padding and never appears.
        values: int64 ``[N]``, the histories that the memory reads, packed.
        offsets: int64 ``[B+1]``; of at most ``max_length`` items.
        seen: int64, the items of each user that score -inf, packed; may be empty.
        seen_offsets: int64 ``[B+1]``.
        memory: what is added.
        k: 1 <= k <= V.
        max_length: of a history, for the reference's padding.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        scores ``[B, k]``, falling, and items int64 ``[B, k]``.

    Raises:
        ValueError: a shape, a dtype, k, alpha, gamma or decay that does not fit, naming the
            argument.
        BackendError: the backend cannot run here.
    """
    check_shape("users", users, None, None)
    check_shape("items", items, None, users.shape[1])
    check_index("values", values)
    check_index("offsets", offsets, users.shape[0] + 1)
    check_index("seen", seen)
    check_index("seen_offsets", seen_offsets, users.shape[0] + 1)
    catalogue = items.shape[0] - 1
    require(
        1 <= k <= catalogue,
        lambda: f"k={k} must lie in 1..{catalogue}, the number of items",
    )
    check_index("rows", memory.rows, catalogue + 2)
    check_index("neighbours", memory.neighbours, dtype=torch.int32)
    check_shape("weights", memory.weights, memory.neighbours.shape[0])
    check_factors(memory.alpha, memory.gamma, memory.decay)
    chosen = choose("memory_topk", backend, users.device.type, users.dtype)
    if chosen != "reference":
        with torch.no_grad():
            return torch.ops.adarec_fast.memory_topk_fwd(
                users.detach(), items.detach(), values, offsets, seen, seen_offsets, memory.rows,
                memory.neighbours, memory.weights, memory.widest, k, memory.alpha, memory.gamma,
                memory.decay, chosen,
            )  # fmt: skip
    mask = torch.zeros(users.shape[0] + 1, items.shape[0], dtype=torch.bool, device=users.device)
    mask = mask.index_put(
        (ragged.sequence_ids(seen_offsets, seen.shape[0]), seen),
        torch.ones((), dtype=torch.bool, device=users.device),
    )
    item_ids = ragged.to_padded(values, offsets, max_length)
    kind = torch.promote_types(users.dtype, torch.float32)
    scores, best = reference(
        users.to(kind), items.to(kind), item_ids, memory.dense().to(kind), mask[:-1], k,
        memory.alpha, memory.gamma, memory.decay,
    )  # fmt: skip
    return scores.to(users.dtype), best
