"""Binary cross entropy of a positive item and sampled negative ones, the loss of most systems.

    L = sum_r w_r [softplus(-h_r e(p_r)) + sum_m softplus(h_r e(n_rm))] / R

over the R rows that have a target (Kang and McAuley 2018). The public code writes
log(sigmoid(x) + 1e-24), which differs where |x| > 55 alone.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def sampled_bce(
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    negatives: Tensor,
    weights: Tensor | None = None,
    *,
    reduction: Literal["mean", "sum_of_means"] = "mean",
) -> Tensor:
    """The mean over the rows that have a target; products and sums in float32 or wider.

    Args:
        hidden: ``[R, D]``; rows of target 0 may hold anything, and get a gradient of 0.
        table: ``[V+1, D]``, the item embeddings; row 0 gets no gradient.
        positives: int64 ``[R]`` in 0..V; rows of target 0 are left out of sum and count.
        negatives: int64 ``[R, M]`` in 1..V.
        weights: ``[R]``, what each row's loss is multiplied by; the count stays that of rows.
        reduction: ``"mean"``: a row's M negatives are added up; ``"sum_of_means"``: they are
            averaged, the mean over positives plus the mean over all negatives (Caser).

    Returns:
        A scalar; 0 if no row counts.

    Example:
        >>> h, table = torch.zeros(2, 4), torch.ones(4, 4)
        >>> sampled_bce(h, table, torch.tensor([1, 2]), torch.tensor([[3], [3]]))
        tensor(1.3863)
    """
    items = torch.cat([positives[:, None], negatives], 1)
    rows = F.embedding(items, table, padding_idx=0)
    counted = positives > 0
    losses = bce_of_rows(hidden, rows[:, 0], rows[:, 1:], counted, reduction)
    if weights is not None:
        losses = losses * weights.to(losses.dtype)
    return losses.sum() / counted.sum().clamp(min=1)


def bce_of_rows(
    hidden: Tensor,
    positive: Tensor,
    negative: Tensor,
    counted: Tensor,
    reduction: Literal["mean", "sum_of_means"] = "mean",
) -> Tensor:
    """Each row's loss ``[R]``, 0 where it does not count.

    Args:
        hidden: ``[R, D]``; rows that do not count may hold anything.
        positive: ``[R, D]``, finite, the vector of each target.
        negative: ``[R, M, D]``, finite.
        counted: bool ``[R]``.
        reduction: as for :func:`sampled_bce`.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        # Before the products: 0 times what a row of capacity holds may be NaN.
        rows = torch.where(counted[:, None], hidden.to(wide), 0.0)
        up = (rows * positive.to(wide)).sum(-1)
        down = (rows[:, None] * negative.to(wide)).sum(-1)
        others = F.softplus(down)
        pulled = others.sum(-1) if reduction == "mean" else others.mean(-1)
        return torch.where(counted, F.softplus(-up) + pulled, 0.0)
