"""``score_topk``: catalogue scores, seen items masked, top k, with no [users, items] matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ragged
from ..reference.score_topk import score_topk as reference
from ._library import check_index, check_shape, choose, define, require


def _fake_forward(users: Tensor, items: Tensor, seen: Tensor, seen_offsets: Tensor, k: int,
                  *_: Any) -> tuple[Tensor, Tensor]:
    return (
        users.new_empty(users.shape[0], k),
        users.new_empty(users.shape[0], k, dtype=torch.int64),
    )


define(
    "score_topk",
    "(Tensor users, Tensor items, Tensor seen, Tensor seen_offsets, int k, float seen_score) "
    "-> (Tensor, Tensor)",
    None,
    _fake_forward,
    None,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
)


def score_topk(
    users: Tensor,
    items: Tensor,
    seen: Tensor,
    seen_offsets: Tensor,
    k: int,
    *,
    seen_score: float = float("-inf"),
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The k best items of every user; among equal scores the lower id comes first. No gradient.

    Args:
        users: ``[B, D]`` float.
        items: ``[V+1, D]``; row 0 is padding and never appears.
        seen: int64, the seen items of all users, packed; may be empty.
        seen_offsets: int64 ``[B+1]``.
        k: 1 <= k <= V.
        seen_score: what a seen item scores: -inf, or 0 as in the authors' code.
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        scores ``[B, k]``, falling, and items int64 ``[B, k]``.

    Raises:
        ValueError: a shape, a dtype or k that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_shape("users", users, None, None)
    check_shape("items", items, None, users.shape[1])
    check_index("seen", seen)
    check_index("seen_offsets", seen_offsets, users.shape[0] + 1)
    catalogue = items.shape[0] - 1
    require(
        1 <= k <= catalogue,
        lambda: f"k={k} must lie in 1..{catalogue}, the number of items",
    )
    chosen = choose("score_topk", backend, users.device.type, users.dtype)
    if chosen != "reference":
        with torch.no_grad():
            return torch.ops.adarec_fast.score_topk_fwd(
                users.detach(), items.detach(), seen, seen_offsets, k, seen_score, chosen
            )
    mask = torch.zeros(users.shape[0] + 1, items.shape[0], dtype=torch.bool, device=users.device)
    mask = mask.index_put(
        (ragged.sequence_ids(seen_offsets, seen.shape[0]), seen),
        torch.ones((), dtype=torch.bool, device=users.device),
    )
    return reference(users, items, mask[:-1], k, seen_score)


def best_of_several(
    users: Tensor, items: Tensor, seen: Tensor, seen_offsets: Tensor, k: int, *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """:func:`score_topk` of users ``[B, K, D]``: an item's score is the greatest of K products.

    An item among the k best is among those of the vector that it scores by, so that K lists of k
    hold them all.
    """
    lists = [
        score_topk(users[:, one].contiguous(), items, seen, seen_offsets, k, backend=backend)
        for one in range(users.shape[1])
    ]
    scores, found = (torch.cat(parts, 1) for parts in zip(*lists, strict=True))
    # By item, and of each item by score: all but the first of an item are left out.
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, found.gather(1, order).argsort(dim=1, stable=True))
    scores, found = scores.gather(1, order), found.gather(1, order)
    again = torch.zeros_like(found, dtype=torch.bool)
    again[:, 1:] = found[:, 1:] == found[:, :-1]
    # Among equal ones the lower id comes first, and behind all of them what was left out.
    scores = scores.masked_fill(again, float("-inf"))
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, best), found.gather(1, best)
