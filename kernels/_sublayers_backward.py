"""The gradients of what follows the attention in a post-LN layer; see ``_sublayers``.

The kernel computes its rows again and then differentiates them. It leaves to others x', the
gradient of the feed-forward's result and that of the projection's, from which they make the weight
gradients: their accumulators would not fit beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .. import rng
from ._jagged import token_of
from ._launch import Operands, launch
from ._mlp import activate_and_slope, hidden_before, load_w1, load_w2, normalise, perceptron
from ._product import product
from ._reduce import Partials
from ._sublayers import _arguments, _bits, _drop, _project, _vector

NORMS = ("ln1_w", "ln1_b", "ln2_w", "ln2_b")


@triton.jit
def _normalise_backward(grad, y, inverse, inside, D: tl.constexpr):
    """LayerNorm's gradient: take out the mean and the part along y, its result."""
    along = tl.sum(grad * y, 1) / D
    mean = tl.sum(grad, 1) / D
    d = (grad - mean[:, None] - y * along[:, None]) * inverse[:, None]
    return tl.where(inside, d, 0.0)


@triton.jit
def _add(w_ptr, b_ptr, at, dims, grad, y, lane, D: tl.constexpr):
    """Add a level to the partials at ``at`` of LayerNorm's weight and bias; lane 0 is the first."""
    there = dims < tl.where(lane > 0, D, 0)
    w = tl.load(w_ptr + at + dims, mask=there, other=0.0) + tl.sum(grad * y, 0)
    b = tl.load(b_ptr + at + dims, mask=there, other=0.0) + tl.sum(grad, 0)
    tl.store(w_ptr + at + dims, w, mask=dims < D)
    tl.store(b_ptr + at + dims, b, mask=dims < D)


@triton.jit(do_not_specialize=["rows", "tokens", "threshold"])
def _sublayers_backward_kernel(
    grad_ptr, x_ptr, context_ptr, offsets_ptr, reach_ptr, out_w_ptr, out_b_ptr, ln1_w_ptr,
    ln1_b_ptr, ff1_w_ptr, ff1_b_ptr, ff2_w_ptr, ff2_b_ptr, ln2_w_ptr, ln2_b_ptr, seed_ptr,
    h_ptr, d_ff_ptr, d_projected_ptr, d_context_ptr, residual_ptr,
    d_ln1_w_ptr, d_ln1_b_ptr, d_ln2_w_ptr, d_ln2_b_ptr,
    rows, tokens, eps, threshold, keep_scale, stream1, stream2,
    D: tl.constexpr, F: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, DROPOUT: tl.constexpr, LAST: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1)
    reach = tl.load(reach_ptr + row, mask=row < rows, other=0)
    dims = tl.arange(0, BLOCK_D)
    inside = (dims < D)[None, :]
    token = token_of(row, reach > 0, offsets_ptr, LAST)
    index = token[:, None] * D + dims[None, :]
    bits1 = _bits(seed_ptr, index, stream1, group, threshold, D, DROPOUT)
    bits2 = _bits(seed_ptr, index, stream2, group, threshold, D, DROPOUT)
    deepest = tl.max(reach)
    # A partial of the levels' sums, in memory: in registers over the levels, the four would spill.
    at_sums = (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + group) * D
    if deepest <= 4 * group:
        nothing = tl.zeros((BLOCK_D,), tl.float32)
        tl.store(d_ln1_w_ptr + at_sums + dims, nothing, mask=dims < D)
        tl.store(d_ln1_b_ptr + at_sums + dims, nothing, mask=dims < D)
        tl.store(d_ln2_w_ptr + at_sums + dims, nothing, mask=dims < D)
        tl.store(d_ln2_b_ptr + at_sums + dims, nothing, mask=dims < D)
    for level in range(4 * group, tl.minimum(4 * group + 4, deepest)):
        exists = reach > level
        mask = exists[:, None] & inside
        plane = tl.full((), level, tl.int64)
        at_row = plane * rows + row
        at = at_row[:, None] * D + dims[None, :]
        x = tl.load(x_ptr + plane * tokens * D + index, mask=mask, other=0.0).to(tl.float32)
        projected = _project(context_ptr, at_row, exists, out_w_ptr, dims, D, BLOCK_D, ROWS,
                             CHUNK, OPERAND, PRECISION) + _vector(out_b_ptr, dims, D)
        lane = level - 4 * group
        normal1, inverse1 = normalise(
            x + _drop(projected, bits1, lane, keep_scale, DROPOUT), inside, eps, D
        )
        ln1_w = _vector(ln1_w_ptr, dims, D)
        h = normal1 * ln1_w + _vector(ln1_b_ptr, dims, D)
        narrow = h.to(OPERAND)
        tl.store(h_ptr + at, narrow, mask=mask)
        ff2_b = tl.load(ff2_b_ptr + dims, mask=dims < D, other=0.0).to(tl.float32)
        y = perceptron(narrow, ff2_b, ff1_w_ptr, ff1_b_ptr, ff2_w_ptr, dims, F, D, CHUNK,
                       PRECISION)
        normal2, inverse2 = normalise(
            h + _drop(y, bits2, lane, keep_scale, DROPOUT), inside, eps, D
        )
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
        # Sums of the level before are there for all threads.
        tl.debug_barrier()
        _add(d_ln2_w_ptr, d_ln2_b_ptr, at_sums, dims, grad, normal2, lane, D)
        d_h = _normalise_backward(
            grad * _vector(ln2_w_ptr, dims, D), normal2, inverse2, inside, D
        )
        d_ff = _drop(d_h, bits2, lane, keep_scale, DROPOUT).to(OPERAND)
        tl.store(d_ff_ptr + at, d_ff, mask=mask)
        for start in range(0, F, CHUNK):
            hidden = start + tl.arange(0, CHUNK)
            w1 = load_w1(ff1_w_ptr, hidden, dims, F, D, OPERAND)
            before = hidden_before(narrow, w1, ff1_b_ptr, hidden, F, PRECISION)
            _, slope = activate_and_slope(before, True)
            w2 = load_w2(ff2_w_ptr, hidden, dims, F, D, OPERAND)
            d_before = product(d_ff, w2, PRECISION) * slope
            d_h += product(d_before.to(OPERAND), tl.trans(w1), PRECISION)
        _add(d_ln1_w_ptr, d_ln1_b_ptr, at_sums, dims, d_h, normal1, lane, D)
        d_sum = _normalise_backward(d_h * ln1_w, normal1, inverse1, inside, D)
        tl.store(residual_ptr + at, d_sum, mask=mask)
        d_projected = _drop(d_sum, bits1, lane, keep_scale, DROPOUT).to(OPERAND)
        tl.store(d_projected_ptr + at, d_projected, mask=mask)
        for start in range(0, D, CHUNK):
            part = start + tl.arange(0, CHUNK)
            w = load_w2(out_w_ptr, part, dims, D, D, OPERAND)
            to = d_context_ptr + at_row[:, None] * D + part[None, :]
            d_context = product(d_projected, w, PRECISION)
            tl.store(to, d_context, mask=exists[:, None] & (part < D)[None, :])


