"""Weight gradients of the linear layers of an op, over (level, row) pairs of ragged depth.

A program owns a chunk of one layer's outputs and every n-th pair of a level and a tile of rows; its
partial is added to others in a fixed order (``_reduce``). All layers of an op share a launch: one
after the other, those of a small batch would leave most of a device idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from . import _heuristics
from ._jagged import token_of
from ._launch import Operands, architecture, launch, multiprocessors, padded_size
from ._product import product
from ._reduce import Partials


class Linear(NamedTuple):
    """A layer whose gradients are asked for.

    Args:
        x: its input, ``[K, R, D]``; or ``[K, R, H, D]`` where out falls into H heads, each with an
            x of its own; or ``[K, N, D]`` if ``last_only``.
        grad: ``[K, R, out]``, of its result.
        w, bias: ``[out, D]`` and ``[out]``, or more rows of which ``outputs`` says which are meant;
            a bias of None gets no gradient.
        outputs: begin and end of the rows of w.
        weight: float32 ``[K, R, H]`` that the bias was multiplied by, or None.
        last_only: a row is a sequence and its x that of its last token.
    """

    x: Tensor
    grad: Tensor
    w: Tensor
    bias: Tensor | None
    outputs: tuple[int, int] | None = None
    weight: Tensor | None = None
    last_only: bool = False

    @property
    def heads(self) -> int:
        return self.x.shape[2] if self.x.dim() == 4 else 1


@triton.jit(do_not_specialize=["rows", "tokens", "planes"])
def _linear_weights_kernel(
    xs, grads, weight_ptr, offsets_ptr, reach_ptr, d_ws, d_biases, table, rows, tokens, planes,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    MIXED: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    """``table[i]``: the layer's first program; out; heads; and whether its bias has a gradient,
    was weighted, and its rows are last tokens. Floats, as in ``_reduce``. MIXED: the first layer's
    x has another dtype than those of the others.
    """
    slot, program = tl.program_id(0), tl.program_id(1)
    x_ptr = xs[1] if MIXED else xs[0]
    grad_ptr, d_w_ptr, d_bias_ptr = grads[0], d_ws[0], d_biases[0]
    first = tl.full((), 0.0, tl.float32)
    outs = tl.full((), table[0][1], tl.float32)
    heads = tl.full((), table[0][2], tl.float32)
    biased = tl.full((), table[0][3], tl.float32)
    weighted = tl.full((), table[0][4], tl.float32)
    last = tl.full((), table[0][5], tl.float32)
    for layer in tl.static_range(1, len(table)):
        later = program >= table[layer][0]
        if layer > 1 or not MIXED:
            x_ptr = tl.where(later, xs[layer], x_ptr)
        grad_ptr = tl.where(later, grads[layer], grad_ptr)
        d_w_ptr = tl.where(later, d_ws[layer], d_w_ptr)
        d_bias_ptr = tl.where(later, d_biases[layer], d_bias_ptr)
        first = tl.where(later, table[layer][0], first)
        outs = tl.where(later, table[layer][1], outs)
        heads = tl.where(later, table[layer][2], heads)
        biased = tl.where(later, table[layer][3], biased)
        weighted = tl.where(later, table[layer][4], weighted)
        last = tl.where(later, table[layer][5], last)
    outs = outs.to(tl.int32)
    heads = heads.to(tl.int32)
    # Each head has columns of its own, and rows of x of its own.
    size = outs // heads
    own = program - first.to(tl.int32)
    head = own % heads
    part = own // heads * CHUNK + tl.arange(0, CHUNK)
    there, out = part < size, head * size + part
    dims = tl.arange(0, BLOCK_D)
    d_w = tl.zeros((CHUNK, BLOCK_D), tl.float32)
    d_bias = tl.zeros((CHUNK,), tl.float32)
    x_rows = tl.where(last > 0, tokens, rows).to(tl.int64)
    tiles = tl.cdiv(rows, ROWS)
    for item in range(slot, tiles * planes, tl.num_programs(0)):
        level = (item // tiles).to(tl.int64)
        row = (item % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        exists = row < rows
        if reach_ptr is not None:
            exists = tl.load(reach_ptr + row, mask=exists, other=0) > level
        if tl.max(exists.to(tl.int32)) > 0:
            token = row
            if offsets_ptr is not None:
                ends = row < tl.where(last > 0, rows, 0)
                token = tl.where(last > 0, token_of(row, exists & ends, offsets_ptr, True), row)
            at_x = ((level * x_rows + token) * heads + head)[:, None] * D + dims[None, :]
            inside = exists[:, None] & (dims < D)[None, :]
            if MIXED:
                of_first = dims < tl.where(program < table[1][0], D, 0)
                x = tl.load(xs[0] + at_x, mask=inside & of_first[None, :], other=0.0).to(OPERAND)
                other = inside & (of_first == 0)[None, :]
                x += tl.load(x_ptr + at_x, mask=other, other=0.0).to(OPERAND)
            else:
                x = tl.load(x_ptr + at_x, mask=inside, other=0.0).to(OPERAND)
            at_row = level * rows + row
            at = at_row[:, None] * outs + out[None, :]
            grad = tl.load(grad_ptr + at, mask=exists[:, None] & there[None, :], other=0.0)
            through = grad.to(tl.float32)
            if weight_ptr is not None:
                scaled = row < tl.where(weighted > 0, rows, 0)
                weight = tl.load(weight_ptr + at_row * heads + head, mask=exists & scaled,
                                 other=1.0)
                through *= weight[:, None]
            d_bias += tl.sum(through, 0)
            d_w += product(tl.trans(grad.to(OPERAND)), x, PRECISION)
    row = slot.to(tl.int64) * outs + out
    at = row[:, None] * D + dims[None, :]
    tl.store(d_w_ptr + at, d_w, mask=there[:, None] & (dims < D)[None, :])
    tl.store(d_bias_ptr + row, d_bias, mask=part < tl.where(biased > 0, size, 0))


def linear_weights(
    layers: Sequence[Linear], offsets: Tensor | None, reach: Tensor | None, ops: Operands,
    parts: Partials,
) -> None:
    """Leave partials of the layers' weights' and biases' gradients.

    Args:
        layers: of the same K, R and D. All gradients have one dtype, and all inputs but the first:
            under autocast an op's own is wider than what it makes.
        offsets: int64 ``[B+1]``, read only if the rows of a layer are last tokens.
        reach: int32 ``[R]``, how many levels exist for a row; None: all.
        ops: precision of the products.
        parts: where the partials go.
    """
    planes, rows, _ = layers[0].grad.shape
    device, size = layers[0].x.device, layers[0].x.shape[-1]
    block = padded_size(size)
    tile = _heuristics.tile("linear_weights", block, ops.kind, architecture(device), rows)
    table, programs = [], 0
    for one in layers:
        out = one.grad.shape[2]
        flags = (one.bias is not None, one.weight is not None, one.last_only)
        table.append(tuple(map(float, (programs, out, one.heads, *flags))))
        programs += one.heads * triton.cdiv(out // one.heads, tile.chunk)
    slots = min(
        max(1, triton.cdiv(rows, tile.rows) * planes),
        max(2, triton.cdiv(2 * multiprocessors(device), programs)),
    )
    d_ws = tuple(parts.new(one.w, slots, rows=one.outputs) for one in layers)
    d_biases = tuple(
        d_w if one.bias is None else parts.new(one.bias, slots, rows=one.outputs)
        for one, d_w in zip(layers, d_ws, strict=True)
    )
    last = [one for one in layers if one.last_only]
    arguments: dict[str, Any] = {
        "xs": tuple(one.x for one in layers), "grads": tuple(one.grad for one in layers),
        "weight_ptr": next((one.weight for one in layers if one.weight is not None), None),
        "offsets_ptr": offsets if last else None, "reach_ptr": reach, "d_ws": d_ws,
        "d_biases": d_biases, "table": tuple(table), "rows": rows,
        "tokens": last[0].x.shape[1] if last else rows, "planes": planes, "D": size,
        "BLOCK_D": block, "ROWS": tile.rows, "CHUNK": tile.chunk,
        "MIXED": layers[0].x.dtype != layers[-1].x.dtype, "OPERAND": ops.dtype,
        "PRECISION": ops.precision,
    }
    launch(_linear_weights_kernel, (slots, programs), arguments, tile.options)
