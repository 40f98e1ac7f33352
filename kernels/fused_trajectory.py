"""``fused_trajectory`` in Triton: from E to h in one launch, with no level of it kept in memory.

The kernel is inference's: read-out at the last position, no noise and no dropout. A program owns a
few whole sequences, of any length, and loops over the levels up to the deepest of them. At each
level it first goes over its tokens: denoiser and x0, which waits in a scratch of a few kilobytes a
program, overwritten at every level and so at home in the caches. Then, for the last tokens: router,
coarse expert, fine expert, whose one query a sequence needs neither keys nor values (``_readout``),
and their share of the sums of Eq. 8 and 9. Weights do not fit on chip all at once: they come anew
at every level, in blocks, from L2.

All else runs the separate kernels on parts of the tokens (``packed/fused_trajectory.py``):
training, where noise, masks and the pooled coarse output besides all this spill on sm_86, backward,
and sizes beyond LARGEST.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..packed.fused_trajectory import backward_in_parts, forward_in_parts
from ..reference.fused_trajectory import TrajectoryInputs
from . import _heuristics
from ._attention import LOG2_E, LOWEST, seen_keys
from ._launch import architecture, launch, multiprocessors, operands, padded_size
from ._mlp import activate, hidden_before, load_w1, load_w2, normalise, perceptron
from ._product import product
from ._sublayers import _vector
from .hda_trajectory import _predict, noise_levels
from .moe_aggregate import EPSILON, _gate, _load_tile

# The largest padded D that the one kernel takes: at 128 it spills everywhere with triton 3.6.
LARGEST = 64
# Sequences of a program: what a product takes at least, and what fills a tile of tokens.
GROUP, SMALLEST_GROUP = 16, 4
KEYS = 32


@triton.jit
def _anew(dims, alpha_bar_ptr, BLOCK_D: tl.constexpr):
    """``dims``, of which the compiler does not know that they are the same each time.

    It would keep the addresses of all weights in registers over the loops, and spill. No alpha_bar
    exceeds 1, so nothing is added.
    """
    return dims + BLOCK_D * (tl.load(alpha_bar_ptr, volatile=True) > 2.0).to(tl.int32)


@triton.jit
def _reach_of(begins, ends, reaches, token):
    """The mask ``[sequences, tokens]`` of whose token it is, and each token's number of levels."""
    member = (begins[:, None] <= token[None, :]) & (token[None, :] < ends[:, None])
    return member, tl.max(tl.where(member, reaches[:, None], 0), 0)


