"""``depth_controller`` in Triton: a GRU over jagged tokens, mean pool and logits (Eq. 1, 2).

What does not depend on the step before runs over all tokens at once: the input's share of the gates
and, in backward, the gates themselves (the hidden states are saved), every weight gradient and dE.
Only the recurrence is left to the scans. A program of a scan takes a tile of sequences, keeps their
hidden state (backward: its gradient) in registers and walks to the end of the longest one; three
products with the recurrent weights a step. The forward scan pools and makes the logits as it ends.

Where three gates' weights do not fit beside the rest (``CHUNK`` smaller than the hidden size), the
scan takes the products in parts, reads the state's parts back from L1, where it has just put them,
and the weights come from L1 and L2.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _heuristics, level_pool
from ._jagged import sequence_of
from ._launch import (
    Operands,
    architecture,
    launch,
    multiprocessors,
    operands,
    padded_size,
    search_steps,
)
from ._product import product


@triton.jit
def _load(ptr, at, mask, OPERAND: tl.constexpr):
    return tl.load(ptr + at, mask=mask, other=0.0).to(OPERAND)


@triton.jit
def _rows_of(w_ptr, gate, units, dims, G: tl.constexpr, D: tl.constexpr, OPERAND: tl.constexpr):
    """A gate's rows ``units`` of a weight ``[3G, D]``: ``[units, dims]``."""
    at = (gate * G + units)[:, None] * D + dims[None, :]
    return _load(w_ptr, at, (units < G)[:, None] & (dims < D)[None, :], OPERAND)


