"""``objective`` in Triton: all sums of Eq. 12 and of the log in one kernel, the rest in another.

Programs stride over tokens (the denoising error), users (the depth's entropy and the number of
levels computed) and read-outs (gates), and each writes one row of partial sums; a last program adds
the rows in their order. Backward is one kernel of what is constant or local to a user. A batch of
256 reads 40 KB: two launches and one are all that these take.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._heuristics import AMD
from ._launch import architecture, launch

TOKENS = 1024  # of a step of a program; as many (user, level) and (read-out, level) pairs
SLOTS = 128  # rows of partial sums, at most


@triton.jit
def _log_softmax(logits_ptr, user, there, LEVELS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Probabilities, logarithms (0 where there is none) and sum p log p of a tile of users."""
    level = tl.arange(0, BLOCK_K)
    inside = there[:, None] & (level < LEVELS)[None, :]
    at = logits_ptr + user.to(tl.int64)[:, None] * LEVELS + level[None, :]
    logit = tl.load(at, mask=inside, other=float("-inf")).to(tl.float32)
    top = tl.where(there, tl.max(logit, 1), 0.0)
    shifted = tl.where(inside, logit - top[:, None], 0.0)
    mass = tl.where(inside, tl.exp(shifted), 0.0)
    total = tl.where(there, tl.sum(mass, 1), 1.0)
    logarithm = tl.where(inside, shifted - tl.log(total)[:, None], 0.0)
    mass = tl.where(inside, tl.exp(logarithm), 0.0)
    return inside, mass, logarithm, tl.sum(mass * logarithm, 1)


@triton.jit(do_not_specialize=["batch", "rows"])
def _partials_kernel(
    error_ptr, offsets_ptr, computed_ptr, logits_ptr, gates_ptr, depth_ptr, sums_ptr, counts_ptr,
    batch, rows, LEVELS: tl.constexpr, BLOCK_K: tl.constexpr, TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
):
    slot, slots = tl.program_id(0), tl.num_programs(0)
    level = tl.arange(0, BLOCK_K)
    at_sum, at_count = sums_ptr + slot * 2 * BLOCK_K, counts_ptr + slot * 2 * BLOCK_K
    if error_ptr is not None:
        end = tl.load(offsets_ptr + batch).to(tl.int32)
        error = tl.zeros((TOKENS,), tl.float32)
        for start in range(slot * TOKENS, end, slots * TOKENS):
            token = start + tl.arange(0, TOKENS)
            error += tl.load(error_ptr + token, mask=token < end, other=0.0).to(tl.float32)
        tl.store(at_sum + BLOCK_K, tl.sum(error))
    entropy = tl.zeros((ROWS,), tl.float32)
    steps = tl.zeros((ROWS,), tl.int32)
    for start in range(slot * ROWS, batch, slots * ROWS):
        user = start + tl.arange(0, ROWS)
        there = user < batch
        length = tl.load(offsets_ptr + user + 1, mask=there, other=0)
        length -= tl.load(offsets_ptr + user, mask=there, other=0)
        computed = tl.load(computed_ptr + user, mask=there, other=0)
        steps += (length * computed).to(tl.int32)
        if logits_ptr is not None:
            _, _, _, negative = _log_softmax(logits_ptr, user, there, LEVELS, BLOCK_K)
            entropy -= negative
    tl.store(at_count + BLOCK_K, tl.sum(steps))
    tl.store(at_sum + BLOCK_K + 1, tl.sum(entropy))
    if gates_ptr is not None:
        gate = tl.zeros((BLOCK_K,), tl.float32)
        number = tl.zeros((BLOCK_K,), tl.int32)
        for start in range(slot * ROWS, rows, slots * ROWS):
            row = start + tl.arange(0, ROWS)
            depth = tl.load(depth_ptr + row, mask=row < rows, other=-1)
            reached = (level[:, None] <= depth[None, :]) & (level < LEVELS)[:, None]
            at = gates_ptr + level.to(tl.int64)[:, None] * rows + row[None, :]
            gate += tl.sum(tl.load(at, mask=reached, other=0.0).to(tl.float32), 1)
            number += tl.sum(reached.to(tl.int32), 1)
        tl.store(at_sum + level, gate)
        tl.store(at_count + level, number)


