"""``embedding`` in Triton: gather, position, LayerNorm and dropout in one kernel; backward in two.

Forward reads a row of the table and one of the positions for every token and writes one: bound by
memory, and at a batch of 256 by its launch.

Backward of a tile of tokens makes the rows again, takes the gradient through dropout and LayerNorm,
and finds the tokens' places in the order of items: by counting how many tokens come before, as long
as all pairs of tokens are fewer than what a radix sort's launches would cost, else by torch's. The
second kernel sums: rows of one item, which lie next to each other in that order, go straight into
the table's gradient; rows of one position; and the partials of LayerNorm's parameters. Every sum
has one owner and one order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import rng
from ._jagged import sequence_of
from ._launch import launch, multiprocessors, padded_size, search_steps
from ._mlp import normalise
from .philox import keep, philox4

ELEMENTS = 1024  # of a tile, 8 a thread
OTHERS = 256  # tokens that a tile's are compared with at once
COUNTED = 8192  # tokens that are ranked by counting; above, 67 million comparisons and more
PLACES, STEP = 4, 2048  # places in the order of items a program has; elements of their rows at once
SEQUENCES = 512  # of a program that sums a position
STREAM = tl.constexpr(rng.STREAM_EMBEDDING)
NO_ITEM = tl.constexpr(2**31 - 1)  # the key of capacity, behind all items


@triton.jit
def _normalised(
    token, ids_ptr, offsets_ptr, table_ptr, positions_ptr, tokens, batch, steps, eps,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Of a tile of tokens: whether they exist, their items, rows before the affine part, 1/sigma"""
    dims = tl.arange(0, BLOCK_D)
    sequence = sequence_of(token, offsets_ptr, batch, steps)
    real = (token < tokens) & (sequence < batch)
    last = tl.load(offsets_ptr + sequence + 1, mask=real, other=0) - 1
    item = tl.load(ids_ptr + token, mask=real, other=0)
    inside = (dims < D)[None, :]
    mask = real[:, None] & inside
    x = tl.load(table_ptr + item[:, None] * D + dims[None, :], mask=mask, other=0.0)
    at = positions_ptr + (last - token)[:, None] * D + dims[None, :]
    x = x.to(tl.float32) + tl.load(at, mask=mask, other=0.0).to(tl.float32)
    normal, inverse = normalise(x, inside, eps, D)
    return real, item, normal, inverse


@triton.jit
def _dropped(x, token, seed_ptr, threshold, keep_scale, D: tl.constexpr, BLOCK_D: tl.constexpr,
             DROPOUT: tl.constexpr):
    """Dropout of a tile, and of its gradient."""
    if DROPOUT:
        index = token[:, None] * D + tl.arange(0, BLOCK_D)[None, :]
        word, _, _, _ = philox4(seed_ptr, index, STREAM, 0, D)
        x = tl.where(keep(word, threshold), x * keep_scale, 0.0)
    return x


