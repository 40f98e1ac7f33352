"""``mlp_expert`` in Triton: the token-wise coarse expert over levels of ragged depth.

A program takes a tile of rows (tokens, or the last tokens of sequences) and loops over the levels
up to the deepest of its tile, or over a part of them where the tiles alone do not fill the device
(``pairs_a_program``); the hidden activations never leave the chip. Backward recomputes
them: one kernel makes dx and the gradient before LayerNorm and dropout, the second, shared with the
denoiser, the weight gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import rng
from ..packed import mlp_expert as packed
from . import _heuristics
from ._jagged import levels_of, planes_of, sequence_of, token_of
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
    activate_and_slope,
    hidden_before,
    load_w1,
    load_w2,
    normalise,
    perceptron,
    weight_gradients,
)
from ._product import product
from ._reduce import Partials
from .philox import keep, philox4


@triton.jit
def _scale_pair(seed_ptr, index, stream, pair, threshold, scale, D: tl.constexpr,
                DROPOUT: tl.constexpr):
    """Dropout's factors of the levels 2 * pair and 2 * pair + 1: 0 or 1 / (1 - p)."""
    if DROPOUT:
        w0, w1, w2, w3 = philox4(seed_ptr, index, stream, pair // 2, D)
        first = pair % 2 == 0
        even = tl.where(keep(tl.where(first, w0, w2), threshold), scale, 0.0)
        odd = tl.where(keep(tl.where(first, w1, w3), threshold), scale, 0.0)
    else:
        even = 1.0
        odd = 1.0
    return even, odd


@triton.jit(do_not_specialize=["rows", "tokens", "batch", "steps", "planes", "pairs", "threshold"])
def _forward_kernel(
    x_ptr, offsets_ptr, depth_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, ln_w_ptr, ln_b_ptr, seed_ptr,
    y_ptr, rows, tokens, batch, steps, planes, pairs, eps, threshold, scale, stream,
    D: tl.constexpr, H: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, DROPOUT: tl.constexpr, HAS_DEPTH: tl.constexpr, LAST: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    reach = planes_of(row, rows, offsets_ptr, depth_ptr, batch, steps, planes, HAS_DEPTH, LAST)
    deepest = tl.max(reach)
    first = tl.program_id(1) * pairs
    last = tl.minimum(first + pairs, tl.cdiv(deepest, 2))
    if last <= first:
        return
    dims = tl.arange(0, BLOCK_D)
    inside = (dims < D)[None, :]
    token = token_of(row, reach > 0, offsets_ptr, LAST)
    index = token[:, None] * D + dims[None, :]
    at_row = row[:, None] * D + dims[None, :]
    b2 = tl.load(b2_ptr + dims, mask=dims < D, other=0.0).to(tl.float32)
    ln_w = tl.load(ln_w_ptr + dims, mask=dims < D, other=0.0).to(tl.float32)
    ln_b = tl.load(ln_b_ptr + dims, mask=dims < D, other=0.0).to(tl.float32)
    for pair in range(first, last):
        even, odd = _scale_pair(seed_ptr, index, stream, pair, threshold, scale, D, DROPOUT)
        for lane in tl.static_range(2):
            plane = 2 * pair + lane
            if plane < deepest:
                mask = (reach > plane)[:, None] & inside
                at_x = x_ptr + tokens.to(tl.int64) * D * plane + index
                x = tl.load(at_x, mask=mask, other=0.0).to(OPERAND)
                y = perceptron(x, b2, w1_ptr, b1_ptr, w2_ptr, dims, H, D, CHUNK, PRECISION)
                y *= even if lane == 0 else odd
                y, _ = normalise(y, inside, eps, D)
                y = y * ln_w[None, :] + ln_b[None, :]
                tl.store(y_ptr + rows.to(tl.int64) * D * plane + at_row, y, mask=mask)


@triton.jit(do_not_specialize=["rows", "tokens", "batch", "steps", "planes", "pairs", "threshold"])
def _backward_kernel(
    grad_ptr, x_ptr, offsets_ptr, depth_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, ln_w_ptr, ln_b_ptr,
    seed_ptr, last_ptr, content_ptr, d_x_ptr, d_y_ptr, reach_ptr, d_ln_w_ptr, d_ln_b_ptr,
    rows, tokens, batch, steps, planes, pairs, eps, threshold, scale, stream,
    D: tl.constexpr, H: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, DROPOUT: tl.constexpr, HAS_DEPTH: tl.constexpr, LAST: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    """With ``last_ptr``, gradients are given of the mean over tokens (``grad_ptr``), of the last
    one, and of the mean of x, if that is asked for: ``mlp_expert_pooled``.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    if last_ptr is None:
        reach = planes_of(row, rows, offsets_ptr, depth_ptr, batch, steps, planes, HAS_DEPTH, LAST)
    else:
        owner = sequence_of(row, offsets_ptr, batch, steps).to(tl.int64)
        real = (row < rows) & (owner < batch)
        reach = levels_of(depth_ptr, owner, real, planes, HAS_DEPTH)
        end = tl.load(offsets_ptr + owner + 1, mask=real, other=1)
        share = 1.0 / (end - tl.load(offsets_ptr + owner, mask=real, other=0)).to(tl.float32)
        at_owner = owner[:, None] * D + tl.arange(0, BLOCK_D)[None, :]
    group = tl.program_id(1)
    if group == 0:
        tl.store(reach_ptr + row, reach, mask=row < rows)
    deepest = tl.max(reach)
    first = group * pairs
    last = tl.minimum(first + pairs, tl.cdiv(deepest, 2))
    dims = tl.arange(0, BLOCK_D)
    inside = (dims < D)[None, :]
    token = token_of(row, reach > 0, offsets_ptr, LAST)
    index = token[:, None] * D + dims[None, :]
    at_row = row[:, None] * D + dims[None, :]
    b2 = tl.load(b2_ptr + dims, mask=dims < D, other=0.0).to(tl.float32)
    ln_w = tl.load(ln_w_ptr + dims, mask=dims < D, other=0.0).to(tl.float32)
    d_ln_w = tl.zeros((BLOCK_D,), tl.float32)
    d_ln_b = tl.zeros((BLOCK_D,), tl.float32)
    if LAST:
        length = token + 1 - tl.load(offsets_ptr + row, mask=reach > 0, other=1)
    for pair in range(first, last):
        even, odd = _scale_pair(seed_ptr, index, stream, pair, threshold, scale, D, DROPOUT)
        for lane in tl.static_range(2):
            plane = 2 * pair + lane
            if plane < deepest:
                mask = (reach > plane)[:, None] & inside
                at_x = tokens.to(tl.int64) * D * plane + index
                at_y = rows.to(tl.int64) * D * plane + at_row
                factor = even if lane == 0 else odd
                x = tl.load(x_ptr + at_x, mask=mask, other=0.0).to(OPERAND)
                y = perceptron(x, b2, w1_ptr, b1_ptr, w2_ptr, dims, H, D, CHUNK, PRECISION)
                y, inverse = normalise(y * factor, inside, eps, D)
                if last_ptr is None:
                    grad = tl.load(grad_ptr + at_y, mask=mask, other=0.0).to(tl.float32)
                else:
                    at_mean = batch.to(tl.int64) * D * plane + at_owner
                    grad = tl.load(grad_ptr + at_mean, mask=mask, other=0.0).to(tl.float32)
                    grad *= share[:, None]
                    own = mask & (row + 1 == end)[:, None]
                    grad += tl.load(last_ptr + at_mean, mask=own, other=0.0).to(tl.float32)
                d_ln_w += tl.sum(grad * y, 0)
                d_ln_b += tl.sum(grad, 0)
                grad *= ln_w[None, :]
                # LayerNorm's backward: take out the mean and the part along y itself.
                along = tl.sum(grad * y, 1) / D
                mean = tl.sum(grad, 1) / D
                d_y = (grad - mean[:, None] - y * along[:, None]) * inverse[:, None] * factor
                d_y = tl.where(inside, d_y, 0.0).to(OPERAND)
                tl.store(d_y_ptr + at_y, d_y, mask=mask)
                d_x = tl.zeros((ROWS, BLOCK_D), tl.float32)
                for start in range(0, H, CHUNK):
                    hidden = start + tl.arange(0, CHUNK)
                    w1 = load_w1(w1_ptr, hidden, dims, H, D, OPERAND)
                    before = hidden_before(x, w1, b1_ptr, hidden, H, PRECISION)
                    _, slope = activate_and_slope(before, True)
                    w2 = load_w2(w2_ptr, hidden, dims, H, D, OPERAND)
                    d_before = product(d_y, w2, PRECISION) * slope
                    d_x += product(d_before.to(OPERAND), tl.trans(w1), PRECISION)
                if content_ptr is not None:
                    mean = tl.load(content_ptr + at_mean, mask=mask, other=0.0).to(tl.float32)
                    d_x += mean * share[:, None]
                tl.store(d_x_ptr + at_x, d_x, mask=mask)
                if LAST:
                    # Tokens before the last have a gradient too: zero.
                    nothing = tl.zeros((ROWS, BLOCK_D), tl.float32)
                    for back in range(1, tl.max(length).to(tl.int32)):
                        tl.store(d_x_ptr + at_x - back * D, nothing,
                                 mask=mask & (back < length)[:, None])
    at = (tl.program_id(0) * tl.num_programs(1) + group) * D + dims
    tl.store(d_ln_w_ptr + at, d_ln_w, mask=dims < D)
    tl.store(d_ln_b_ptr + at, d_ln_b, mask=dims < D)


def _arguments(
    kernel: str, ops: Operands, x: Tensor, offsets: Tensor, depth: Tensor | None, w1: Tensor,
    b1: Tensor, w2: Tensor, b2: Tensor, ln_w: Tensor, ln_b: Tensor, eps: float,
    hidden_dropout: float, seed: Tensor | None, stream: int, last_only: bool,
) -> tuple[dict[str, Any], _heuristics.Tile]:
    planes, tokens, size = x.shape
    block = padded_size(size)
    batch = offsets.shape[0] - 1
    rows = batch if last_only else tokens
    tile = _heuristics.tile(kernel, block, ops.kind, architecture(x.device), rows)
    return {
        "x_ptr": x, "offsets_ptr": offsets, "depth_ptr": depth, "w1_ptr": w1, "b1_ptr": b1,
        "w2_ptr": w2, "b2_ptr": b2, "ln_w_ptr": ln_w, "ln_b_ptr": ln_b, "seed_ptr": seed,
        "rows": rows, "tokens": tokens, "batch": batch,
        "steps": search_steps(batch), "planes": planes, "eps": eps,
        "threshold": rng.dropout_threshold(hidden_dropout), "scale": 1.0 / (1.0 - hidden_dropout),
        "stream": stream, "D": size, "H": w1.shape[0], "BLOCK_D": block, "ROWS": tile.rows,
        "CHUNK": tile.chunk, "DROPOUT": seed is not None, "HAS_DEPTH": depth is not None,
        "LAST": last_only, "OPERAND": ops.dtype, "PRECISION": ops.precision,
    }, tile


def _grid(
    arguments: dict[str, Any], tile: _heuristics.Tile, x: Tensor
) -> tuple[tuple[int, int], int]:
    """Tiles of rows by parts of the levels, and the pairs of levels of a part."""
    tiles, planes = triton.cdiv(arguments["rows"], tile.rows), x.shape[0]
    pairs = pairs_a_program(tiles, planes, x.device)
    return (tiles, triton.cdiv(triton.cdiv(planes, 2), pairs)), pairs


def fwd(
    x: Tensor, offsets: Tensor, depth: Tensor | None, w1: Tensor, b1: Tensor, w2: Tensor,
    b2: Tensor, ln_w: Tensor, ln_b: Tensor, eps: float, hidden_dropout: float,
    seed: Tensor | None, stream: int, residual: bool, last_only: bool,
) -> Tensor:
    """``mlp_expert_fwd`` of the op's schema: ``[K, N, D]``, or ``[K, B, D]`` if ``last_only``.

    A path around the MLP has no kernel yet: packed PyTorch computes it.
    """
    if residual:
        return packed.fwd(
            x, offsets, depth, w1, b1, w2, b2, ln_w, ln_b, eps, hidden_dropout, seed, stream,
            residual, last_only,
        )  # fmt: skip
    x, w1, w2 = x.contiguous(), w1.contiguous(), w2.contiguous()
    arguments, tile = _arguments(
        "mlp_forward", operands(x), x, offsets, depth, w1, b1, w2, b2, ln_w, ln_b, eps,
        hidden_dropout, seed, stream, last_only,
    )
    rows = arguments["rows"]
    y = x.new_empty(x.shape[0], rows, x.shape[2])
    grid, pairs = _grid(arguments, tile, x)
    launch(_forward_kernel, grid, {**arguments, "y_ptr": y, "pairs": pairs}, tile.options)
    return y


def bwd(
    grad_y: Tensor, x: Tensor, offsets: Tensor, depth: Tensor | None, w1: Tensor, b1: Tensor,
    w2: Tensor, b2: Tensor, ln_w: Tensor, ln_b: Tensor, eps: float, hidden_dropout: float,
    seed: Tensor | None, stream: int, residual: bool, last_only: bool,
) -> tuple[Tensor, ...]:
    """``mlp_expert_bwd``: gradients of x, w1, b1, w2, b2, ln_w and ln_b."""
    if residual:
        return packed.bwd(
            grad_y, x, offsets, depth, w1, b1, w2, b2, ln_w, ln_b, eps, hidden_dropout, seed,
            stream, residual, last_only,
        )  # fmt: skip
    return backward(
        {"grad_ptr": grad_y.contiguous(), "last_ptr": None, "content_ptr": None}, x, offsets,
        depth, w1, b1, w2, b2, ln_w, ln_b, eps, hidden_dropout, seed, stream, last_only,
    )


def backward(
    given: dict[str, Tensor | None], x: Tensor, offsets: Tensor, depth: Tensor | None, w1: Tensor,
    b1: Tensor, w2: Tensor, b2: Tensor, ln_w: Tensor, ln_b: Tensor, eps: float,
    hidden_dropout: float, seed: Tensor | None, stream: int, last_only: bool,
) -> tuple[Tensor, ...]:
    """Those gradients, from the ``given`` ones as the kernel takes them."""
    x, w1, w2 = (t.contiguous() for t in (x, w1, w2))
    ops = operands(x)
    arguments, tile = _arguments(
        "mlp_backward", ops, x, offsets, depth, w1, b1, w2, b2, ln_w, ln_b, eps, hidden_dropout,
        seed, stream, last_only,
    )
    rows = arguments["rows"]
    grid, pairs = _grid(arguments, tile, x)
    d_x = torch.empty_like(x)
    d_y = x.new_empty(x.shape[0], rows, x.shape[2], dtype=ops.torch_dtype)
    reach = torch.empty(rows, dtype=torch.int32, device=x.device)
    parts = Partials()
    arguments |= {
        **given, "d_x_ptr": d_x, "d_y_ptr": d_y, "reach_ptr": reach,
        "d_ln_w_ptr": parts.new(ln_w, grid[0] * grid[1]),
        "d_ln_b_ptr": parts.new(ln_b, grid[0] * grid[1]), "pairs": pairs,
    }
    launch(_backward_kernel, grid, arguments, tile.options)
    weight_gradients(
        x, d_y, reach, offsets, w1, b1, w2, b2, ops, parts, gelu=True, last_only=last_only
    )
    return d_x, *parts.sum(w1, b1, w2, b2, ln_w, ln_b)
