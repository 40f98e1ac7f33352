"""``local_path`` in Triton: a tile of tokens, the taps' rows before each, residual and LayerNorm.

Both passes are bound by memory: forward reads x once (the rows before a token come from L1) and
writes y, backward reads x and y's gradient and writes x's. The four words of a Philox call serve
the four quarters of a row, else its integers would take longer than the memory.

What reaches x_t backward comes from the tokens t..t+k-1 of its sequence. A tile therefore makes
k-1 rows more than it owns, and hands them from row to row on chip. It leaves its share of the
weights' gradients, k+2 rows, to the sum of all partials.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import rng
from ._heuristics import AMD
from ._jagged import sequence_of
from ._launch import architecture, launch, padded_size, search_steps
from ._mlp import normalise
from ._reduce import Partials
from .philox import drop, keep_bits

ELEMENTS = 1024  # of a tile forward, 8 a thread
ROWS = 32  # of a tile backward, of which at least half are its own
WARP = 512  # elements that a warp has of it


@triton.jit
def _columns(D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The dimensions of a tile's columns, a quarter behind the other, and which of them exist."""
    column = tl.arange(0, BLOCK_D)
    if D == BLOCK_D:
        dims = column
        inside = column < D
    else:
        within = column % (BLOCK_D // 4)
        dims = column // (BLOCK_D // 4) * ((D + 3) // 4) + within
        inside = (within < (D + 3) // 4) & (dims < D)
    return dims, inside


@triton.jit
def _kept(first, seed_ptr, stream, threshold, D: tl.constexpr, BLOCK_D: tl.constexpr,
          ROWS: tl.constexpr):
    """Dropout's masks of a tile's rows: a column's is the bit of its quarter."""
    quarter = tl.arange(0, BLOCK_D // 4)
    within = tl.arange(0, ROWS)[:, None] * ((D + 3) // 4) + quarter[None, :]
    index = first * ((D + 3) // 4) + within
    bits = keep_bits(seed_ptr, index, stream, 0, threshold, (D + 3) // 4)
    return tl.reshape(tl.broadcast_to(bits[:, None, :], (ROWS, 4, BLOCK_D // 4)), (ROWS, BLOCK_D))


@triton.jit
def _normalised(
    first, x_ptr, offsets_ptr, taps_ptr, seed_ptr, tokens, batch, steps, taps, eps, stream,
    threshold, keep_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, DROPOUT: tl.constexpr,
):
    """Of a tile of tokens from ``first`` on, int64: the tokens, whether they exist, begin and end
    of their sequences, dropout's masks, rows before LayerNorm's affine part with 1/sigma."""
    dims, inside = _columns(D, BLOCK_D)
    row = tl.arange(0, ROWS)
    token = first + row
    sequence = sequence_of(token, offsets_ptr, batch, steps)
    real = (token < tokens) & (sequence < batch)
    begin = tl.load(offsets_ptr + sequence, mask=real, other=0)
    end = tl.load(offsets_ptr + sequence + 1, mask=real, other=0)
    at = x_ptr + first * D + (row[:, None] * D + dims[None, :])
    mask = real[:, None] & inside[None, :]
    x = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    mixed = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for back in range(0, taps):
        tap = tl.load(taps_ptr + back * D + dims, mask=inside, other=0.0).to(tl.float32)
        there = mask & (token - back >= begin)[:, None]
        mixed += tl.load(at - back * D, mask=there, other=0.0).to(tl.float32) * tap[None, :]
    kept = 0
    if DROPOUT:
        kept = _kept(first, seed_ptr, stream, threshold, D, BLOCK_D, ROWS)
        mixed = _dropped(mixed, kept, keep_scale, BLOCK_D, DROPOUT)
    normal, inverse = normalise(x + mixed, inside[None, :], eps, D)
    return token, real, begin, end, kept, normal, inverse


@triton.jit
def _dropped(mixed, kept, keep_scale, BLOCK_D: tl.constexpr, DROPOUT: tl.constexpr):
    """Dropout of a tile, and of its gradient."""
    if DROPOUT:
        lane = tl.arange(0, BLOCK_D) // (BLOCK_D // 4)
        mixed = drop(mixed, kept, lane[None, :], keep_scale)
    return mixed


@triton.jit(do_not_specialize=["tokens", "batch", "steps", "taps", "stream", "threshold"])
def _forward_kernel(
    x_ptr, offsets_ptr, taps_ptr, weight_ptr, bias_ptr, seed_ptr, y_ptr,
    tokens, batch, steps, taps, eps, stream, threshold, keep_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, DROPOUT: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    dims, inside = _columns(D, BLOCK_D)
    _, real, _, _, _, normal, _ = _normalised(
        first, x_ptr, offsets_ptr, taps_ptr, seed_ptr, tokens, batch, steps, taps, eps, stream,
        threshold, keep_scale, D, BLOCK_D, ROWS, DROPOUT,
    )
    weight = tl.load(weight_ptr + dims, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + dims, mask=inside, other=0.0).to(tl.float32)
    y = normal * weight[None, :] + bias[None, :]
    mask = real[:, None] & inside[None, :]
    at = tl.arange(0, ROWS)[:, None] * D + dims[None, :]
    tl.store(y_ptr + first * D + at, y, mask=mask)


@triton.jit(do_not_specialize=["tokens", "batch", "steps", "taps", "stream", "threshold"])
def _backward_kernel(
    grad_ptr, x_ptr, offsets_ptr, taps_ptr, weight_ptr, seed_ptr,
    d_x_ptr, d_taps_ptr, d_weight_ptr, d_bias_ptr,
    tokens, batch, steps, taps, eps, stream, threshold, keep_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, DROPOUT: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    own = ROWS - taps + 1
    first = slot * own
    dims, inside = _columns(D, BLOCK_D)
    token, real, begin, end, kept, normal, inverse = _normalised(
        first, x_ptr, offsets_ptr, taps_ptr, seed_ptr, tokens, batch, steps, taps, eps, stream,
        threshold, keep_scale, D, BLOCK_D, ROWS, DROPOUT,
    )
    row = tl.arange(0, ROWS)
    # Within a tile: 64 bits an element would take the registers.
    at = row[:, None] * D + dims[None, :]
    mask = real[:, None] & inside[None, :]
    ours = (row < own)[:, None] & mask
    # What capacity's rows of the gradient hold, nobody wrote.
    grad = tl.load(grad_ptr + first * D + at, mask=mask, other=0.0).to(tl.float32)
    d_weight = tl.sum(tl.where(ours, grad * normal, 0.0), 0)
    tl.store(d_weight_ptr + slot * D + dims, d_weight, mask=inside)
    tl.store(d_bias_ptr + slot * D + dims, tl.sum(tl.where(ours, grad, 0.0), 0), mask=inside)
    grad *= tl.load(weight_ptr + dims, mask=inside, other=0.0).to(tl.float32)[None, :]
    along = tl.sum(grad * normal, 1) / D
    d_x = (grad - (tl.sum(grad, 1) / D)[:, None] - normal * along[:, None]) * inverse[:, None]
    d_mixed = _dropped(d_x, kept, keep_scale, BLOCK_D, DROPOUT)
    for back in range(0, taps):
        tap = tl.load(taps_ptr + back * D + dims, mask=inside, other=0.0).to(tl.float32)
        # Of the token that this one was `back` tokens before.
        source = tl.broadcast_to(tl.minimum(row + back, ROWS - 1)[:, None], (ROWS, BLOCK_D))
        later = tl.gather(d_mixed, source, 0)
        d_x += tl.where((token + back < end)[:, None], later * tap[None, :], 0.0)
    tl.store(d_x_ptr + first * D + at, d_x, mask=ours)
    # A loop of its own, by when d_x is out of the registers.
    for back in range(0, taps):
        there = ours & (token - back >= begin)[:, None]
        earlier = tl.load(x_ptr + (first - back) * D + at, mask=there, other=0.0).to(tl.float32)
        to = d_taps_ptr + (slot * taps + back) * D + dims
        tl.store(to, tl.sum(d_mixed * earlier, 0), mask=inside)


def _common(
    x: Tensor, offsets: Tensor, taps: Tensor, norm_weight: Tensor, eps: float, p: float,
    seed: Tensor | None, stream: int,
) -> dict[str, Any]:
    batch = offsets.shape[0] - 1
    return {
        "x_ptr": x.contiguous(), "offsets_ptr": offsets.contiguous(),
        "taps_ptr": taps.contiguous(), "weight_ptr": norm_weight, "seed_ptr": seed,
        "tokens": x.shape[0], "batch": batch, "steps": search_steps(batch),
        "taps": taps.shape[0], "eps": eps, "stream": stream,
        "threshold": rng.dropout_threshold(p), "keep_scale": 1.0 / (1.0 - p), "D": x.shape[1],
        "BLOCK_D": padded_size(x.shape[1]), "DROPOUT": seed is not None,
    }


def _options(device: torch.device, warps: int) -> dict[str, int]:
    """Compile options; left alone, ptxas stops early with some and spills."""
    options = {"num_warps": warps}
    return options if architecture(device) in AMD else {**options, "maxnreg": 128}


def fwd(
    x: Tensor, offsets: Tensor, taps: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float,
    p: float, seed: Tensor | None, stream: int,
) -> Tensor:
    """``local_path_fwd`` of the op's schema: ``[N, D]``."""
    common = _common(x, offsets, taps, norm_weight, eps, p, seed, stream)
    rows = ELEMENTS // common["BLOCK_D"]
    y = torch.empty_like(common["x_ptr"])
    arguments = {**common, "bias_ptr": norm_bias, "y_ptr": y, "ROWS": rows}
    options = _options(x.device, 4)
    launch(_forward_kernel, (triton.cdiv(x.shape[0], rows),), arguments, options)
    return y


def bwd(
    grad: Tensor, x: Tensor, offsets: Tensor, taps: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    eps: float, p: float, seed: Tensor | None, stream: int,
) -> tuple[Tensor, ...]:
    """``local_path_bwd``: gradients of x, the taps and LayerNorm's weight and bias."""
    common = _common(x, offsets, taps, norm_weight, eps, p, seed, stream)
    slots = triton.cdiv(x.shape[0], ROWS - taps.shape[0] + 1)
    d_x, parts = torch.empty_like(common["x_ptr"]), Partials()
    launch(_backward_kernel, (slots,), {
        **common, "grad_ptr": grad, "d_x_ptr": d_x, "d_taps_ptr": parts.new(taps, slots),
        "d_weight_ptr": parts.new(norm_weight, slots), "d_bias_ptr": parts.new(norm_bias, slots),
        "ROWS": ROWS,
    }, _options(x.device, ROWS * common["BLOCK_D"] // WARP))
    return d_x, *parts.sum(taps, norm_weight, norm_bias)