@triton.jit
def _columns_of(w_ptr, gate, units, dims, G: tl.constexpr, D: tl.constexpr,
                OPERAND: tl.constexpr):
    """The same rows transposed: ``[dims, units]``."""
    at = (gate * G + units)[None, :] * D + dims[:, None]
    return _load(w_ptr, at, (units < G)[None, :] & (dims < D)[:, None], OPERAND)


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit(do_not_specialize=["tokens", "batch", "steps"])
def _gates_kernel(
    e_ptr, offsets_ptr, bias_ptr, w_ih_ptr, w_hh_ptr, b_hh_ptr, hidden_ptr, gates_ptr, place_ptr,
    tokens, batch, steps,
    D: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    DEPTH: tl.constexpr, WHOLE_GATES: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Planes ``[N, G]``: the input's share of r, z and n; or r, z, n and W_hn h + b_hn."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    sequence = sequence_of(token, offsets_ptr, batch, steps)
    real = (token < tokens) & (sequence < batch)
    units = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    mask = real[:, None] & (units < G)[None, :]
    at_bias = sequence.to(tl.int64)[:, None] * (3 * G) + units[None, :]
    reset = _load(bias_ptr, at_bias, mask, tl.float32)
    update = _load(bias_ptr, G + at_bias, mask, tl.float32)
    new = _load(bias_ptr, 2 * G + at_bias, mask, tl.float32)
    for start in range(0, D, DEPTH):
        dims = start + tl.arange(0, DEPTH)
        at_e = token[:, None] * D + dims[None, :]
        e = _load(e_ptr, at_e, real[:, None] & (dims < D)[None, :], OPERAND)
        reset += product(e, _columns_of(w_ih_ptr, 0, units, dims, G, D, OPERAND), PRECISION)
        update += product(e, _columns_of(w_ih_ptr, 1, units, dims, G, D, OPERAND), PRECISION)
        new += product(e, _columns_of(w_ih_ptr, 2, units, dims, G, D, OPERAND), PRECISION)
    plane = tokens.to(tl.int64) * G
    at = token[:, None] * G + units[None, :]
    if WHOLE_GATES:
        place = token - tl.load(offsets_ptr + sequence, mask=real, other=0)
        tl.store(place_ptr + token, tl.where(real, place, -1).to(tl.int32), mask=token < tokens)
        recurrent = tl.zeros((ROWS, CHUNK), tl.float32)
        recurrent += _load(b_hh_ptr, 2 * G + units, units < G, tl.float32)[None, :]
        reset += _load(b_hh_ptr, units, units < G, tl.float32)[None, :]
        update += _load(b_hh_ptr, G + units, units < G, tl.float32)[None, :]
        for start in range(0, G, DEPTH):
            states = start + tl.arange(0, DEPTH)
            had = (real & (place > 0))[:, None] & (states < G)[None, :]
            h = _load(hidden_ptr, (token - 1)[:, None] * G + states[None, :], had, OPERAND)
            reset += product(h, _columns_of(w_hh_ptr, 0, units, states, G, G, OPERAND), PRECISION)
            update += product(h, _columns_of(w_hh_ptr, 1, units, states, G, G, OPERAND), PRECISION)
            w = _columns_of(w_hh_ptr, 2, units, states, G, G, OPERAND)
            recurrent += product(h, w, PRECISION)
        reset = tl.sigmoid(reset)
        update = tl.sigmoid(update)
        new = _tanh(new + reset * recurrent)
        tl.store(gates_ptr + 3 * plane + at, recurrent, mask=mask)
    tl.store(gates_ptr + at, reset, mask=mask)
    tl.store(gates_ptr + plane + at, update, mask=mask)
    tl.store(gates_ptr + 2 * plane + at, new, mask=mask)


@triton.jit(do_not_specialize=["tokens", "batch"])
def _scan_kernel(
    gates_ptr, offsets_ptr, w_hh_ptr, b_hh_ptr, w_out_ptr, b_out_ptr, hidden_ptr, logits_ptr,
    tokens, batch,
    G: tl.constexpr, BLOCK_G: tl.constexpr, LEVELS: tl.constexpr, BLOCK_LEVELS: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    begin = tl.load(offsets_ptr + row, mask=row < batch, other=0)
    length = (tl.load(offsets_ptr + row + 1, mask=row < batch, other=0) - begin).to(tl.int32)
    units = tl.arange(0, BLOCK_G)
    inside = (units < G)[None, :]
    plane = tokens.to(tl.int64) * G
    b_r = _load(b_hh_ptr, units, units < G, tl.float32)[None, :]
    b_z = _load(b_hh_ptr, G + units, units < G, tl.float32)[None, :]
    b_n = _load(b_hh_ptr, 2 * G + units, units < G, tl.float32)[None, :]
    if CHUNK >= BLOCK_G:
        w_r = _columns_of(w_hh_ptr, 0, units, units, G, G, OPERAND)
        w_z = _columns_of(w_hh_ptr, 1, units, units, G, G, OPERAND)
        w_n = _columns_of(w_hh_ptr, 2, units, units, G, G, OPERAND)
    h = tl.zeros((ROWS, BLOCK_G), tl.float32)
    total = tl.zeros((ROWS, BLOCK_G), tl.float32)
    for step in range(0, tl.max(length)):
        running = step < length
        mask = running[:, None] & inside
        at = (begin + step)[:, None] * G + units[None, :]
        if CHUNK >= BLOCK_G:
            before = h.to(OPERAND)
            reset = product(before, w_r, PRECISION)
            update = product(before, w_z, PRECISION)
            recurrent = product(before, w_n, PRECISION)
        else:
            reset = tl.zeros((ROWS, BLOCK_G), tl.float32)
            update = tl.zeros((ROWS, BLOCK_G), tl.float32)
            recurrent = tl.zeros((ROWS, BLOCK_G), tl.float32)
            for start in range(0, G, CHUNK):
                part = start + tl.arange(0, CHUNK)
                at_part = (begin + step - 1)[:, None] * G + part[None, :]
                had = (running & (step > 0))[:, None] & (part < G)[None, :]
                before = _load(hidden_ptr, at_part, had, OPERAND)
                w = _columns_of(w_hh_ptr, 0, units, part, G, G, OPERAND)
                reset += product(before, w, PRECISION)
                w = _columns_of(w_hh_ptr, 1, units, part, G, G, OPERAND)
                update += product(before, w, PRECISION)
                w = _columns_of(w_hh_ptr, 2, units, part, G, G, OPERAND)
                recurrent += product(before, w, PRECISION)
        reset = tl.sigmoid(_load(gates_ptr, at, mask, tl.float32) + reset + b_r)
        update = tl.sigmoid(_load(gates_ptr, plane + at, mask, tl.float32) + update + b_z)
        new = _load(gates_ptr, 2 * plane + at, mask, tl.float32)
        new = _tanh(new + reset * (recurrent + b_n))
        # Rounded as it is saved, so that backward sees the same state.
        h = ((1.0 - update) * new + update * h).to(hidden_ptr.dtype.element_ty)
        tl.store(hidden_ptr + at, h, mask=mask)
        h = tl.where(mask, h.to(tl.float32), 0.0)
        total += h
        if CHUNK < BLOCK_G:
            tl.debug_barrier()
    pooled = total / tl.maximum(length, 1).to(tl.float32)[:, None]
    levels = tl.arange(0, BLOCK_LEVELS)
    w_out = _columns_of(w_out_ptr, 0, levels, units, LEVELS, G, OPERAND)
    logits = product(pooled.to(OPERAND), w_out, PRECISION)
    logits += _load(b_out_ptr, levels, levels < LEVELS, tl.float32)[None, :]
    mask = (row < batch)[:, None] & (levels < LEVELS)[None, :]
    tl.store(logits_ptr + row[:, None] * LEVELS + levels[None, :], logits, mask=mask)


@triton.jit(do_not_specialize=["tokens", "batch"])
def _scan_backward_kernel(
    grad_ptr, gates_ptr, offsets_ptr, w_hh_ptr, w_out_ptr, hidden_ptr, tokens, batch,
    G: tl.constexpr, BLOCK_G: tl.constexpr, LEVELS: tl.constexpr, BLOCK_LEVELS: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    """From r, z, n and W_hn h + b_hn to the gradients before r, z and n, and of the fourth."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    begin = tl.load(offsets_ptr + row, mask=row < batch, other=0)
    end = tl.load(offsets_ptr + row + 1, mask=row < batch, other=0)
    length = (end - begin).to(tl.int32)
    units = tl.arange(0, BLOCK_G)
    inside = (units < G)[None, :]
    plane = tokens.to(tl.int64) * G
    levels = tl.arange(0, BLOCK_LEVELS)
    asked = (row < batch)[:, None] & (levels < LEVELS)[None, :]
    grad = _load(grad_ptr, row[:, None] * LEVELS + levels[None, :], asked, OPERAND)
    w_out = _rows_of(w_out_ptr, 0, levels, units, LEVELS, G, OPERAND)
    share = product(grad, w_out, PRECISION) / tl.maximum(length, 1).to(tl.float32)[:, None]
    if CHUNK >= BLOCK_G:
        w_r = _rows_of(w_hh_ptr, 0, units, units, G, G, OPERAND)
        w_z = _rows_of(w_hh_ptr, 1, units, units, G, G, OPERAND)
        w_n = _rows_of(w_hh_ptr, 2, units, units, G, G, OPERAND)
    carried = tl.zeros((ROWS, BLOCK_G), tl.float32)
    for done in range(0, tl.max(length)):
        token = end - 1 - done
        running = done < length
        mask = running[:, None] & inside
        at = token[:, None] * G + units[None, :]
        reset = _load(gates_ptr, at, mask, tl.float32)
        update = _load(gates_ptr, plane + at, mask, tl.float32)
        new = _load(gates_ptr, 2 * plane + at, mask, tl.float32)
        recurrent = _load(gates_ptr, 3 * plane + at, mask, tl.float32)
        before = _load(hidden_ptr, at - G, mask & (token > begin)[:, None], tl.float32)
        d_h = tl.where(mask, carried + share, 0.0)
        d_new = d_h * (1.0 - update) * (1.0 - new * new)
        d_update = d_h * (before - new) * update * (1.0 - update)
        d_reset = d_new * recurrent * reset * (1.0 - reset)
        d_recurrent = d_new * reset
        # The gates are not needed any more: their gradients take their place.
        tl.store(gates_ptr + at, d_reset, mask=mask)
        tl.store(gates_ptr + plane + at, d_update, mask=mask)
        tl.store(gates_ptr + 2 * plane + at, d_new, mask=mask)
        tl.store(gates_ptr + 3 * plane + at, d_recurrent, mask=mask)
        carried = d_h * update
        if CHUNK >= BLOCK_G:
            carried += product(d_reset.to(OPERAND), w_r, PRECISION)
            carried += product(d_update.to(OPERAND), w_z, PRECISION)
            carried += product(d_recurrent.to(OPERAND), w_n, PRECISION)
        else:
            tl.debug_barrier()
            for start in range(0, G, CHUNK):
                part = start + tl.arange(0, CHUNK)
                at_part = token[:, None] * G + part[None, :]
                ran = running[:, None] & (part < G)[None, :]
                d_part = _load(gates_ptr, at_part, ran, OPERAND)
                w = _rows_of(w_hh_ptr, 0, part, units, G, G, OPERAND)
                carried += product(d_part, w, PRECISION)
                d_part = _load(gates_ptr, plane + at_part, ran, OPERAND)
                w = _rows_of(w_hh_ptr, 1, part, units, G, G, OPERAND)
                carried += product(d_part, w, PRECISION)
                d_part = _load(gates_ptr, 3 * plane + at_part, ran, OPERAND)
                w = _rows_of(w_hh_ptr, 2, part, units, G, G, OPERAND)
                carried += product(d_part, w, PRECISION)


@triton.jit(do_not_specialize=["tokens"])
def _weights_kernel(
    gates_ptr, place_ptr, e_ptr, hidden_ptr, d_w_ih_ptr, d_w_hh_ptr, d_b_hh_ptr, tokens,
    D: tl.constexpr, G: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    slot = tl.program_id(0)
    chunks = tl.cdiv(G, CHUNK)
    gate = tl.program_id(1) // chunks
    units = tl.program_id(1) % chunks * CHUNK + tl.arange(0, CHUNK)
    dims = tl.arange(0, BLOCK_D)
    states = tl.arange(0, BLOCK_G)
    # The new gate's product with h is scaled by r, so its gradient is a plane of its own.
    of_input = tokens.to(tl.int64) * gate
    of_state = tokens.to(tl.int64) * tl.where(gate == 2, 3, gate)
    d_w_ih = tl.zeros((CHUNK, BLOCK_D), tl.float32)
    d_w_hh = tl.zeros((CHUNK, BLOCK_G), tl.float32)
    d_b_hh = tl.zeros((CHUNK,), tl.float32)
    for tile in range(slot, tl.cdiv(tokens, ROWS), tl.num_programs(0)):
        token = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        place = tl.load(place_ptr + token, mask=token < tokens, other=-1)
        if tl.max(place) >= 0:
            mask = (place >= 0)[:, None] & (units < G)[None, :]
            at = token[:, None] * G + units[None, :]
            grad = _load(gates_ptr, of_input * G + at, mask, OPERAND)
            at_e = token[:, None] * D + dims[None, :]
            e = _load(e_ptr, at_e, (place >= 0)[:, None] & (dims < D)[None, :], OPERAND)
            d_w_ih += product(tl.trans(grad), e, PRECISION)
            grad = _load(gates_ptr, of_state * G + at, mask, tl.float32)
            d_b_hh += tl.sum(grad, 0)
            at_h = (token - 1)[:, None] * G + states[None, :]
            h = _load(hidden_ptr, at_h, (place > 0)[:, None] & (states < G)[None, :], OPERAND)
            d_w_hh += product(tl.trans(grad.to(OPERAND)), h, PRECISION)
    row = slot.to(tl.int64) * (3 * G) + gate * G + units
    there = units < G
    at = row[:, None] * D + dims[None, :]
    tl.store(d_w_ih_ptr + at, d_w_ih, mask=there[:, None] & (dims < D)[None, :])
    at = row[:, None] * G + states[None, :]
    tl.store(d_w_hh_ptr + at, d_w_hh, mask=there[:, None] & (states < G)[None, :])
    tl.store(d_b_hh_ptr + row, d_b_hh, mask=there)


@triton.jit(do_not_specialize=["tokens"])
def _embeddings_kernel(
    gates_ptr, place_ptr, w_ih_ptr, d_e_ptr, tokens,
    D: tl.constexpr, G: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = tl.load(place_ptr + token, mask=token < tokens, other=-1) >= 0
    dims = tl.arange(0, BLOCK_D)
    d_e = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for gate in range(0, 3):
        for start in range(0, G, CHUNK):
            units = start + tl.arange(0, CHUNK)
            at = (tokens.to(tl.int64) * gate + token)[:, None] * G + units[None, :]
            grad = _load(gates_ptr, at, real[:, None] & (units < G)[None, :], OPERAND)
            w = _rows_of(w_ih_ptr, gate, units, dims, G, D, OPERAND)
            d_e += product(grad, w, PRECISION)
    mask = real[:, None] & (dims < D)[None, :]
    tl.store(d_e_ptr + token[:, None] * D + dims[None, :], d_e, mask=mask)


class _Run:
    """The arguments that kernels share, and their start by name."""

    def __init__(
        self, embeddings: Tensor, offsets: Tensor, sequence_bias: Tensor, w_ih: Tensor,
        w_hh: Tensor, b_hh: Tensor, w_out: Tensor, b_out: Tensor,
    ) -> None:
        self.ops: Operands = operands(embeddings)
        self.tokens, size = embeddings.shape
        self.batch, self.units, levels = offsets.shape[0] - 1, w_hh.shape[1], w_out.shape[0]
        self.device = embeddings.device
        self.arguments: dict[str, Any] = {
            "e_ptr": embeddings, "offsets_ptr": offsets, "bias_ptr": sequence_bias.contiguous(),
            "w_ih_ptr": w_ih.contiguous(), "w_hh_ptr": w_hh.contiguous(), "b_hh_ptr": b_hh,
            "w_out_ptr": w_out.contiguous(), "b_out_ptr": b_out,
            "tokens": self.tokens, "batch": self.batch, "steps": search_steps(self.batch),
            "D": size, "G": self.units, "LEVELS": levels,
            "BLOCK_D": padded_size(size), "BLOCK_G": padded_size(self.units, "hidden size"),
            "BLOCK_LEVELS": padded_size(levels, "T+1"),
            "OPERAND": self.ops.dtype, "PRECISION": self.ops.precision,
        }

    def tile(self, name: str) -> _heuristics.Tile:
        block = max(self.arguments["BLOCK_G"], self.arguments["BLOCK_D"])
        rows = self.batch if name.startswith("gru_scan") else self.tokens
        return _heuristics.tile(name, block, self.ops.kind, architecture(self.device), rows)

    def __call__(self, kernel: Any, name: str, *grid: int, **more: Any) -> None:
        tile = self.tile(name)
        every = {**self.arguments, "ROWS": tile.rows, "CHUNK": tile.chunk, "DEPTH": 32, **more}
        launch(kernel, grid, {n: every[n] for n in kernel.arg_names}, tile.options)


def fwd(
    embeddings: Tensor, offsets: Tensor, sequence_bias: Tensor, w_ih: Tensor, w_hh: Tensor,
    b_hh: Tensor, w_out: Tensor, b_out: Tensor, max_length: int,
) -> tuple[Tensor, Tensor]:
    """``depth_controller_fwd`` of the op's schema: logits ``[B, T+1]``, hidden ``[N, G]``."""
    embeddings, offsets = embeddings.contiguous(), offsets.contiguous()
    run = _Run(embeddings, offsets, sequence_bias, w_ih, w_hh, b_hh, w_out, b_out)
    gates = embeddings.new_empty(3, run.tokens, run.units, dtype=torch.float32)
    hidden = embeddings.new_empty(run.tokens, run.units)
    logits = embeddings.new_empty(run.batch, w_out.shape[0])
    run.arguments |= {
        "gates_ptr": gates, "hidden_ptr": hidden, "logits_ptr": logits, "place_ptr": None,
    }
    tile = run.tile("gru_gates")
    tiles, chunks = triton.cdiv(run.tokens, tile.rows), triton.cdiv(run.units, tile.chunk)
    run(_gates_kernel, "gru_gates", tiles, chunks, WHOLE_GATES=False)
    run(_scan_kernel, "gru_scan", triton.cdiv(run.batch, run.tile("gru_scan").rows))
    return logits, hidden


def bwd(
    grad_logits: Tensor, hidden: Tensor, embeddings: Tensor, offsets: Tensor,
    sequence_bias: Tensor, w_ih: Tensor, w_hh: Tensor, b_hh: Tensor, w_out: Tensor, b_out: Tensor,
    max_length: int,
) -> tuple[Tensor, ...]:
    """``depth_controller_bwd``: gradients of all inputs but the offsets, in their order."""
    embeddings, offsets, hidden, grad_logits = (
        t.contiguous() for t in (embeddings, offsets, hidden, grad_logits)
    )
    run = _Run(embeddings, offsets, sequence_bias, w_ih, w_hh, b_hh, w_out, b_out)
    wide = {"dtype": torch.float32, "device": embeddings.device}
    units, tile = run.units, run.tile("gru_gates")
    tiles, chunks = triton.cdiv(run.tokens, tile.rows), triton.cdiv(units, tile.chunk)
    gates = torch.empty(4, run.tokens, units, **wide)
    d_e = torch.empty_like(embeddings)
    weights = run.tile("gru_weights")
    parts = 3 * triton.cdiv(units, weights.chunk)
    slots = min(
        max(1, triton.cdiv(run.tokens, weights.rows)),
        max(2, triton.cdiv(multiprocessors(run.device), parts)),
    )
    d_w_ih = torch.empty(slots, *w_ih.shape, **wide)
    d_w_hh = torch.empty(slots, *w_hh.shape, **wide)
    d_b_hh = torch.empty(slots, *b_hh.shape, **wide)
    run.arguments |= {
        "grad_ptr": grad_logits, "gates_ptr": gates, "hidden_ptr": hidden,
        "place_ptr": torch.empty(run.tokens, dtype=torch.int32, device=run.device),
        "d_e_ptr": d_e, "d_w_ih_ptr": d_w_ih, "d_w_hh_ptr": d_w_hh,
        "d_b_hh_ptr": d_b_hh,
    }
    run(_gates_kernel, "gru_gates", tiles, chunks, WHOLE_GATES=True)
    scan = triton.cdiv(run.batch, run.tile("gru_scan_backward").rows)
    run(_scan_backward_kernel, "gru_scan_backward", scan)
    run(_weights_kernel, "gru_weights", slots, parts)
    run(_embeddings_kernel, "gru_gates", tiles)
    # Means times lengths: the sums over a sequence's tokens, [3, B, G].
    sums = level_pool.fwd(gates[:3], offsets, None, False) * offsets.diff()[:, None]
    d_bias = sums.transpose(0, 1).reshape(run.batch, 3 * units)
    pooled = level_pool.fwd(hidden[None], offsets, None, False)[0]
    dtype = run.ops.torch_dtype
    d_w_out = grad_logits.to(dtype).T @ pooled.to(dtype)
    return (
        d_e, d_bias.to(sequence_bias.dtype), d_w_ih.sum(0).to(w_ih.dtype),
        d_w_hh.sum(0).to(w_hh.dtype), d_b_hh.sum(0).to(b_hh.dtype), d_w_out.to(w_out.dtype),
        grad_logits.sum(0).to(b_out.dtype),
    )
