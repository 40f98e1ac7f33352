"""The gradients of the last position's attention; see ``_readout``.

With q' = W_k^T q, c = sum_j a_j x_j, a_j = P_j m_j (m the kept scales of dropout), C = W_v c +
b_v sum_j a_j, and dC given: dc = W_v^T dC, dP_j = m_j (dc . x_j + b_v . dC), dS_j = P_j (dP_j -
dC . C) / sqrt(d), dq' = sum_j dS_j x_j, dq = W_k dq', and dx_j = a_j dc + dS_j q', to which the
last token adds W_q^T dq and what does not go through the attention. The gradient of b_k is zero:
dS sums to zero over a row. A program owns all tokens of its sequences, so nothing is added
atomically and the result is the same from run to run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._attention import LOG2_E, seen_keys
from ._launch import Operands, architecture, launch, padded_size
from ._linear_weights import Linear
from ._mlp import load_w1
from ._product import product
from ._readout import Saved, _bits, _own, _pairs, _tokens, arguments_of
from ._reduce import Partials
from .philox import drop


@triton.jit(do_not_specialize=["sequences", "tokens", "threshold"])
def _readout_backward_kernel(
    d_context_ptr, residual_ptr, x_ptr, offsets_ptr, reach_ptr, w_ptr, bias_ptr,
    seed_ptr, context_ptr, folded_ptr, lse_ptr, d_query_ptr, d_folded_ptr, d_x_ptr,
    sequences, tokens, scale, threshold, keep_scale, stream,
    D: tl.constexpr, HEADS: tl.constexpr, SLOTS: tl.constexpr, SEARCH: tl.constexpr,
    BLOCK_D: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, KEYS: tl.constexpr,
    DROPOUT: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    level = tl.program_id(1).to(tl.int64)
    sequence, head, there = _pairs(sequences, HEADS, SLOTS, ROWS)
    exists = tl.load(reach_ptr + sequence, mask=there, other=0) > level
    first, begin, token, end = _tokens(sequence, exists, offsets_ptr)
    if end == 0:
        return
    dims = tl.arange(0, BLOCK_D)
    inside = (dims < D)[None, :]
    at_row = level * sequences + sequence
    at_wide = (at_row * HEADS + head)[:, None] * D + dims[None, :]
    at_x = (level * tokens + first) * D
    delta = tl.zeros((ROWS,), tl.float32)
    d_weight = tl.zeros((ROWS,), tl.float32)
    d_mean = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(0, D, CHUNK):
        out = start + tl.arange(0, CHUNK)
        mask = exists[:, None] & _own(head, out, D, HEADS)
        at = at_row[:, None] * D + out[None, :]
        d_context = tl.load(d_context_ptr + at, mask=mask, other=0.0)
        context = tl.load(context_ptr + at, mask=mask, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + 2 * D + out, mask=out < D, other=0.0).to(tl.float32)
        delta += tl.sum(d_context.to(tl.float32) * context, 1)
        d_weight += tl.sum(d_context.to(tl.float32) * bias[None, :], 1)
        w = load_w1(w_ptr + 2 * D * D, out, dims, D, D, OPERAND)
        d_mean += product(d_context, tl.trans(w), PRECISION)
    d_mean = d_mean.to(OPERAND)
    folded = tl.load(folded_ptr + at_wide, mask=exists[:, None] & inside, other=0.0)
    lse = tl.load(lse_ptr + at_row * HEADS + head, mask=exists, other=0.0)
    d_folded = tl.zeros((ROWS, BLOCK_D), tl.float32)
    # What the sums over rows have at each row's own token.
    last_p = tl.zeros((ROWS,), tl.float32)
    last_d = tl.zeros((ROWS,), tl.float32)
    for block in range(0, tl.cdiv(end, KEYS)):
        key = block * KEYS + tl.arange(0, KEYS)
        # Keys are the rows: what is the same for all blocks is then shared out among the warps, and
        # not held by each of them.
        seen = tl.trans(seen_keys(begin, token, key))
        real = tl.max(seen.to(tl.int32), 1) > 0
        at = key[:, None] * D + dims[None, :]
        x = tl.load(x_ptr + at_x + at, mask=real[:, None] & inside, other=0.0).to(OPERAND)
        scores = product(x, tl.trans(folded), PRECISION) * (scale * LOG2_E)
        p = tl.where(seen, tl.exp2(scores - lse[None, :]), 0.0)
        d_p = product(x, tl.trans(d_mean), PRECISION) + d_weight[None, :]
        kept = p
        if DROPOUT:
            bits = tl.trans(_bits(seed_ptr, offsets_ptr, first + key, real, level, stream,
                                  threshold, sequences, head, HEADS, SEARCH))
            lane = (level % 4).to(tl.int32)
            kept = drop(p, bits, lane, keep_scale)
            d_p = drop(d_p, bits, lane, keep_scale)
        d_scores = p * (d_p - delta[None, :]) * scale
        own = seen & (key[:, None] == token[None, :])
        last_p += tl.sum(tl.where(own, kept, 0.0), 0)
        last_d += tl.sum(tl.where(own, d_scores, 0.0), 0)
        d_scores = d_scores.to(OPERAND)
        d_folded += product(tl.trans(d_scores), x, PRECISION)
        d_x = product(kept.to(OPERAND), d_mean, PRECISION)
        d_x += product(d_scores, folded, PRECISION)
        others = real & (tl.max(own.to(tl.int32), 1) == 0)
        tl.store(d_x_ptr + at_x + at, d_x, mask=others[:, None] & inside)
    d_folded = d_folded.to(OPERAND)
    tl.store(d_folded_ptr + at_wide, d_folded, mask=exists[:, None] & inside)
    d_last = last_p[:, None] * d_mean.to(tl.float32) + last_d[:, None] * folded.to(tl.float32)
    for start in range(0, D, CHUNK):
        out = start + tl.arange(0, CHUNK)
        own = _own(head, out, D, HEADS)
        w = load_w1(w_ptr + D * D, out, dims, D, D, OPERAND)
        d_query = tl.where(own, product(d_folded, w, PRECISION), 0.0).to(OPERAND)
        tl.store(d_query_ptr + at_row[:, None] * D + out[None, :], d_query,
                 mask=exists[:, None] & own)
        w = load_w1(w_ptr, out, dims, D, D, OPERAND)
        d_last += product(d_query, tl.trans(w), PRECISION)
    # The heads' rows of a sequence become one.
    d_last = tl.sum(tl.reshape(d_last, (ROWS // SLOTS, SLOTS, BLOCK_D)), 1)
    sequence = tl.program_id(0).to(tl.int64) * (ROWS // SLOTS) + tl.arange(0, ROWS // SLOTS)
    reach = tl.load(reach_ptr + sequence, mask=sequence < sequences, other=0)
    mask = (reach > level)[:, None] & inside
    token = tl.load(offsets_ptr + sequence + 1, mask=reach > level, other=0) - 1
    at = (level * sequences + sequence)[:, None] * D + dims[None, :]
    d_last += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    at = (level * tokens + token)[:, None] * D + dims[None, :]
    tl.store(d_x_ptr + at, d_last, mask=mask)


def readout_backward(
    d_context: Tensor, residual: Tensor, context: Tensor, saved: Saved, x: Tensor,
    weights: dict[str, Tensor], offsets: Tensor, reach: Tensor, ops: Operands,
    parts: Partials, *, heads: int, dropout: float, seed: Tensor | None, stream: int,
) -> tuple[Tensor, list[Linear]]:
    """The gradient of x ``[K, N, D]``, given that of the context, and the layers whose weights'
    gradients remain to be made; the rest is as in ``readout``.

    Args:
        d_context: ``[K, B, D]`` in the operands' dtype.
        residual: ``[K, B, D]``, what is to be added to the gradient of the last tokens.
        context, saved: ``readout``'s results.
        reach: int32 ``[B]``, how many levels exist for a sequence.
        parts: where partials of the gradients of ``qkv_w`` and ``qkv_b`` will go.
    """
    own_ops = ops
    if ops.kind == "tf32" and padded_size(x.shape[2]) > 128 and architecture(x.device) in (86, 89):
        # Tensor cores' operands of 256 columns spill; these have the same peak without them.
        own_ops = ops._replace(precision="ieee", kind="ieee")
    arguments, tile, grid = arguments_of(
        "readout_backward", x, weights, offsets, reach, own_ops, heads=heads, dropout=dropout,
        seed=seed, stream=stream,
    )
    d_x, d_query = torch.empty_like(x), torch.empty_like(saved.query)
    d_folded = torch.empty_like(saved.folded)
    arguments |= {
        "d_context_ptr": d_context, "residual_ptr": residual, "context_ptr": context,
        "folded_ptr": saved.folded, "lse_ptr": saved.lse, "d_query_ptr": d_query,
        "d_folded_ptr": d_folded, "d_x_ptr": d_x,
    }
    launch(_readout_backward_kernel, grid, arguments, tile.options)
    w, bias, size = weights["qkv_w"], weights["qkv_b"], x.shape[2]
    keys, values = (size, 2 * size), (2 * size, 3 * size)
    parts.new(bias, 0, rows=keys)
    return d_x, [
        Linear(x, d_query, w, bias, (0, size), last_only=True),
        Linear(d_folded, saved.query, w, None, keys),
        Linear(saved.mean, d_context, w, bias, values, saved.weight),
    ]