@triton.jit(do_not_specialize=["tokens", "batch", "steps", "threshold"])
def _forward_kernel(
    ids_ptr, offsets_ptr, table_ptr, positions_ptr, weight_ptr, bias_ptr, seed_ptr, x_ptr,
    tokens, batch, steps, eps, threshold, keep_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, DROPOUT: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    real, _, normal, _ = _normalised(token, ids_ptr, offsets_ptr, table_ptr, positions_ptr, tokens,
                                     batch, steps, eps, D, BLOCK_D)
    weight = tl.load(weight_ptr + dims, mask=dims < D, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + dims, mask=dims < D, other=0.0).to(tl.float32)
    x = normal * weight[None, :] + bias[None, :]
    x = _dropped(x, token, seed_ptr, threshold, keep_scale, D, BLOCK_D, DROPOUT)
    # Without layers these rows are E itself, which plain PyTorch may read at capacity, too.
    x = tl.where(real[:, None], x, 0.0)
    mask = (token < tokens)[:, None] & (dims < D)[None, :]
    tl.store(x_ptr + token[:, None] * D + dims[None, :], x, mask=mask)


@triton.jit
def _tokens_before(key, token, ids_ptr, end, ROWS: tl.constexpr, OTHERS: tl.constexpr):
    """How many tokens have a smaller key, or the same and come earlier; int32 ``[ROWS]``."""
    before = tl.zeros((ROWS,), tl.int32)
    for start in range(0, end, OTHERS):
        other = start + tl.arange(0, OTHERS)
        theirs = tl.load(ids_ptr + other, mask=other < end, other=NO_ITEM).to(tl.int32)
        smaller = theirs[None, :] < key[:, None]
        earlier = (theirs[None, :] == key[:, None]) & (other[None, :] < token[:, None])
        before += tl.sum((smaller | earlier).to(tl.int32), 1)
    return before


@triton.jit(do_not_specialize=["tokens", "batch", "steps", "threshold"])
def _rows_backward_kernel(
    grad_ptr, ids_ptr, offsets_ptr, table_ptr, positions_ptr, weight_ptr, seed_ptr,
    d_rows_ptr, key_ptr, order_ptr, d_weight_ptr, d_bias_ptr,
    tokens, batch, steps, eps, threshold, keep_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, OTHERS: tl.constexpr,
    DROPOUT: tl.constexpr, COUNT: tl.constexpr,
):
    slot = tl.program_id(0)
    dims = tl.arange(0, BLOCK_D)
    inside = (dims < D)[None, :]
    weight = tl.load(weight_ptr + dims, mask=dims < D, other=0.0).to(tl.float32)
    d_weight = tl.zeros((BLOCK_D,), tl.float32)
    d_bias = tl.zeros((BLOCK_D,), tl.float32)
    end = tl.load(offsets_ptr + batch).to(tl.int32)
    for tile in range(slot, tl.cdiv(tokens, ROWS), tl.num_programs(0)):
        token = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        real, item, normal, inverse = _normalised(
            token, ids_ptr, offsets_ptr, table_ptr, positions_ptr, tokens, batch, steps, eps, D,
            BLOCK_D,
        )
        at = token[:, None] * D + dims[None, :]
        mask = real[:, None] & inside
        # What capacity's rows of the gradient hold, nobody wrote.
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
        grad = _dropped(grad, token, seed_ptr, threshold, keep_scale, D, BLOCK_D, DROPOUT)
        d_weight += tl.sum(grad * normal, 0)
        d_bias += tl.sum(grad, 0)
        grad *= weight[None, :]
        along = tl.sum(grad * normal, 1) / D
        d_row = (grad - (tl.sum(grad, 1) / D)[:, None] - normal * along[:, None]) * inverse[:, None]
        tl.store(d_rows_ptr + at, d_row, mask=mask)
        key = tl.where(real, item.to(tl.int32), NO_ITEM)
        if COUNT:
            place = _tokens_before(key, token, ids_ptr, end, ROWS, OTHERS)
            tl.store(key_ptr + place, key, mask=real)
            tl.store(order_ptr + place, token, mask=real)
        else:
            tl.store(key_ptr + token, key, mask=token < tokens)
    tl.store(d_weight_ptr + slot * D + dims, d_weight, mask=dims < D)
    tl.store(d_bias_ptr + slot * D + dims, d_bias, mask=dims < D)


@triton.jit
def _add_items(
    program, d_rows_ptr, key_ptr, order_ptr, d_table_ptr, end,
    D: tl.constexpr, BLOCK_D: tl.constexpr, PLACES: tl.constexpr, ROWS: tl.constexpr,
):
    """Sum the rows of the items whose first token in the order is one of this program's places."""
    dims = tl.arange(0, BLOCK_D)
    place = program * PLACES + tl.arange(0, PLACES)
    key = tl.load(key_ptr + place, mask=place < end, other=0)
    before = tl.load(key_ptr + place - 1, mask=(place > 0) & (place < end), other=0)
    # Padding, item 0, has no gradient.
    first = key != before
    if tl.max(first.to(tl.int32)) > 0:
        total = tl.zeros((PLACES, BLOCK_D), tl.float32)
        more = first.to(tl.int32)
        at = place[:, None] + tl.arange(0, ROWS)[None, :]
        while tl.max(more) > 0:
            inside = (more > 0)[:, None] & (at < end)
            same = tl.load(key_ptr + at, mask=inside, other=0) == key[:, None]
            same = same & inside
            token = tl.load(order_ptr + at, mask=same, other=0)
            mask = same[:, :, None] & (dims < D)[None, None, :]
            rows = tl.load(d_rows_ptr + token[:, :, None] * D + dims[None, None, :], mask=mask,
                           other=0.0)
            total += tl.sum(rows, 1)
            more = tl.min(same.to(tl.int32), 1)
            at += ROWS
        mask = first[:, None] & (dims < D)[None, :]
        target = d_table_ptr + key.to(tl.int64)[:, None] * D + dims[None, :]
        given = tl.load(target, mask=mask, other=0.0).to(tl.float32)
        tl.store(target, given + total, mask=mask)


@triton.jit
def _sum_position(
    index, d_rows_ptr, offsets_ptr, d_positions_ptr, batch, positions,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, SEQUENCES: tl.constexpr,
):
    """Sum the rows of the tokens at one place from the end, over some of the sequences."""
    dims = tl.arange(0, BLOCK_D)
    place, first = index % positions, index // positions * SEQUENCES
    total = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(first, tl.minimum(first + SEQUENCES, batch), ROWS):
        sequence = start + tl.arange(0, ROWS)
        begin = tl.load(offsets_ptr + sequence, mask=sequence < batch, other=0)
        end = tl.load(offsets_ptr + sequence + 1, mask=sequence < batch, other=0)
        token = end - 1 - place
        mask = (token >= begin)[:, None] & (dims < D)[None, :]
        at = d_rows_ptr + token[:, None] * D + dims[None, :]
        total += tl.sum(tl.load(at, mask=mask, other=0.0), 0)
    tl.store(d_positions_ptr + index * D + dims, total, mask=dims < D)


@triton.jit
def _sum_partials(partial_ptr, result_ptr, partials, D: tl.constexpr, BLOCK_D: tl.constexpr,
                  ROWS: tl.constexpr):
    dims = tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, partials, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < partials)[:, None] & (dims < D)[None, :]
        at = partial_ptr + row[:, None] * D + dims[None, :]
        total += tl.sum(tl.load(at, mask=mask, other=0.0), 0)
    tl.store(result_ptr + dims, total, mask=dims < D)


