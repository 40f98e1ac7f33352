"""``hda_trajectory`` in Triton: all levels of a tile of tokens in one launch (Eq. 4, 5).

A program takes a tile of tokens and loops over the levels up to the deepest of its tile. The noise
is made in place, two tensor-core products run over chunks of the hidden dimension, and x0 and the
denoising error leave the chip; E_k, the noise and the hidden activations never do.

Backward recomputes them. Its first kernel makes dE; it leaves E_k and the gradient of the predicted
noise to the second, shared with the coarse expert, which makes the weight gradients. One kernel for
both would need its accumulators and the noise in registers at once, which spills on sm_86.

Where the tiles do not fill the device, each is taken by several programs, a part of the levels
each (``pairs_a_program``): a pair of levels shares the two normals of a Box-Muller transform. What
is summed over levels is then summed over programs, in their order: the error by a launch of its
own, dE with the weights' partials.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..packed import hda_trajectory as packed
from . import _heuristics
from ._jagged import planes_of
from ._launch import (
    Operands,
    architecture,
    launch,
    operands,
    padded_size,
    pairs_a_program,
    search_steps,
)
from ._mlp import (
    activate,
    activate_and_slope,
    hidden_before,
    load_w1,
    load_w2,
    noise_mode,
    noise_pair,
    weight_gradients,
)
from ._product import product
from ._reduce import EXACT, Partials

LAUNCH = 0.5  # in pairs of levels


@triton.jit
def noise_levels(alpha_bar_ptr, level):
    """sqrt(alpha_bar_k), sqrt(1 - alpha_bar_k), and sigma_k, the second over the first.

    Rounded to nearest: an error here would be the same for all that the level has.
    """
    alpha_bar = tl.load(alpha_bar_ptr + level).to(tl.float32)
    signal, spread = tl.sqrt_rn(alpha_bar), tl.sqrt_rn(1.0 - alpha_bar)
    return signal, spread, tl.div_rn(spread, signal)


@triton.jit
def _predict(noisy, w1_ptr, bias_ptr, w2_ptr, b2_ptr, dims, H: tl.constexpr, D: tl.constexpr,
             CHUNK: tl.constexpr, PRECISION: tl.constexpr):
    """epsilon_theta = W2 SiLU(W1 E_k + bias_k) + b2, the hidden dimension in chunks."""
    predicted = tl.zeros(noisy.shape, tl.float32)
    for start in range(0, H, CHUNK):
        hidden = start + tl.arange(0, CHUNK)
        w1 = load_w1(w1_ptr, hidden, dims, H, D, noisy.dtype)
        before = hidden_before(noisy, w1, bias_ptr, hidden, H, PRECISION)
        w2 = load_w2(w2_ptr, hidden, dims, H, D, noisy.dtype)
        after = activate(before, False).to(noisy.dtype)
        predicted += product(after, tl.trans(w2), PRECISION)
    b2 = tl.load(b2_ptr + dims, mask=dims < D, other=0.0).to(tl.float32)
    return predicted + b2[None, :]


@triton.jit(do_not_specialize=["tokens", "batch", "steps", "pairs"])
def _forward_kernel(
    e_ptr, offsets_ptr, depth_ptr, alpha_bar_ptr, w1_ptr, bias_ptr, w2_ptr, b2_ptr, seed_ptr,
    noise_ptr, x0_ptr, error_ptr, tokens, batch, steps, pairs,
    D: tl.constexpr, H: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, NOISE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    # Planes 1..reach are to be computed; capacity has -1.
    reach = planes_of(token, tokens, offsets_ptr, depth_ptr, batch, steps, 0, True, False) - 1
    group = tl.program_id(1)
    first = group * pairs
    deepest = tl.max(reach)
    last = tl.minimum(first + pairs, (deepest + 1) // 2)
    if deepest < 0:
        return
    error = tl.zeros((ROWS,), tl.float32)
    at_error = error_ptr + group.to(tl.int64) * tokens + token
    if (group > 0) & (last <= first):
        tl.store(at_error, error, mask=reach >= 0)
        return
    dims = tl.arange(0, BLOCK_D)
    inside = (dims < D)[None, :]
    index = token[:, None] * D + dims[None, :]
    real = (reach >= 0)[:, None] & inside
    e = tl.load(e_ptr + index, mask=real, other=0.0).to(tl.float32)
    if group == 0:
        tl.store(x0_ptr + index, e, mask=real)
    stride = tokens.to(tl.int64) * D
    for pair in range(first, last):
        if NOISE != 0:
            even, odd = noise_pair(seed_ptr, noise_ptr, index, pair, stride, reach, inside, D,
                                   NOISE)
        for lane in tl.static_range(2):
            level = 2 * pair + lane + 1
            if level <= deepest:
                signal, spread, sigma = noise_levels(alpha_bar_ptr, level)
                noisy = signal * e
                if NOISE != 0:
                    noise = even if lane == 0 else odd
                    noisy += spread * noise
                bias_row = bias_ptr + (level - 1) * H
                miss = _predict(noisy.to(OPERAND), w1_ptr, bias_row, w2_ptr, b2_ptr, dims, H, D,
                                CHUNK, PRECISION)
                if NOISE != 0:
                    miss -= noise
                reached = reach >= level
                squares = tl.sum(tl.where(inside, miss * miss, 0.0), 1)
                error += tl.where(reached, squares, 0.0)
                # Eq. 5 with Eq. 4 put in: x0 = E - sigma_k (epsilon_theta - epsilon).
                x0 = e - sigma * miss
                tl.store(x0_ptr + stride * level + index, x0, mask=reached[:, None] & inside)
    tl.store(at_error, error, mask=reach >= 0)


@triton.jit(do_not_specialize=["tokens", "batch", "steps", "pairs"])
def _backward_kernel(
    grad_x0_ptr, grad_error_ptr, e_ptr, offsets_ptr, depth_ptr, alpha_bar_ptr, w1_ptr, bias_ptr,
    w2_ptr, b2_ptr, seed_ptr, noise_ptr, d_e_ptr, noisy_ptr, d_predicted_ptr, reach_ptr,
    tokens, batch, steps, pairs,
    D: tl.constexpr, H: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, NOISE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    reach = planes_of(token, tokens, offsets_ptr, depth_ptr, batch, steps, 0, True, False) - 1
    group = tl.program_id(1)
    first = group * pairs
    deepest = tl.max(reach)
    last = tl.minimum(first + pairs, (deepest + 1) // 2)
    if group == 0:
        tl.store(reach_ptr + token, tl.maximum(reach, 0), mask=token < tokens)
    dims = tl.arange(0, BLOCK_D)
    inside = (dims < D)[None, :]
    index = token[:, None] * D + dims[None, :]
    real = (reach >= 0)[:, None] & inside
    stride = tokens.to(tl.int64) * D
    # A partial is added to others whatever it holds, so rows without a level must hold zeros.
    several = tl.where(tl.num_programs(1) > 1, tokens, 0)
    written = real | (token < several)[:, None] & inside
    at_d_e = d_e_ptr + stride * group + index
    if (last <= first) & ((group > 0) | (deepest < 0)):
        tl.store(at_d_e, tl.zeros((ROWS, BLOCK_D), tl.float32), mask=written)
        return
    of_level_0 = (token < tl.where(group == 0, tokens, 0))[:, None] & real
    d_e = tl.load(grad_x0_ptr + index, mask=of_level_0, other=0.0).to(tl.float32)
    d_error = tl.load(grad_error_ptr + token, mask=reach >= 1, other=0.0).to(tl.float32)
    for pair in range(first, last):
        if NOISE != 0:
            even, odd = noise_pair(seed_ptr, noise_ptr, index, pair, stride, reach, inside, D,
                                   NOISE)
        for lane in tl.static_range(2):
            level = 2 * pair + lane + 1
            if level <= deepest:
                signal, spread, sigma = noise_levels(alpha_bar_ptr, level)
                mask = (reach >= level)[:, None] & inside
                # E comes anew from L1 at every level: held in registers, it spills at D >= 128.
                noisy = signal * tl.load(e_ptr + index, mask=mask, other=0.0).to(tl.float32)
                if NOISE != 0:
                    noise = even if lane == 0 else odd
                    noisy += spread * noise
                x = noisy.to(OPERAND)
                bias_row = bias_ptr + (level - 1) * H
                miss = _predict(x, w1_ptr, bias_row, w2_ptr, b2_ptr, dims, H, D, CHUNK,
                                PRECISION)
                if NOISE != 0:
                    miss -= noise
                d_x0 = tl.load(grad_x0_ptr + stride * level + index, mask=mask, other=0.0)
                d_x0 = d_x0.to(tl.float32)
                d_miss = 2.0 * d_error[:, None] * miss - sigma * d_x0
                d_predicted = tl.where(mask, d_miss, 0.0).to(OPERAND)
                plane = stride * (level - 1) + index
                tl.store(noisy_ptr + plane, x, mask=mask)
                tl.store(d_predicted_ptr + plane, d_predicted, mask=mask)
                d_noisy = tl.zeros((ROWS, BLOCK_D), tl.float32)
                for start in range(0, H, CHUNK):
                    hidden = start + tl.arange(0, CHUNK)
                    w1 = load_w1(w1_ptr, hidden, dims, H, D, OPERAND)
                    before = hidden_before(x, w1, bias_row, hidden, H, PRECISION)
                    _, slope = activate_and_slope(before, False)
                    w2 = load_w2(w2_ptr, hidden, dims, H, D, OPERAND)
                    d_before = product(d_predicted, w2, PRECISION) * slope
                    d_noisy += product(d_before.to(OPERAND), tl.trans(w1), PRECISION)
                d_e += d_x0 + signal * d_noisy
    tl.store(at_d_e, d_e, mask=written)


def _arguments(
    kernel: str, ops: Operands, embeddings: Tensor, offsets: Tensor, depth: Tensor,
    alpha_bar: Tensor, w1: Tensor, level_bias: Tensor, w2: Tensor, b2: Tensor, seed: Tensor | None,
    noise: Tensor | None,
) -> tuple[dict[str, object], _heuristics.Tile]:
    size = embeddings.shape[1]
    block = padded_size(size)
    tile = _heuristics.tile(kernel, block, ops.kind, architecture(embeddings.device),
                            embeddings.shape[0])
    batch = offsets.shape[0] - 1
    return {
        "e_ptr": embeddings, "offsets_ptr": offsets, "depth_ptr": depth,
        "alpha_bar_ptr": alpha_bar, "w1_ptr": w1, "bias_ptr": level_bias, "w2_ptr": w2,
        "b2_ptr": b2, "seed_ptr": seed, "noise_ptr": noise,
        "tokens": embeddings.shape[0], "batch": batch, "steps": search_steps(batch),
        "D": size, "H": w1.shape[0], "BLOCK_D": block, "ROWS": tile.rows, "CHUNK": tile.chunk,
        "NOISE": noise_mode(seed, noise), "OPERAND": ops.dtype, "PRECISION": ops.precision,
    }, tile


def fwd(
    embeddings: Tensor, offsets: Tensor, depth: Tensor, alpha_bar: Tensor, w1: Tensor,
    level_bias: Tensor, w2: Tensor, b2: Tensor, seed: Tensor | None, noise: Tensor | None,
    bounded: bool = False,
) -> tuple[Tensor, Tensor]:
    """``hda_trajectory_fwd`` of the op's schema: x0 ``[T+1, N, D]`` and error ``[N]``, float32.

    A bounded denoiser has no kernel yet: packed PyTorch computes it.
    """
    if bounded:
        return packed.fwd(
            embeddings, offsets, depth, alpha_bar, w1, level_bias, w2, b2, seed, noise, bounded
        )
    tensors = _contiguous(embeddings, offsets, depth, alpha_bar, w1, level_bias, w2, b2)
    embeddings, alpha_bar = tensors[0], tensors[3]
    noise = None if noise is None else noise.contiguous()
    tokens, size = embeddings.shape
    ops = operands(embeddings)
    arguments, tile = _arguments("hda_forward", ops, *tensors, seed, noise)
    levels, tiles = alpha_bar.shape[0] - 1, triton.cdiv(tokens, tile.rows)
    pairs = pairs_a_program(tiles, levels, embeddings.device, extra=LAUNCH)
    groups = triton.cdiv(triton.cdiv(levels, 2), pairs)
    x0 = embeddings.new_empty(levels + 1, tokens, size)
    errors = embeddings.new_empty(groups, tokens, dtype=torch.float32)
    arguments |= {"x0_ptr": x0, "error_ptr": errors, "pairs": pairs}
    launch(_forward_kernel, (tiles, groups), arguments, tile.options)
    return x0, errors[0] if groups == 1 else errors.sum(0)


def bwd(
    grad_x0: Tensor, grad_error: Tensor, embeddings: Tensor, offsets: Tensor, depth: Tensor,
    alpha_bar: Tensor, w1: Tensor, level_bias: Tensor, w2: Tensor, b2: Tensor,
    seed: Tensor | None, noise: Tensor | None, bounded: bool = False,
) -> tuple[Tensor, ...]:
    """``hda_trajectory_bwd``: gradients of embeddings, w1, level_bias, w2 and b2."""
    if bounded:
        return packed.bwd(
            grad_x0, grad_error, embeddings, offsets, depth, alpha_bar, w1, level_bias, w2, b2,
            seed, noise, bounded,
        )  # fmt: skip
    grad_x0, grad_error = grad_x0.contiguous(), grad_error.contiguous()
    tensors = _contiguous(embeddings, offsets, depth, alpha_bar, w1, level_bias, w2, b2)
    embeddings, offsets, _, alpha_bar, w1, level_bias, w2, b2 = tensors
    noise = None if noise is None else noise.contiguous()
    tokens, size = embeddings.shape
    ops = operands(embeddings)
    arguments, tile = _arguments("hda_backward", ops, *tensors, seed, noise)
    planes, tiles = alpha_bar.shape[0] - 1, triton.cdiv(tokens, tile.rows)
    parts = Partials()
    pairs = pairs_a_program(tiles, planes, embeddings.device)
    groups = triton.cdiv(triton.cdiv(planes, 2), pairs)
    if groups > 1 and embeddings.numel() < EXACT:
        d_e = parts.new(embeddings, groups)
    else:
        pairs, groups, d_e = planes, 1, torch.empty_like(embeddings)
    d_predicted = embeddings.new_empty(planes, tokens, size, dtype=ops.torch_dtype)
    noisy = torch.empty_like(d_predicted)
    reach = torch.empty(tokens, dtype=torch.int32, device=embeddings.device)
    arguments |= {
        "grad_x0_ptr": grad_x0, "grad_error_ptr": grad_error, "d_e_ptr": d_e,
        "noisy_ptr": noisy, "d_predicted_ptr": d_predicted, "reach_ptr": reach, "pairs": pairs,
    }
    launch(_backward_kernel, (tiles, groups), arguments, tile.options)
    weight_gradients(
        noisy, d_predicted, reach, offsets, w1, level_bias, w2, b2, ops, parts, gelu=False
    )
    weights = (w1, level_bias, w2, b2)
    if groups > 1:
        return parts.sum(embeddings, *weights)
    return d_e, *parts.sum(*weights)


def _contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.contiguous() for t in tensors)
