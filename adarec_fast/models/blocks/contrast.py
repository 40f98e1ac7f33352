"""Contrast of pairs: NT-Xent over dot products (Chen et al., ICML 2020), without normalisation.

Rows 2i and 2i + 1 are a pair. Of every row the other 2B - 1 rows are what its partner is told from:

    L = mean over rows r of  -log softmax_{s != r} (z_r z_s / tau)[partner of r]

LayerNorm's outputs have squared norms near D, and of 50 of them 50 D: sums are float32 or wider.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


def pair_products(first: Tensor, second: Tensor) -> Tensor:
    """z_r z_s ``[2B, 2B]`` of the pairs (first_i, second_i), ``[B, d]`` each."""
    with torch.autocast(first.device.type, enabled=False):
        rows = torch.stack([first, second], 1).flatten(0, 1)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return rows @ rows.T


def pair_infonce(
    products: Tensor,
    temperature: float = 1.0,
    *,
    ids: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """The mean of -log softmax at the partners, a scalar; 0 if there is no pair.

    Args:
        products: ``[2B, 2B]``, rows 2i and 2i + 1 being a pair, float32 or wider.
        temperature: tau.
        ids: int64 ``[B]``; pairs of equal ids are not told from each other.
        valid: bool ``[B]``; pairs that only fill up are nobody's others, and no row of the mean.

    Example:
        >>> z = torch.eye(2)
        >>> pair_infonce(pair_products(z, z))  # ln(e + 2) - 1
        tensor(0.5514)
    """
    rows = products.shape[0]
    pair = torch.arange(rows, device=products.device) // 2
    hidden = torch.eye(rows, dtype=torch.bool, device=products.device)
    partner = (pair[:, None] == pair) & ~hidden
    if ids is not None:
        hidden = hidden | ((ids[pair][:, None] == ids[pair]) & ~partner)
    counted = torch.ones(rows, dtype=torch.bool, device=products.device)
    if valid is not None:
        counted = valid[pair]
        hidden = hidden | ~counted
    # A row that only fills up has nothing to choose from; its partner keeps the numbers finite.
    logits = (products / temperature).masked_fill(hidden & ~partner, float("-inf"))
    own = logits.gather(1, (torch.arange(rows, device=products.device) ^ 1)[:, None])[:, 0]
    losses = torch.where(counted, logits.logsumexp(1) - own, 0.0)
    return losses.sum() / counted.sum().clamp(min=1)


class Tokens(NamedTuple):
    """Where tokens lie in the concatenation of a sequence's positions.

    Attributes:
        rows: int64 ``[N]``, the sequence of each token, 0..S-1; S: it takes no part.
        places: int64 ``[N]``, its position from the end, 0..L-1.
        sequences: S.
        longest: L.
    """

    rows: Tensor
    places: Tensor
    sequences: int
    longest: int


def concatenated(x: Tensor, tokens: Tokens) -> Tensor:
    """``[S, L D]``: every sequence's vectors by position, 0 where there is none."""
    shape = tokens.sequences + 1, tokens.longest, x.shape[1]
    # Tokens of no sequence share a row that is cut off again.
    dense = x.new_zeros(shape).index_put((tokens.rows, tokens.places), x)
    return dense[:-1].flatten(1)


def overlap_products(x: Tensor, tokens: Tokens) -> Tensor:
    """Products ``[S, S]`` of the concatenations: sum_q x_{a,q} x_{b,q}, q present in both.

    Histories are short: most have no vector at most of the 50 positions. On a CPU, sequences are
    sorted by their extent and positions taken in stretches 1, 1, 2, 4, 8 ... long, each with the
    sequences that reach it: a fifteenth of the dense product's work. On a GPU, which must not wait
    for how many those are, it is one dense product.

    Args:
        x: ``[N, D]``; what lies at tokens of no sequence is not read.
        tokens: where they lie.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if x.device.type != "cpu":
            x = torch.where((tokens.rows < tokens.sequences)[:, None], x, 0.0)
            dense = concatenated(x, tokens)
            return dense @ dense.T
        products: Tensor = _Overlap.apply(x, tokens)
        return products


class _Overlap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tokens) -> Tensor:
        rows, places, count, longest = tokens
        extent = torch.zeros(count + 1, dtype=torch.int64)
        extent.scatter_reduce_(0, rows, places + 1, "amax")
        extent, order = extent[:-1].sort(descending=True, stable=True)
        rank = torch.empty(count + 1, dtype=torch.int64)
        rank[order], rank[count] = torch.arange(count), count
        sorted_rows = rank[rows]
        products = x.new_zeros(count, count)
        ctx.stretches, begin = [], 0
        while begin < longest:
            end = min(longest, max(begin + 1, 2 * begin))
            reach = int((extent > begin).sum())
            chosen = ((places >= begin) & (places < end) & (rows < count)).nonzero()[:, 0]
            where = sorted_rows[chosen], places[chosen] - begin
            block = x.new_zeros(reach, end - begin, x.shape[1])
            block[where] = x[chosen]
            flat = block.flatten(1)
            products[:reach, :reach].addmm_(flat, flat.T)
            ctx.stretches.append((block, chosen, where))
            begin = end
        ctx.order, ctx.shape, ctx.rank = order, x.shape, rank[:-1]
        return products[rank[:-1]][:, rank[:-1]]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        both = (grad + grad.T)[ctx.order][:, ctx.order]
        d_x = both.new_zeros(ctx.shape)
        for block, chosen, where in ctx.stretches:
            reach = block.shape[0]
            d_block = (both[:reach, :reach] @ block.flatten(1)).view_as(block)
            d_x[chosen] = d_block[where]
        return d_x, None