@triton.jit(do_not_specialize=["batch", "positions", "partials", "slots"])
def _sums_kernel(
    d_rows_ptr, key_ptr, order_ptr, offsets_ptr, weight_partial_ptr, bias_partial_ptr,
    d_table_ptr, d_positions_ptr, d_weight_ptr, d_bias_ptr, batch, positions, slots, partials,
    D: tl.constexpr, BLOCK_D: tl.constexpr, PLACES: tl.constexpr, ROWS: tl.constexpr,
    SEQUENCES: tl.constexpr,
):
    # The longest sums first.
    program = tl.program_id(0)
    of_positions = slots * positions
    if program < of_positions:
        _sum_position(program, d_rows_ptr, offsets_ptr, d_positions_ptr, batch, positions, D,
                      BLOCK_D, PLACES * ROWS, SEQUENCES)
    elif program == of_positions:
        _sum_partials(weight_partial_ptr, d_weight_ptr, partials, D, BLOCK_D, PLACES * ROWS)
    elif program == of_positions + 1:
        _sum_partials(bias_partial_ptr, d_bias_ptr, partials, D, BLOCK_D, PLACES * ROWS)
    else:
        end = tl.load(offsets_ptr + batch).to(tl.int32)
        _add_items(program - of_positions - 2, d_rows_ptr, key_ptr, order_ptr, d_table_ptr, end, D,
                   BLOCK_D, PLACES, ROWS)