class Gradients(NamedTuple):
    """``[K, R, D]``. ``h`` is x'; ``d_ff`` and ``d_projected`` are the gradients before dropout,
    where the linear layers end; these and ``d_context`` have the operands' dtype. ``residual``, in
    x's, is the part of dx that does not go through the attention.
    """

    h: Tensor
    d_ff: Tensor
    d_projected: Tensor
    d_context: Tensor
    residual: Tensor


def sublayers_backward(
    grad_y: Tensor, x: Tensor, context: Tensor, offsets: Tensor, reach: Tensor,
    weights: dict[str, Tensor], ops: Operands, parts: Partials, *, eps: float, dropout: float,
    seed: Tensor | None, stream: int, last_only: bool,
) -> Gradients:
    """Gradients, given that of y ``[K, R, D]``, and partials of both LayerNorms' in ``parts``.

    The rest is as in ``sublayers``.
    """
    arguments, tile = _arguments(
        "sublayers_backward", x, context, offsets, reach, weights, eps, dropout, seed, stream,
        last_only, ops,
    )
    planes, _, size = x.shape
    rows = reach.shape[0]
    grid = (triton.cdiv(rows, tile.rows), triton.cdiv(planes, rng.LANES))
    narrow = [x.new_empty(planes, rows, size, dtype=ops.torch_dtype) for _ in range(4)]
    found = Gradients(*narrow, x.new_empty(planes, rows, size))
    arguments |= {
        "grad_ptr": grad_y, **{f"{name}_ptr": t for name, t in found._asdict().items()},
        **{f"d_{name}_ptr": parts.new(weights[name], grid[0] * grid[1]) for name in NORMS},
    }
    launch(_sublayers_backward_kernel, grid, arguments, tile.options)
    return found
