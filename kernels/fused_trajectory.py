"""``fused_trajectory`` in Triton: from E to h in one launch, with no level of it kept in memory.

A program owns a few whole sequences and loops over the levels up to the deepest of them. At each
level it goes twice over its tokens. First: noise, denoiser, x0, and the keys and values of the fine
expert, which wait in a scratch of a few kilobytes a program, overwritten at every level and so at
home in the caches. Then, for every read-out: the fine expert, the coarse expert, the router, and
their share of the sums of Eq. 8 and 9. Sequences may be of any length.

Weights do not fit on chip all at once: they come anew at every level, in blocks, from L2.

Backward is that of the separate kernels, part by part (``packed/fused_trajectory.py``). Where D is
too large for this kernel, so is forward.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import rng
from ..packed.fused_trajectory import backward_in_parts, forward_in_parts
from ..reference.fused_trajectory import TrajectoryInputs
from . import _heuristics
from ._attention import LOG2_E, LOWEST, _pair_bits, _seen
from ._launch import architecture, launch, multiprocessors, operands, padded_size
from ._mlp import (
    activate,
    hidden_before,
    load_w1,
    load_w2,
    noise_mode,
    noise_pair,
    normalise,
    perceptron,
)
from ._product import product
from ._sublayers import _bits, _drop, _vector
from .hda_trajectory import _predict
from .moe_aggregate import EPSILON, _gate, _load_tile

LARGEST_SIZE = 128
# Sequences of a program: what a product takes at least, and what fills a tile of tokens.
GROUP, SMALLEST_GROUP = 16, 4
KEYS = 32


@triton.jit
def _of_member(member, values):
    """For each token the value of the sequence it is a member of, else 0."""
    return tl.max(tl.where(member, values[:, None], 0), 0)


@triton.jit
def _coarse_expert(x, element, level, w1_ptr, b1_ptr, w2_ptr, b2_ptr, ln_w_ptr, ln_b_ptr, seed_ptr,
                   threshold, keep_scale, stream, eps, dims, D: tl.constexpr, H: tl.constexpr,
                   CHUNK: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr):
    """LN(Drop(W2 GELU(W1 x + b1) + b2))."""
    inside = (dims < D)[None, :]
    b2 = tl.load(b2_ptr + dims, mask=dims < D, other=0.0).to(tl.float32)
    y = perceptron(x, b2, w1_ptr, b1_ptr, w2_ptr, dims, H, D, CHUNK, PRECISION)
    bits = _bits(seed_ptr, element, stream, level // 4, threshold, D, DROPOUT)
    y, _ = normalise(_drop(y, bits, level % 4, keep_scale, DROPOUT), inside, eps, D)
    return y * _vector(ln_w_ptr, dims, D) + _vector(ln_b_ptr, dims, D)


@triton.jit
def _attend(x, token, begin, exists, begins, ends, reaches, level, kv_ptr, qkv_w_ptr, qkv_b_ptr,
            out_w_ptr, seed_ptr, threshold, keep_scale, stream, scale, dims, D: tl.constexpr,
            HEADS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
            ROWS: tl.constexpr, KEYS: tl.constexpr, DROPOUT: tl.constexpr,
            OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """W_o of the attention's result, for rows that see the keys ``begin`` to ``token``."""
    part = tl.arange(0, BLOCK_H)
    size: tl.constexpr = D // HEADS
    inside = (part < size)[None, :]
    last = tl.max(tl.where(exists, token, -1))
    first = tl.min(tl.where(exists, begin, last))
    projected = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for head in range(0, HEADS):
        w = load_w1(qkv_w_ptr + head * size * D, part, dims, size, D, OPERAND)
        q = hidden_before(x, w, qkv_b_ptr + head * size, part, size, PRECISION).to(OPERAND)
        top = tl.full((ROWS,), LOWEST, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        context = tl.zeros((ROWS, BLOCK_H), tl.float32)
        for block in range(0, tl.cdiv(last + 1 - first, KEYS)):
            key = first + block * KEYS + tl.arange(0, KEYS)
            member = (begins[:, None] <= key[None, :]) & (key[None, :] < ends[:, None])
            real = _of_member(member, reaches) > level
            at = key[:, None] * (2 * D) + (head * size + part)[None, :]
            mask = real[:, None] & inside
            k = tl.load(kv_ptr + at, mask=mask, other=0.0)
            v = tl.load(kv_ptr + D + at, mask=mask, other=0.0)
            seen = _seen(begin, token, key) & exists[:, None]
            scores = product(q, tl.trans(k), PRECISION) * (scale * LOG2_E)
            scores = tl.where(seen, scores, LOWEST)
            higher = tl.maximum(top, tl.max(scores, 1))
            p = tl.where(seen, tl.exp2(scores - higher[:, None]), 0.0)
            decay = tl.exp2(top - higher)
            total = total * decay + tl.sum(p, 1)
            if DROPOUT:
                bits = _pair_bits(seed_ptr, token, begin, key, head, level // 4, stream, threshold,
                                  HEADS)
                p = _drop(p, bits, level % 4, keep_scale, DROPOUT)
            context = context * decay[:, None] + product(p.to(OPERAND), v, PRECISION)
            top = higher
        context /= tl.where(exists, total, 1.0)[:, None]
        w = load_w2(out_w_ptr, head * size + part, dims, D, D, OPERAND)
        projected += product(context.to(OPERAND), tl.trans(w), PRECISION)
    return projected


@triton.jit
def _running_mean(token, begin, exists, begins, ends, reaches, level, x_ptr, dims,
                  D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
                  POOLING: tl.constexpr):
    """Pool of each row: the mean of x0 from its sequence's begin to its own token."""
    last = tl.max(tl.where(exists, token, -1))
    first = tl.min(tl.where(exists, begin, last))
    total = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for block in range(0, tl.cdiv(last + 1 - first, KEYS)):
        key = first + block * KEYS + tl.arange(0, KEYS)
        member = (begins[:, None] <= key[None, :]) & (key[None, :] < ends[:, None])
        real = _of_member(member, reaches) > level
        mask = real[:, None] & (dims < D)[None, :]
        x = tl.load(x_ptr + key[:, None] * D + dims[None, :], mask=mask, other=0.0)
        seen = _seen(begin, token, key) & exists[:, None]
        total += product(seen.to(tl.float32), x.to(tl.float32), POOLING)
    return total / tl.maximum(token - begin + 1, 1).to(tl.float32)[:, None]


@triton.jit
def _route(pooled, bias_ptr, w1_ptr, w2_ptr, b2_ptr, dims, D: tl.constexpr, H: tl.constexpr,
           ROWS: tl.constexpr, CHUNK: tl.constexpr, CONTENT: tl.constexpr,
           OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """Eq. 7 for the level whose bias is at ``bias_ptr``."""
    logit = tl.zeros((ROWS,), tl.float32) + tl.load(b2_ptr).to(tl.float32)
    for start in range(0, H, CHUNK):
        hidden = start + tl.arange(0, CHUNK)
        if CONTENT:
            w1 = load_w1(w1_ptr, hidden, dims, H, D, OPERAND)
            before = hidden_before(pooled, w1, bias_ptr, hidden, H, PRECISION)
        else:
            bias = _load_tile(bias_ptr, hidden, hidden < H)
            before = tl.zeros((ROWS, CHUNK), tl.float32) + bias[None, :]
        w2 = _load_tile(w2_ptr, hidden, hidden < H)
        logit += tl.sum(activate(before, False) * w2[None, :], 1)
    return tl.sigmoid(logit)


@triton.jit(do_not_specialize=["tokens", "batch", "rows", "group", "attention_threshold",
                             "hidden_threshold"])
def _trajectory_kernel(
    embeddings_ptr, offsets_ptr, depth_ptr, level_mass_ptr, alpha_bar_ptr,
    w1_ptr, level_bias_ptr, w2_ptr, b2_ptr,
    qkv_w_ptr, qkv_b_ptr, out_w_ptr, out_b_ptr, ln1_w_ptr, ln1_b_ptr, ff1_w_ptr, ff1_b_ptr,
    ff2_w_ptr, ff2_b_ptr, ln2_w_ptr, ln2_b_ptr,
    coarse_w1_ptr, coarse_b1_ptr, coarse_w2_ptr, coarse_b2_ptr, coarse_ln_w_ptr, coarse_ln_b_ptr,
    router_w1_ptr, router_level_bias_ptr, router_w2_ptr, router_b2_ptr, gate_w_ptr, gate_b_ptr,
    noise_seed_ptr, noise_ptr, seed_ptr, x_ptr, kv_ptr,
    user_ptr, error_ptr, gates_ptr, z_fine_ptr, z_coarse_ptr, pooled_ptr,
    tokens, batch, rows, group, scale, eps, attention_threshold, attention_keep,
    hidden_threshold, hidden_keep, fine_stream, coarse_stream,
    D: tl.constexpr, HIDDEN: tl.constexpr, INNER: tl.constexpr, COARSE: tl.constexpr,
    ROUTED: tl.constexpr, HEADS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
    ROWS: tl.constexpr, READ_ROWS: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr,
    KEYS: tl.constexpr, NOISE: tl.constexpr, ATTENTION_DROPOUT: tl.constexpr,
    DROPOUT: tl.constexpr, CONTENT: tl.constexpr, CONTRAST: tl.constexpr, LAST: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, POOLING: tl.constexpr,
):
    place = tl.arange(0, GROUP)
    sequence = tl.program_id(0).to(tl.int64) * group + place
    there = (place < group) & (sequence < batch)
    begins = tl.load(offsets_ptr + sequence, mask=there, other=0)
    ends = tl.load(offsets_ptr + sequence + 1, mask=there, other=0)
    reaches = tl.load(depth_ptr + sequence, mask=there, other=-1).to(tl.int32) + 1
    deepest = tl.max(reaches)
    end = tl.max(ends)
    first = tl.min(tl.where(there, begins, end))
    lengths = tl.maximum(ends - begins, 1).to(tl.float32)
    dims = tl.arange(0, BLOCK_D)
    inside = (dims < D)[None, :]
    stride = tokens.to(tl.int64) * D
    tiles = tl.cdiv(end - first, ROWS)
    read_tiles = 1 if LAST else tiles
    for level in range(0, deepest):
        plane = tl.full((), level, tl.int64)
        alpha_bar = tl.load(alpha_bar_ptr + level).to(tl.float32)
        signal, spread = tl.sqrt(alpha_bar), tl.sqrt(1.0 - alpha_bar)
        pooled_sum = tl.zeros((GROUP, BLOCK_D), tl.float32)
        coarse_sum = tl.zeros((GROUP, BLOCK_D), tl.float32)
        # The first pass, over tokens: x0, keys and values.
        for tile in range(0, tiles):
            token = first + tile * ROWS + tl.arange(0, ROWS)
            member = (begins[:, None] <= token[None, :]) & (token[None, :] < ends[:, None])
            reach = _of_member(member, reaches)
            exists = reach > level
            if tl.max(reach) > level:
                index = token[:, None] * D + dims[None, :]
                mask = exists[:, None] & inside
                x = tl.load(embeddings_ptr + index, mask=mask, other=0.0).to(tl.float32)
                error = tl.zeros((ROWS,), tl.float32)
                if level > 0:
                    noisy = signal * x
                    if NOISE != 0:
                        even, odd = noise_pair(noise_seed_ptr, noise_ptr, index,
                                               (level - 1) // 2, stride, reach - 1, inside, D,
                                               NOISE)
                        noise = tl.where(level % 2 == 1, even, odd)
                        noisy += spread * noise
                    miss = _predict(noisy.to(OPERAND), w1_ptr,
                                    level_bias_ptr + (level - 1) * HIDDEN, w2_ptr, b2_ptr, dims,
                                    HIDDEN, D, CHUNK, PRECISION)
                    if NOISE != 0:
                        miss -= noise
                    miss = tl.where(mask, miss, 0.0)
                    error = tl.sum(miss * miss, 1)
                    error += tl.load(error_ptr + token, mask=exists, other=0.0)
                    x -= (spread / signal) * miss
                tl.store(error_ptr + token, error, mask=exists)
                tl.store(x_ptr + index, x, mask=mask)
                narrow = x.to(OPERAND)
                for start in range(0, 2 * D, CHUNK):
                    out = start + tl.arange(0, CHUNK)
                    w = load_w1(qkv_w_ptr + D * D, out, dims, 2 * D, D, OPERAND)
                    kv = hidden_before(narrow, w, qkv_b_ptr + D, out, 2 * D, PRECISION)
                    tl.store(kv_ptr + token[:, None] * (2 * D) + out[None, :], kv,
                             mask=exists[:, None] & (out < 2 * D)[None, :])
                if LAST and CONTENT:
                    pooled_sum += product(member.to(tl.float32), x, POOLING)
                if LAST and CONTRAST:
                    coarse = _coarse_expert(
                        narrow, index, level, coarse_w1_ptr, coarse_b1_ptr, coarse_w2_ptr,
                        coarse_b2_ptr, coarse_ln_w_ptr, coarse_ln_b_ptr, seed_ptr,
                        hidden_threshold, hidden_keep, coarse_stream, eps, dims, D, COARSE, CHUNK,
                        DROPOUT, PRECISION)
                    coarse_sum += product(member.to(tl.float32), coarse, POOLING)
        tl.debug_barrier()
        # The second pass, over read-outs: experts, router, sums.
        for tile in range(0, read_tiles):
            if LAST:
                row, token, begin, reach = sequence, tl.maximum(ends - 1, 0), begins, reaches
            else:
                token = first + tile * ROWS + tl.arange(0, ROWS)
                row = token
                member = (begins[:, None] <= token[None, :]) & (token[None, :] < ends[:, None])
                begin = _of_member(member, begins)
                reach = _of_member(member, reaches)
            exists = reach > level
            if tl.max(reach) > level:
                index = token[:, None] * D + dims[None, :]
                mask = exists[:, None] & inside
                x = tl.load(x_ptr + index, mask=mask, other=0.0).to(tl.float32)
                projected = _attend(
                    x.to(OPERAND), token, begin, exists, begins, ends, reaches, level, kv_ptr,
                    qkv_w_ptr, qkv_b_ptr, out_w_ptr, seed_ptr, attention_threshold,
                    attention_keep, fine_stream, scale, dims, D, HEADS, BLOCK_D, BLOCK_H,
                    READ_ROWS, KEYS, ATTENTION_DROPOUT, OPERAND, PRECISION)
                projected += _vector(out_b_ptr, dims, D)
                bits = _bits(seed_ptr, index, fine_stream + 1, level // 4, hidden_threshold,
                             DROPOUT)
                projected = _drop(projected, bits, level % 4, hidden_keep, DROPOUT)
                h, _ = normalise(x + projected, inside, eps, D)
                h = h * _vector(ln1_w_ptr, dims, D) + _vector(ln1_b_ptr, dims, D)
                ff2_b = tl.load(ff2_b_ptr + dims, mask=dims < D, other=0.0).to(tl.float32)
                fine = perceptron(h.to(OPERAND), ff2_b, ff1_w_ptr, ff1_b_ptr, ff2_w_ptr, dims,
                                  INNER, D, CHUNK, PRECISION)
                bits = _bits(seed_ptr, index, fine_stream + 2, level // 4, hidden_threshold,
                             DROPOUT)
                fine = _drop(fine, bits, level % 4, hidden_keep, DROPOUT)
                fine, _ = normalise(h + fine, inside, eps, D)
                fine = fine * _vector(ln2_w_ptr, dims, D) + _vector(ln2_b_ptr, dims, D)
                pooled = x
                if CONTENT:
                    if LAST:
                        pooled = pooled_sum / lengths[:, None]
                    else:
                        pooled = _running_mean(token, begin, exists, begins, ends, reaches, level,
                                               x_ptr, dims, D, BLOCK_D, READ_ROWS, KEYS, POOLING)
                gate = _route(pooled.to(OPERAND), router_level_bias_ptr + level * ROUTED,
                              router_w1_ptr, router_w2_ptr, router_b2_ptr, dims, D, ROUTED,
                              READ_ROWS, CHUNK, CONTENT, OPERAND, PRECISION)
                at_row = plane * rows + row
                tl.store(gates_ptr + at_row, gate, mask=exists)
                mass = _load_tile(level_mass_ptr, at_row, exists)
                # The sums of Eq. 8 and 9 are begun at level 0.
                at = row[:, None] * D + dims[None, :]
                before = mask & (level > 0)
                share = (mass * gate)[:, None] * fine + _load_tile(z_fine_ptr, at, before)
                tl.store(z_fine_ptr + at, share, mask=mask)
                coarse = _coarse_expert(
                    x.to(OPERAND), index, level, coarse_w1_ptr, coarse_b1_ptr, coarse_w2_ptr,
                    coarse_b2_ptr, coarse_ln_w_ptr, coarse_ln_b_ptr, seed_ptr, hidden_threshold,
                    hidden_keep, coarse_stream, eps, dims, D, COARSE, CHUNK, DROPOUT, PRECISION)
                share = (mass * (1.0 - gate))[:, None] * coarse
                share += _load_tile(z_coarse_ptr, at, before)
                tl.store(z_coarse_ptr + at, share, mask=mask)
                if CONTRAST and not LAST:
                    coarse_sum += product(member.to(tl.float32), coarse, POOLING)
        if CONTRAST:
            at = (plane * batch + sequence)[:, None] * D + dims[None, :]
            tl.store(pooled_ptr + at, coarse_sum / lengths[:, None],
                     mask=(reaches > level)[:, None] & inside)
        # The scratch is free for the next level when all threads have read it.
        tl.debug_barrier()
    for tile in range(0, read_tiles):
        if LAST:
            row, reach = sequence, reaches
        else:
            row = first + tile * ROWS + tl.arange(0, ROWS)
            member = (begins[:, None] <= row[None, :]) & (row[None, :] < ends[:, None])
            reach = _of_member(member, reaches)
        mass_fine = tl.zeros((READ_ROWS,), tl.float32) + EPSILON
        mass_coarse = tl.zeros((READ_ROWS,), tl.float32) + EPSILON
        for level in range(0, deepest):
            at_row = rows.to(tl.int64) * level + row
            gate = _load_tile(gates_ptr, at_row, reach > level)
            mass = _load_tile(level_mass_ptr, at_row, reach > level)
            mass_fine += mass * gate
            mass_coarse += mass * (1.0 - gate)
        at = row[:, None] * D + dims[None, :]
        mask = (reach > 0)[:, None] & inside
        tl.store(z_fine_ptr + at, _load_tile(z_fine_ptr, at, mask) / mass_fine[:, None], mask=mask)
        z_coarse = _load_tile(z_coarse_ptr, at, mask) / mass_coarse[:, None]
        tl.store(z_coarse_ptr + at, z_coarse, mask=mask)
        tl.debug_barrier()
        narrow = z_coarse.to(OPERAND)
        for start in range(0, D, CHUNK):
            out = start + tl.arange(0, CHUNK)
            gate = _gate(narrow, gate_w_ptr, gate_b_ptr, out, dims, D, OPERAND, PRECISION)
            at_out = row[:, None] * D + out[None, :]
            mask_out = (reach > 0)[:, None] & (out < D)[None, :]
            fine = _load_tile(z_fine_ptr, at_out, mask_out)
            coarse = _load_tile(z_coarse_ptr, at_out, mask_out)
            tl.store(user_ptr + at_out, gate * fine + (1.0 - gate) * coarse, mask=mask_out)


def _sequences_a_program(batch: int, device: torch.device) -> int:
    """Few where the batch is small, so that every multiprocessor has something to do."""
    return max(SMALLEST_GROUP, min(GROUP, batch // (2 * multiprocessors(device))))


def fwd(*inputs: Any) -> tuple[Tensor, ...]:
    """``fused_trajectory_fwd`` of the op's schema."""
    i = TrajectoryInputs(*inputs)
    e = i.embeddings
    if padded_size(e.shape[1]) > LARGEST_SIZE:
        return forward_in_parts(i, "triton")
    i = TrajectoryInputs(*(t.contiguous() if isinstance(t, Tensor) else t for t in i))
    (tokens, size), batch = e.shape, i.offsets.shape[0] - 1
    levels, rows = i.level_mass.shape
    wide = {"dtype": torch.float32, "device": e.device}
    ops, block = operands(e), padded_size(size)
    tile = _heuristics.tile("fused_trajectory", block, ops.kind, architecture(e.device))
    group = _sequences_a_program(batch, e.device)
    # Zero at capacity, and gates beyond a depth too; no program comes there.
    user = e.new_zeros(rows, size)
    z_fine, z_coarse = torch.zeros(rows, size, **wide), torch.zeros(rows, size, **wide)
    gates = torch.zeros(levels, rows, **wide)
    error = torch.empty(tokens, **wide)
    pooled = e.new_empty(levels, batch, size) if i.contrast else e.new_empty(0)
    arguments: dict[str, Any] = {
        f"{name}_ptr": value for name, value in zip(i._fields, i, strict=True)
        if value is None or isinstance(value, Tensor)
    }
    arguments |= {
        "x_ptr": torch.empty_like(i.embeddings),
        "kv_ptr": e.new_empty(tokens, 2 * size, dtype=ops.torch_dtype),
        "user_ptr": user, "error_ptr": error, "gates_ptr": gates, "z_fine_ptr": z_fine,
        "z_coarse_ptr": z_coarse, "pooled_ptr": pooled,
        "tokens": tokens, "batch": batch, "rows": rows, "group": group,
        "scale": (size // i.heads) ** -0.5, "eps": i.eps,
        "attention_threshold": rng.dropout_threshold(i.attention_dropout),
        "attention_keep": 1.0 / (1.0 - i.attention_dropout),
        "hidden_threshold": rng.dropout_threshold(i.hidden_dropout),
        "hidden_keep": 1.0 / (1.0 - i.hidden_dropout),
        "fine_stream": rng.STREAM_FINE_EXPERT, "coarse_stream": rng.STREAM_COARSE_MLP,
        "D": size, "HIDDEN": i.w1.shape[0], "INNER": i.ff1_w.shape[0],
        "COARSE": i.coarse_w1.shape[0], "ROUTED": i.router_w2.shape[0], "HEADS": i.heads,
        "BLOCK_D": block, "BLOCK_H": padded_size(size // i.heads), "ROWS": tile.rows,
        "READ_ROWS": GROUP if i.last_only else tile.rows, "GROUP": GROUP, "CHUNK": tile.chunk,
        "KEYS": KEYS, "NOISE": noise_mode(i.noise_seed, i.noise),
        "ATTENTION_DROPOUT": i.seed is not None and i.attention_dropout > 0,
        "DROPOUT": i.seed is not None and i.hidden_dropout > 0, "CONTENT": i.content,
        "CONTRAST": i.contrast, "LAST": i.last_only, "OPERAND": ops.dtype,
        "PRECISION": ops.precision,
        # Means stay float32: a mask is exact in TF32, and three products of parts make up x.
        "POOLING": "ieee" if ops.kind == "ieee" else "tf32x3",
    }
    launch(_trajectory_kernel, (triton.cdiv(batch, group),), arguments, tile.options)
    return user, error, gates, z_fine, z_coarse, pooled


def bwd(
    grad_user: Tensor, grad_error: Tensor, grad_pooled: Tensor, *inputs: Any
) -> tuple[Tensor, ...]:
    """``fused_trajectory_bwd``: gradients of E, the level mass and every parameter."""
    return backward_in_parts(
        grad_user, grad_error, grad_pooled, TrajectoryInputs(*inputs), "triton"
    )
