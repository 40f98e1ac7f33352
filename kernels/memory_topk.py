"""``memory_topk`` in Triton: the ranking of ``score_topk``, and then what a history leads to.

A program takes an item of a history and some of its neighbours. The sum S of a neighbour j is
looked up and not gathered: in the row of each item of the history j is found by bisection, so that
sums run over the history in one order, no two programs write to one place, and there is no
[users, items] table. Of the programs that meet j, that of the earliest item keeps it. A second
kernel, a program a user, adds to the k best what they gain, and lets the candidates compete with
them.

1,024 histories of 8 items with 60 neighbours are 8,192 programs of 8 bisections of 6 steps; one of
50 items has 100 programs of 50.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._jagged import sequence_of
from ._launch import launch, search_steps
from .score_topk import DEPTH, NONE, UNUSED, _first_from, _key, _score_and_item, sort_seen
from .score_topk import fwd as score_topk

# Neighbours that a program takes, and of the k best those that it compares them with at once.
LANES = tl.constexpr(64)
# Keys that a program keeps in registers.
WIDEST = 1024


@triton.jit
def _gain(values_ptr, rows_ptr, neighbours_ptr, weights_ptr, item, there, begin, own, end, decay):
    """S of each item, and 1 where an item of the history before ``own`` leads to it."""
    total = tl.zeros_like(item).to(tl.float32)
    earlier = tl.zeros_like(item).to(tl.int32)
    fading = tl.full((), 1.0, tl.float32)
    for back in range(0, (end - begin).to(tl.int32)):
        at = end - 1 - back
        source = tl.load(values_ptr + at)
        lower = tl.load(rows_ptr + source) + tl.zeros_like(item).to(tl.int64)
        upper = tl.where(there, tl.load(rows_ptr + source + 1), lower)
        place = _first_from(neighbours_ptr, lower, upper, item)
        inside = place < upper
        found = inside & (tl.load(neighbours_ptr + place, mask=inside, other=0) == item)
        weight = fading * tl.load(weights_ptr + place, mask=found, other=0.0)
        total += weight
        earlier = tl.where(found & (at < own), 1, earlier)
        fading = (fading * decay).to(tl.float32)
    return total, earlier


@triton.jit(do_not_specialize=["tokens", "users", "k", "steps", "blocks"])
def _candidates_kernel(
    users_ptr, items_ptr, values_ptr, offsets_ptr, sorted_ptr, seen_offsets_ptr, rows_ptr,
    neighbours_ptr, weights_ptr, best_ptr, keys_ptr, tokens, users, k, steps, blocks, alpha, gamma,
    decay, D: tl.constexpr, DEPTH: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    user = tl.sum(sequence_of(token + tl.zeros((1,), tl.int64), offsets_ptr, users, steps))
    keys = tl.zeros((LANES,), tl.int64) + NONE
    to = (token * blocks + tl.program_id(1)) * LANES + lane
    if user < users:
        begin, end = tl.load(offsets_ptr + user), tl.load(offsets_ptr + user + 1)
        source = tl.load(values_ptr + token)
        entry = tl.load(rows_ptr + source) + tl.program_id(1) * LANES + lane
        there = entry < tl.load(rows_ptr + source + 1)
        item = tl.load(neighbours_ptr + entry, mask=there, other=0)
        gain, earlier = _gain(
            values_ptr, rows_ptr, neighbours_ptr, weights_ptr, item, there, begin, token, end, decay
        )
        there = there & (gain > 0.0) & (earlier == 0)
        lower = tl.load(seen_offsets_ptr + user) + tl.zeros_like(item).to(tl.int64)
        upper = tl.load(seen_offsets_ptr + user + 1) + tl.zeros_like(item).to(tl.int64)
        place = _first_from(sorted_ptr, lower, upper, item)
        known = tl.load(sorted_ptr + place, mask=place < upper, other=0)
        there = there & (known != item)
        for start in range(0, k, LANES):
            rival = start + lane
            one = tl.load(best_ptr + user.to(tl.int64) * k + rival, mask=rival < k, other=-1)
            same = tl.max((item.to(tl.int64)[:, None] == one[None, :]).to(tl.int32), 1)
            there = there & (same == 0)
        score = tl.zeros((LANES,), tl.float32)
        for start in range(0, D, DEPTH):
            dims = start + tl.arange(0, DEPTH)
            inside = dims < D
            x = tl.load(users_ptr + user.to(tl.int64) * D + dims, mask=inside, other=0.0)
            at = item.to(tl.int64)[:, None] * D + dims[None, :]
            w = tl.load(items_ptr + at, mask=there[:, None] & inside[None, :], other=0.0)
            score += tl.sum(w * x[None, :], 1)
        score += (alpha * tl.log(1.0 + gamma * gain)).to(tl.float32)
        keys = tl.where(there, _key(score, item), NONE)
    tl.store(keys_ptr + to, keys)


@triton.jit(do_not_specialize=["k", "blocks"])
def _merge_kernel(
    values_ptr, offsets_ptr, rows_ptr, neighbours_ptr, weights_ptr, keys_ptr, scores_ptr, best_ptr,
    k, blocks, alpha, gamma, decay, KEPT: tl.constexpr,
):
    user = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets_ptr + user), tl.load(offsets_ptr + user + 1)
    place = tl.arange(0, KEPT)
    there = place < k
    item = tl.load(best_ptr + user * k + place, mask=there, other=0).to(tl.int32)
    score = tl.load(scores_ptr + user * k + place, mask=there, other=0.0)
    gain, _ = _gain(
        values_ptr, rows_ptr, neighbours_ptr, weights_ptr, item, there, begin, begin, end, decay
    )
    # What was seen is at -inf, and stays there.
    score += (alpha * tl.log(1.0 + gamma * gain)).to(tl.float32)
    kept = tl.where(there, _key(score, item), UNUSED)
    lane = tl.arange(0, LANES)
    for block in range(0, ((end - begin) * blocks).to(tl.int32)):
        keys = tl.load(keys_ptr + (begin * blocks + block) * LANES + lane)
        better = tl.full((), 1, tl.int32)
        while better > 0:
            best, worst = tl.max(keys), tl.min(kept)
            kept = tl.where((kept == worst) & (best > worst), best, kept)
            keys = tl.where(keys == best, NONE, keys)
            better = (best > worst).to(tl.int32)
    kept = tl.sort(tl.where(there, kept, NONE), descending=True)
    score, item = _score_and_item(kept)
    tl.store(scores_ptr + user * k + place, score, mask=there)
    tl.store(best_ptr + user * k + place, item, mask=there)


def fwd(
    users: Tensor,
    items: Tensor,
    values: Tensor,
    offsets: Tensor,
    seen: Tensor,
    seen_offsets: Tensor,
    rows: Tensor,
    neighbours: Tensor,
    weights: Tensor,
    widest: int,
    k: int,
    alpha: float,
    gamma: float,
    decay: float,
) -> tuple[Tensor, Tensor]:
    """``memory_topk_fwd`` of the op's schema: scores ``[B, k]`` and items int64 ``[B, k]``.

    Raises:
        ValueError: ``k`` is over 1,024.
    """
    if k > WIDEST:
        raise ValueError(
            f"k={k}: the triton backend ranks up to {WIDEST} items with a memory; "
            "use backend='packed'"
        )
    given = users.dtype
    # Sums and what is added to scores are float32, so that scores have to be.
    users, items, weights = (t.float().contiguous() for t in (users, items, weights))
    values, offsets, seen, seen_offsets, rows, neighbours = (
        t.contiguous() for t in (values, offsets, seen, seen_offsets, rows, neighbours)
    )
    batch, size = users.shape
    scores, best = score_topk(users, items, seen, seen_offsets, k, float("-inf"))
    blocks = triton.cdiv(widest, LANES.value)
    tokens = values.shape[0]
    if not (tokens and blocks and neighbours.shape[0]):
        return scores.to(given), best
    in_order = sort_seen(seen, seen_offsets)
    keys = torch.empty(tokens, blocks * LANES.value, dtype=torch.int64, device=users.device)
    factors = {"alpha": alpha, "gamma": gamma, "decay": decay}
    read = {
        "values_ptr": values, "offsets_ptr": offsets, "rows_ptr": rows,
        "neighbours_ptr": neighbours, "weights_ptr": weights, "keys_ptr": keys, "best_ptr": best,
        "k": k, "blocks": blocks,
    }  # fmt: skip
    candidates = {
        **read, **factors, "users_ptr": users, "items_ptr": items, "sorted_ptr": in_order,
        "seen_offsets_ptr": seen_offsets, "tokens": tokens, "users": batch,
        "steps": search_steps(batch), "D": size, "DEPTH": DEPTH,
    }  # fmt: skip
    launch(_candidates_kernel, (tokens, blocks), candidates, {"num_warps": 2})
    kept = max(16, triton.next_power_of_2(k))
    merge = {**read, **factors, "scores_ptr": scores, "KEPT": kept}
    launch(_merge_kernel, (batch,), merge, {"num_warps": max(1, min(4, kept // 128))})
    return scores.to(given), best