@triton.jit
def _column(ptr, column, slots, SLOTS: tl.constexpr, BLOCK_K: tl.constexpr):
    """The sum of one number over the rows of partial sums."""
    slot = tl.arange(0, SLOTS)
    return tl.sum(tl.load(ptr + slot * 2 * BLOCK_K + column, mask=slot < slots, other=0))


@triton.jit(do_not_specialize=["batch", "slots", "size"])
def _total_kernel(
    rec_ptr, cont_ptr, error_ptr, logits_ptr, gates_ptr, sums_ptr, counts_ptr, total_ptr,
    parts_ptr, gate_ptr, count_ptr, batch, slots, size, deno_weight, cont_weight, expl_weight,
    LEVELS: tl.constexpr, BLOCK_K: tl.constexpr, SLOTS: tl.constexpr,
):
    rec = tl.load(rec_ptr).to(tl.float32)
    deno = tl.zeros((), tl.float32)
    cont = tl.zeros((), tl.float32)
    entropy = tl.zeros((), tl.float32)
    count = _column(counts_ptr, BLOCK_K, slots, SLOTS, BLOCK_K).to(tl.int64) * size
    count = tl.maximum(count, 1).to(tl.float32)
    if error_ptr is not None:
        deno = _column(sums_ptr, BLOCK_K, slots, SLOTS, BLOCK_K) / count
    if cont_ptr is not None:
        cont = tl.load(cont_ptr).to(tl.float32)
    if logits_ptr is not None:
        entropy = _column(sums_ptr, BLOCK_K + 1, slots, SLOTS, BLOCK_K)
        entropy = entropy / tl.maximum(batch, 1).to(tl.float32)
    total = rec + deno_weight * deno + cont_weight * cont - expl_weight * entropy
    tl.store(total_ptr, total)
    tl.store(count_ptr, count)
    tl.store(parts_ptr, rec)
    tl.store(parts_ptr + 1, deno)
    tl.store(parts_ptr + 2, cont)
    tl.store(parts_ptr + 3, -entropy)
    tl.store(parts_ptr + 4, entropy)
    level = tl.arange(0, BLOCK_K)
    gate = tl.full((BLOCK_K,), float("nan"), tl.float32)
    if gates_ptr is not None:
        slot = tl.arange(0, SLOTS)
        at = slot[:, None] * 2 * BLOCK_K + level[None, :]
        mask = (slot < slots)[:, None]
        number = tl.sum(tl.load(counts_ptr + at, mask=mask, other=0), 0)
        summed = tl.sum(tl.load(sums_ptr + at, mask=mask, other=0.0), 0)
        gate = tl.where(number > 0, summed / tl.maximum(number, 1).to(tl.float32), gate)
    tl.store(gate_ptr + level, gate, mask=level < LEVELS)


@triton.jit(do_not_specialize=["tokens", "batch"])
def _objective_backward_kernel(
    grad_ptr, count_ptr, offsets_ptr, logits_ptr, d_cont_ptr, d_error_ptr, d_logits_ptr,
    tokens, batch, deno_weight, cont_weight, expl_weight,
    LEVELS: tl.constexpr, BLOCK_K: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
):
    program = tl.program_id(0)
    grad = tl.load(grad_ptr).to(tl.float32)
    if program == 0:
        tl.store(d_cont_ptr, cont_weight * grad)
    token = program * TOKENS + tl.arange(0, TOKENS)
    end = tl.load(offsets_ptr + batch)
    slope = tl.where(token < end, deno_weight * grad / tl.load(count_ptr), 0.0)
    tl.store(d_error_ptr + token, slope, mask=token < tokens)
    if logits_ptr is not None:
        user = program * ROWS + tl.arange(0, ROWS)
        inside, mass, logarithm, negative = _log_softmax(logits_ptr, user, user < batch, LEVELS,
                                                         BLOCK_K)
        d_logit = expl_weight * grad / tl.maximum(batch, 1).to(tl.float32)
        d_logit = d_logit * mass * (logarithm - negative[:, None])
        at = user.to(tl.int64)[:, None] * LEVELS + tl.arange(0, BLOCK_K)[None, :]
        tl.store(d_logits_ptr + at, d_logit, mask=inside)