@triton.jit
def _attend(last, token, begins, ends, reaches, level, first, end, x_ptr, qkv_w_ptr, qkv_b_ptr,
            out_w_ptr, scale, dims, D: tl.constexpr, HEADS: tl.constexpr, BLOCK_D: tl.constexpr,
            BLOCK_H: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
            OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """W_o of the attention's result, for one query a sequence, its last token."""
    part = tl.arange(0, BLOCK_H)
    size: tl.constexpr = D // HEADS
    exists = reaches > level
    projected = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for head in range(0, HEADS):
        w_ptr, bias_ptr = qkv_w_ptr + head * size * D, qkv_b_ptr + head * size
        w = load_w1(w_ptr, part, dims, size, D, OPERAND)
        q = hidden_before(last, w, bias_ptr, part, size, PRECISION).to(OPERAND)
        w = load_w1(w_ptr + D * D, part, dims, size, D, OPERAND)
        folded = product(q, tl.trans(w), PRECISION).to(OPERAND)
        top = tl.full((ROWS,), LOWEST, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        mean = tl.zeros((ROWS, BLOCK_D), tl.float32)
        for block in range(0, tl.cdiv(end - first, KEYS)):
            key = first + block * KEYS + tl.arange(0, KEYS)
            _, reach = _reach_of(begins, ends, reaches, key)
            mask = (reach > level)[:, None] & (dims < D)[None, :]
            x = tl.load(x_ptr + key[:, None] * D + dims[None, :], mask=mask, other=0.0).to(OPERAND)
            seen = seen_keys(begins, token, key) & exists[:, None]
            scores = product(folded, tl.trans(x), PRECISION) * (scale * LOG2_E)
            scores = tl.where(seen, scores, LOWEST)
            higher = tl.maximum(top, tl.max(scores, 1))
            p = tl.where(seen, tl.exp2(scores - higher[:, None]), 0.0)
            decay = tl.exp2(top - higher)
            total = total * decay + tl.sum(p, 1)
            mean = mean * decay[:, None] + product(p.to(OPERAND), x, PRECISION)
            top = higher
        mean /= tl.where(exists, total, 1.0)[:, None]
        w = load_w1(w_ptr + 2 * D * D, part, dims, size, D, OPERAND)
        context = hidden_before(mean.to(OPERAND), w, bias_ptr + 2 * D, part, size, PRECISION)
        w = load_w2(out_w_ptr, head * size + part, dims, D, D, OPERAND)
        projected += product(context.to(OPERAND), tl.trans(w), PRECISION)
    return projected


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


@triton.jit
def _add(sum_ptr, share, values, row, exists, level, dims, D: tl.constexpr):
    """A level's share of the sum of Eq. 8 or 9, which level 0 begins."""
    at = row[:, None] * D + dims[None, :]
    mask = exists[:, None] & (dims < D)[None, :]
    total = share[:, None] * values + _load_tile(sum_ptr, at, mask & (level > 0))
    tl.store(sum_ptr + at, total, mask=mask)


@triton.jit(do_not_specialize=["batch", "group"])
def _trajectory_kernel(
    embeddings_ptr, offsets_ptr, depth_ptr, level_mass_ptr, alpha_bar_ptr,
    w1_ptr, level_bias_ptr, w2_ptr, b2_ptr,
    qkv_w_ptr, qkv_b_ptr, out_w_ptr, out_b_ptr, ln1_w_ptr, ln1_b_ptr, ff1_w_ptr, ff1_b_ptr,
    ff2_w_ptr, ff2_b_ptr, ln2_w_ptr, ln2_b_ptr,
    coarse_w1_ptr, coarse_b1_ptr, coarse_w2_ptr, coarse_b2_ptr, coarse_ln_w_ptr, coarse_ln_b_ptr,
    router_w1_ptr, router_level_bias_ptr, router_w2_ptr, router_b2_ptr, gate_w_ptr, gate_b_ptr,
    x_ptr, user_ptr, error_ptr, gates_ptr, z_fine_ptr, z_coarse_ptr,
    batch, group, scale, eps,
    D: tl.constexpr, HIDDEN: tl.constexpr, INNER: tl.constexpr, COARSE: tl.constexpr,
    ROUTED: tl.constexpr, HEADS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
    ROWS: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr, KEYS: tl.constexpr,
    CONTENT: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, POOLING: tl.constexpr,
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
    columns = tl.arange(0, BLOCK_D)
    last = tl.maximum(ends - 1, 0)
    mass_fine = tl.zeros((GROUP,), tl.float32) + EPSILON
    mass_coarse = tl.zeros((GROUP,), tl.float32) + EPSILON
    for level in range(0, deepest):
        signal, _, sigma = noise_levels(alpha_bar_ptr, level)
        pooled = tl.zeros((GROUP, BLOCK_D), tl.float32)
        # The first pass, over tokens: x0.
        for tile in range(0, tl.cdiv(end - first, ROWS)):
            token = first + tile * ROWS + tl.arange(0, ROWS)
            member, reach = _reach_of(begins, ends, reaches, token)
            exists = reach > level
            if tl.max(reach) > level:
                dims = _anew(columns, alpha_bar_ptr, BLOCK_D)
                index = token[:, None] * D + dims[None, :]
                mask = exists[:, None] & (dims < D)[None, :]
                x = tl.load(embeddings_ptr + index, mask=mask, other=0.0).to(tl.float32)
                error = tl.zeros((ROWS,), tl.float32)
                if level > 0:
                    miss = _predict((signal * x).to(OPERAND), w1_ptr,
                                    level_bias_ptr + (level - 1) * HIDDEN, w2_ptr, b2_ptr, dims,
                                    HIDDEN, D, CHUNK, PRECISION)
                    miss = tl.where(mask, miss, 0.0)
                    error = tl.sum(miss * miss, 1)
                    error += tl.load(error_ptr + token, mask=exists, other=0.0)
                    # Eq. 5 with Eq. 4 put in, epsilon = 0.
                    x -= sigma * miss
                tl.store(error_ptr + token, error, mask=exists)
                tl.store(x_ptr + index, x, mask=mask)
                if CONTENT:
                    pooled += product(member.to(tl.float32), x, POOLING)
        tl.debug_barrier()
        # The second pass, over last tokens: router, coarse expert, fine expert, sums. Each loads
        # x0 from L1 again: held in registers from one to the next, operands spill.
        exists = reaches > level
        dims = _anew(columns, alpha_bar_ptr, BLOCK_D)
        gate = _route((pooled / lengths[:, None]).to(OPERAND),
                      router_level_bias_ptr + level * ROUTED, router_w1_ptr, router_w2_ptr,
                      router_b2_ptr, dims, D, ROUTED, GROUP, CHUNK, CONTENT, OPERAND, PRECISION)
        at_row = batch.to(tl.int64) * level + sequence
        tl.store(gates_ptr + at_row, gate, mask=exists)
        mass = _load_tile(level_mass_ptr, at_row, exists)
        to_fine = tl.where(exists, mass * gate, 0.0)
        to_coarse = tl.where(exists, mass * (1.0 - gate), 0.0)
        mass_fine += to_fine
        mass_coarse += to_coarse
        dims = _anew(columns, alpha_bar_ptr, BLOCK_D)
        inside = (dims < D)[None, :]
        at = last[:, None] * D + dims[None, :]
        x = tl.load(x_ptr + at, mask=exists[:, None] & inside, other=0.0)
        b2 = tl.load(coarse_b2_ptr + dims, mask=dims < D, other=0.0).to(tl.float32)
        y = perceptron(x.to(OPERAND), b2, coarse_w1_ptr, coarse_b1_ptr, coarse_w2_ptr, dims,
                       COARSE, D, CHUNK, PRECISION)
        y, _ = normalise(y, inside, eps, D)
        y = y * _vector(coarse_ln_w_ptr, dims, D) + _vector(coarse_ln_b_ptr, dims, D)
        _add(z_coarse_ptr, to_coarse, y, sequence, exists, level, dims, D)
        dims = _anew(columns, alpha_bar_ptr, BLOCK_D)
        inside = (dims < D)[None, :]
        at = last[:, None] * D + dims[None, :]
        x = tl.load(x_ptr + at, mask=exists[:, None] & inside, other=0.0).to(tl.float32)
        x += _attend(x.to(OPERAND), last, begins, ends, reaches, level, first, end, x_ptr,
                     qkv_w_ptr, qkv_b_ptr, out_w_ptr, scale, dims, D, HEADS, BLOCK_D, BLOCK_H,
                     GROUP, KEYS, OPERAND, PRECISION)
        h, _ = normalise(x + _vector(out_b_ptr, dims, D), inside, eps, D)
        h = h * _vector(ln1_w_ptr, dims, D) + _vector(ln1_b_ptr, dims, D)
        b2 = tl.load(ff2_b_ptr + dims, mask=dims < D, other=0.0).to(tl.float32)
        y = perceptron(h.to(OPERAND), b2, ff1_w_ptr, ff1_b_ptr, ff2_w_ptr, dims, INNER, D, CHUNK,
                       PRECISION)
        y, _ = normalise(h + y, inside, eps, D)
        y = y * _vector(ln2_w_ptr, dims, D) + _vector(ln2_b_ptr, dims, D)
        _add(z_fine_ptr, to_fine, y, sequence, exists, level, dims, D)
        # The scratch is free for the next level when all threads have read it.
        tl.debug_barrier()
    at = sequence[:, None] * D + columns[None, :]
    mask = (reaches > 0)[:, None] & (columns < D)[None, :]
    tl.store(z_fine_ptr + at, _load_tile(z_fine_ptr, at, mask) / mass_fine[:, None], mask=mask)
    z_coarse = _load_tile(z_coarse_ptr, at, mask) / mass_coarse[:, None]
    tl.store(z_coarse_ptr + at, z_coarse, mask=mask)
    tl.debug_barrier()
    narrow = z_coarse.to(OPERAND)
    for start in range(0, D, CHUNK):
        out = start + tl.arange(0, CHUNK)
        final = _gate(narrow, gate_w_ptr, gate_b_ptr, out, columns, D, OPERAND, PRECISION)
        at_out = sequence[:, None] * D + out[None, :]
        mask_out = (reaches > 0)[:, None] & (out < D)[None, :]
        fine = _load_tile(z_fine_ptr, at_out, mask_out)
        coarse = _load_tile(z_coarse_ptr, at_out, mask_out)
        tl.store(user_ptr + at_out, final * fine + (1.0 - final) * coarse, mask=mask_out)


def _sequences_a_program(batch: int, device: torch.device) -> int:
    """Few where the batch is small, so that every multiprocessor has something to do."""
    return max(SMALLEST_GROUP, min(GROUP, batch // (2 * multiprocessors(device))))


def _inference(i: TrajectoryInputs) -> bool:
    noisy = any(t is not None for t in (i.noise_seed, i.noise, i.seed))
    return i.last_only and not i.contrast and not noisy


def fwd(*inputs: Any) -> tuple[Tensor, ...]:
    """``fused_trajectory_fwd`` of the op's schema."""
    i = TrajectoryInputs(*inputs)
    e = i.embeddings
    ops, block = operands(e), padded_size(e.shape[1])
    processor = architecture(e.device)
    if not _inference(i) or block > LARGEST or i.bounded or i.residual:
        return forward_in_parts(i, "triton")
    laid_out: list[Any] = [t.contiguous() if isinstance(t, Tensor) else t for t in i]
    i = TrajectoryInputs(*laid_out)
    (tokens, size), batch = e.shape, i.offsets.shape[0] - 1
    wide = {"dtype": torch.float32, "device": e.device}
    tile = _heuristics.tile("fused_trajectory", block, ops.kind, processor, tokens)
    group = _sequences_a_program(batch, e.device)
    user, error = e.new_empty(batch, size), torch.empty(tokens, **wide)
    z_fine, z_coarse = (torch.empty(batch, size, **wide) for _ in range(2))
    # Zero beyond a depth, where no program comes.
    gates = torch.zeros(i.level_mass.shape, **wide)
    arguments: dict[str, Any] = {
        f"{name}_ptr": getattr(i, name) for name in i._fields[: i._fields.index("noise_seed")]
    }
    arguments |= {
        "x_ptr": torch.empty_like(i.embeddings),
        "user_ptr": user, "error_ptr": error, "gates_ptr": gates, "z_fine_ptr": z_fine,
        "z_coarse_ptr": z_coarse, "batch": batch, "group": group,
        "scale": (size // i.heads) ** -0.5, "eps": i.eps,
        "D": size, "HIDDEN": i.w1.shape[0], "INNER": i.ff1_w.shape[0],
        "COARSE": i.coarse_w1.shape[0], "ROUTED": i.router_w2.shape[0], "HEADS": i.heads,
        "BLOCK_D": block, "BLOCK_H": padded_size(size // i.heads), "ROWS": tile.rows,
        "GROUP": GROUP, "CHUNK": tile.chunk, "KEYS": KEYS, "CONTENT": i.content,
        "OPERAND": ops.dtype, "PRECISION": ops.precision,
        # Means stay float32: a mask is exact in TF32, and three products of parts make up x.
        "POOLING": "ieee" if ops.kind == "ieee" else "tf32x3",
    }
    launch(_trajectory_kernel, (triton.cdiv(batch, group),), arguments, tile.options)
    return user, error, gates, z_fine, z_coarse, e.new_empty(0)


def bwd(
    grad_user: Tensor, grad_error: Tensor, grad_pooled: Tensor, *inputs: Any
) -> tuple[Tensor, ...]:
    """``fused_trajectory_bwd``: gradients of E, the level mass and every parameter."""
    return backward_in_parts(
        grad_user, grad_error, grad_pooled, TrajectoryInputs(*inputs), "triton"
    )