def _common(
    item_ids: Tensor, offsets: Tensor, table: Tensor, positions: Tensor, norm_weight: Tensor,
    eps: float, p: float, seed: Tensor | None,
) -> dict[str, Any]:
    block, batch = padded_size(table.shape[1]), offsets.shape[0] - 1
    return {
        "ids_ptr": item_ids.contiguous(), "offsets_ptr": offsets.contiguous(),
        "table_ptr": table.contiguous(), "positions_ptr": positions.contiguous(),
        "weight_ptr": norm_weight, "seed_ptr": seed, "tokens": item_ids.shape[0], "batch": batch,
        "steps": search_steps(batch), "eps": eps, "threshold": rng.dropout_threshold(p),
        "keep_scale": 1.0 / (1.0 - p), "D": table.shape[1], "BLOCK_D": block,
        "ROWS": ELEMENTS // block, "DROPOUT": seed is not None,
    }


def fwd(
    item_ids: Tensor, offsets: Tensor, table: Tensor, positions: Tensor, norm_weight: Tensor,
    norm_bias: Tensor, eps: float, p: float, seed: Tensor | None,
) -> Tensor:
    """``embedding_fwd`` of the op's schema: ``[N, D]``, 0 at capacity."""
    common = _common(item_ids, offsets, table, positions, norm_weight, eps, p, seed)
    tokens = item_ids.shape[0]
    x = table.new_empty(tokens, table.shape[1])
    arguments = {**common, "bias_ptr": norm_bias, "x_ptr": x}
    launch(_forward_kernel, (triton.cdiv(tokens, common["ROWS"]),), arguments, {"num_warps": 4})
    return x


def bwd(
    grad: Tensor, d_table: Tensor, item_ids: Tensor, offsets: Tensor, table: Tensor,
    positions: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``embedding_bwd``: adds to d_table; the gradients of positions, LayerNorm's weight, bias."""
    common = _common(item_ids, offsets, table, positions, norm_weight, eps, p, seed)
    tokens, batch, size = common["tokens"], common["batch"], common["D"]
    block, length = common["BLOCK_D"], positions.shape[0]
    wide = {"dtype": torch.float32, "device": grad.device}
    partials = max(1, min(triton.cdiv(tokens, common["ROWS"]), 2 * multiprocessors(grad.device)))
    d_rows = torch.empty(tokens, size, **wide)
    weight_partials, bias_partials = (torch.empty(partials, size, **wide) for _ in range(2))
    key = torch.empty(tokens, dtype=torch.int32, device=grad.device)
    count = tokens <= COUNTED
    order = item_ids.new_empty(tokens) if count else None
    launch(_rows_backward_kernel, (partials,), {
        **common, "grad_ptr": grad, "d_rows_ptr": d_rows, "key_ptr": key, "order_ptr": order,
        "d_weight_ptr": weight_partials, "d_bias_ptr": bias_partials, "OTHERS": OTHERS,
        "COUNT": count,
    }, {"num_warps": 4})
    if order is None:
        key, order = torch.sort(key, stable=True)
    slots = max(1, triton.cdiv(batch, SEQUENCES))
    d_weight, d_bias = torch.empty_like(norm_weight), torch.empty_like(norm_bias)
    d_positions = (
        torch.empty_like(positions) if slots == 1 else torch.empty(slots, *positions.shape, **wide)
    )
    launch(_sums_kernel, (slots * length + 2 + triton.cdiv(tokens, PLACES),), {
        "d_rows_ptr": d_rows, "key_ptr": key, "order_ptr": order, "offsets_ptr": offsets,
        "weight_partial_ptr": weight_partials, "bias_partial_ptr": bias_partials,
        "d_table_ptr": d_table, "d_positions_ptr": d_positions, "d_weight_ptr": d_weight,
        "d_bias_ptr": d_bias, "batch": batch, "positions": length, "slots": slots,
        "partials": partials, "D": size, "BLOCK_D": block, "PLACES": PLACES,
        "ROWS": max(1, STEP // (PLACES * block)), "SEQUENCES": SEQUENCES,
    }, {"num_warps": 4})
    if slots > 1:
        d_positions = d_positions.sum(0).to(positions.dtype)
    return d_positions, d_weight, d_bias