def fwd(
    rec: Tensor, cont: Tensor | None, error: Tensor | None, offsets: Tensor, computed: Tensor,
    logits: Tensor | None, gates: Tensor | None, row_depth: Tensor, levels: int, size: int,
    deno_weight: float, cont_weight: float, expl_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``objective_fwd`` of the op's schema: L_tot, parts ``[5]``, gates ``[K]``, the error's n."""
    batch, rows = computed.shape[0], row_depth.shape[0]
    block = triton.next_power_of_2(max(levels, 2))
    pairs = max(1, TOKENS // block)
    tokens = 0 if error is None else error.shape[0]
    slots = max(triton.cdiv(tokens, TOKENS), triton.cdiv(max(batch, rows), pairs), 1)
    slots = min(slots, SLOTS)
    sums = torch.empty(slots, 2 * block, dtype=torch.float32, device=rec.device)
    counts = torch.empty(slots, 2 * block, dtype=torch.int32, device=rec.device)
    common = {"logits_ptr": logits, "gates_ptr": gates, "sums_ptr": sums, "counts_ptr": counts,
              "error_ptr": error, "batch": batch, "LEVELS": levels, "BLOCK_K": block}
    options = {"num_warps": 4}
    if architecture(rec.device) not in AMD:
        options["maxnreg"] = 64  # left alone, ptxas takes 48 for five levels and spills
    launch(_partials_kernel, (slots,), {
        **common, "offsets_ptr": offsets, "computed_ptr": computed, "depth_ptr": row_depth,
        "rows": rows, "TOKENS": TOKENS, "ROWS": pairs,
    }, options)
    total, count = rec.new_empty(()), rec.new_empty((), dtype=torch.float32)
    parts, gate = rec.new_empty(5), rec.new_empty(levels)
    launch(_total_kernel, (1,), {
        **common, "rec_ptr": rec, "cont_ptr": cont, "total_ptr": total, "parts_ptr": parts,
        "gate_ptr": gate, "count_ptr": count, "slots": slots, "size": size,
        "deno_weight": deno_weight, "cont_weight": cont_weight, "expl_weight": expl_weight,
        "SLOTS": SLOTS,
    }, {"num_warps": 4})
    return total, parts, gate, count


def bwd(
    grad: Tensor, count: Tensor, offsets: Tensor, logits: Tensor | None, tokens: int,
    deno_weight: float, cont_weight: float, expl_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``objective_bwd``: the gradients of cont, error and logits."""
    batch = offsets.shape[0] - 1
    levels = 1 if logits is None else logits.shape[1]
    block = triton.next_power_of_2(max(levels, 2))
    pairs = max(1, TOKENS // block)
    d_cont, d_error = grad.new_empty(()), grad.new_empty(tokens)
    d_logits = grad.new_empty(0) if logits is None else torch.empty_like(logits)
    programs = max(triton.cdiv(tokens, TOKENS), triton.cdiv(batch, pairs), 1)
    launch(_objective_backward_kernel, (programs,), {
        "grad_ptr": grad, "count_ptr": count, "offsets_ptr": offsets, "logits_ptr": logits,
        "d_cont_ptr": d_cont, "d_error_ptr": d_error, "d_logits_ptr": d_logits, "tokens": tokens,
        "batch": batch, "deno_weight": deno_weight, "cont_weight": cont_weight,
        "expl_weight": expl_weight, "LEVELS": levels, "BLOCK_K": block, "TOKENS": TOKENS,
        "ROWS": pairs,
    }, {"num_warps": 4})
    return d_cont, d_error, d_logits
