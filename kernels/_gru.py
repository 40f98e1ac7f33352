"""What ``depth_controller`` does for all tokens at once, before and after the scans.

The input's share of the gates and, in backward, the gates themselves (the hidden states are saved),
every weight gradient and dE: products over whole tiles of tokens. Beside the gates, which need no
order, the sequences are put into the one that the scans take them in.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._gru_scan import columns_of, load, rows_of, tanh
from ._jagged import sequence_of
from ._product import product

RANKED = tl.constexpr(32)  # sequences that a program finds the places of
# Compared with all of a window, so that 8,192 sequences cost as much a sequence as 2,048.
WINDOW = tl.constexpr(2048)
COMPARED = tl.constexpr(128)
TURNED = tl.constexpr(1024)  # weights that a program turns


@triton.jit
def _rank_of(index, first, offsets_ptr, batch):
    """Greater for what comes first: the longer sequence, of equals the one in front."""
    there = index < batch
    begin = tl.load(offsets_ptr + index, mask=there, other=0)
    end = tl.load(offsets_ptr + index + 1, mask=there, other=0)
    rank = (end - begin).to(tl.int32) * WINDOW + (WINDOW - 1 - (index - first))
    return tl.where(there, rank, -1)


@triton.jit
def _order(program, offsets_ptr, order_ptr, batch):
    """Longest first within each window: a sequence's place is how many come before it."""
    index = program * RANKED + tl.arange(0, RANKED)
    first = program * RANKED // WINDOW * WINDOW
    mine = _rank_of(index, first, offsets_ptr, batch)
    before = tl.zeros((RANKED, COMPARED), tl.int32)
    for start in range(first, tl.minimum(first + WINDOW, batch), COMPARED):
        theirs = _rank_of(start + tl.arange(0, COMPARED), first, offsets_ptr, batch)
        before += (theirs[None, :] > mine[:, None]).to(tl.int32)
    tl.store(order_ptr + first + tl.sum(before, 1), index, mask=index < batch)


@triton.jit
def _turn(program, w_hh_ptr, turned_ptr, G: tl.constexpr):
    """Each gate's weights ``[G, G]`` transposed."""
    at = program * TURNED + tl.arange(0, TURNED)
    inside = at < 3 * G * G
    row, column = at // G, at % G
    source = (row // G * G + column) * G + row % G
    tl.store(turned_ptr + at, tl.load(w_hh_ptr + source, mask=inside, other=0.0), mask=inside)


@triton.jit(do_not_specialize=["tokens", "batch", "steps", "ranks"])
def gates_kernel(
    e_ptr, offsets_ptr, bias_ptr, w_ih_ptr, w_hh_ptr, b_hh_ptr, hidden_ptr, gates_ptr, place_ptr,
    order_ptr, turned_ptr, tokens, batch, steps, ranks,
    D: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    DEPTH: tl.constexpr, WHOLE_GATES: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The order of the sequences, and planes ``[N, G]``.

    The planes are the input's share of r, z and n, with the recurrent bias of r and z; or, whole,
    r, z, n and W_hn h + b_hn. The first ``ranks`` programs make the order; whole, those behind them
    turn the recurrent weights for the scan.
    """
    program = tl.program_id(0)
    if program < ranks:
        if tl.program_id(1) == 0:
            _order(program, offsets_ptr, order_ptr, batch)
        return
    program -= ranks
    if WHOLE_GATES:
        turns = tl.cdiv(3 * G * G, TURNED)
        if program < turns:
            if tl.program_id(1) == 0:
                _turn(program, w_hh_ptr, turned_ptr, G)
            return
        program -= turns
    token = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    sequence = sequence_of(token, offsets_ptr, batch, steps)
    real = (token < tokens) & (sequence < batch)
    units = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    mask = real[:, None] & (units < G)[None, :]
    at_bias = sequence.to(tl.int64)[:, None] * (3 * G) + units[None, :]
    reset = load(bias_ptr, at_bias, mask, tl.float32)
    update = load(bias_ptr, G + at_bias, mask, tl.float32)
    new = load(bias_ptr, 2 * G + at_bias, mask, tl.float32)
    reset += load(b_hh_ptr, units, units < G, tl.float32)[None, :]
    update += load(b_hh_ptr, G + units, units < G, tl.float32)[None, :]
    for start in range(0, D, DEPTH):
        dims = start + tl.arange(0, DEPTH)
        at_e = token[:, None] * D + dims[None, :]
        e = load(e_ptr, at_e, real[:, None] & (dims < D)[None, :], OPERAND)
        reset += product(e, columns_of(w_ih_ptr, 0, units, dims, G, D, OPERAND), PRECISION)
        update += product(e, columns_of(w_ih_ptr, 1, units, dims, G, D, OPERAND), PRECISION)
        new += product(e, columns_of(w_ih_ptr, 2, units, dims, G, D, OPERAND), PRECISION)
    plane = tokens.to(tl.int64) * G
    at = token[:, None] * G + units[None, :]
    if WHOLE_GATES:
        place = token - tl.load(offsets_ptr + sequence, mask=real, other=0)
        tl.store(place_ptr + token, tl.where(real, place, -1).to(tl.int32), mask=token < tokens)
        recurrent = tl.zeros((ROWS, CHUNK), tl.float32)
        recurrent += load(b_hh_ptr, 2 * G + units, units < G, tl.float32)[None, :]
        for start in range(0, G, DEPTH):
            states = start + tl.arange(0, DEPTH)
            had = (real & (place > 0))[:, None] & (states < G)[None, :]
            h = load(hidden_ptr, (token - 1)[:, None] * G + states[None, :], had, OPERAND)
            reset += product(h, columns_of(w_hh_ptr, 0, units, states, G, G, OPERAND), PRECISION)
            update += product(h, columns_of(w_hh_ptr, 1, units, states, G, G, OPERAND), PRECISION)
            w = columns_of(w_hh_ptr, 2, units, states, G, G, OPERAND)
            recurrent += product(h, w, PRECISION)
        reset = tl.sigmoid(reset)
        update = tl.sigmoid(update)
        new = tanh(new + reset * recurrent)
        tl.store(gates_ptr + 3 * plane + at, recurrent, mask=mask)
    tl.store(gates_ptr + at, reset, mask=mask)
    tl.store(gates_ptr + plane + at, update, mask=mask)
    tl.store(gates_ptr + 2 * plane + at, new, mask=mask)


@triton.jit(do_not_specialize=["tokens", "batch"])
def weights_kernel(
    gates_ptr, place_ptr, e_ptr, hidden_ptr, grad_ptr, pooled_ptr, d_w_ih_ptr, d_w_hh_ptr,
    d_b_hh_ptr, d_w_out_ptr, d_b_out_ptr, tokens, batch,
    D: tl.constexpr, G: tl.constexpr, LEVELS: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Partials of the weights' gradients: axis 0 shares the rows, axis 1 has parts of weights.

    A part is a chunk of a gate's units, or behind those of depths: the logits are the fourth gate,
    whose rows are sequences and whose state is the mean.
    """
    slot = tl.program_id(0)
    chunks = tl.cdiv(G, CHUNK)
    states = tl.arange(0, BLOCK_G)
    d_w = tl.zeros((CHUNK, BLOCK_G), tl.float32)
    d_b = tl.zeros((CHUNK,), tl.float32)
    if tl.program_id(1) < 3 * chunks:
        gate = tl.program_id(1) // chunks
        units = tl.program_id(1) % chunks * CHUNK + tl.arange(0, CHUNK)
        dims = tl.arange(0, BLOCK_D)
        # The new gate's product with h is scaled by r, so its gradient is a plane of its own.
        of_input = tokens.to(tl.int64) * gate
        of_state = tokens.to(tl.int64) * tl.where(gate == 2, 3, gate)
        d_w_ih = tl.zeros((CHUNK, BLOCK_D), tl.float32)
        for tile in range(slot, tl.cdiv(tokens, ROWS), tl.num_programs(0)):
            token = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
            place = tl.load(place_ptr + token, mask=token < tokens, other=-1)
            if tl.max(place) >= 0:
                mask = (place >= 0)[:, None] & (units < G)[None, :]
                at = token[:, None] * G + units[None, :]
                grad = load(gates_ptr, of_input * G + at, mask, OPERAND)
                at_e = token[:, None] * D + dims[None, :]
                e = load(e_ptr, at_e, (place >= 0)[:, None] & (dims < D)[None, :], OPERAND)
                d_w_ih += product(tl.trans(grad), e, PRECISION)
                grad = load(gates_ptr, of_state * G + at, mask, tl.float32)
                d_b += tl.sum(grad, 0)
                at_h = (token - 1)[:, None] * G + states[None, :]
                h = load(hidden_ptr, at_h, (place > 0)[:, None] & (states < G)[None, :], OPERAND)
                d_w += product(tl.trans(grad.to(OPERAND)), h, PRECISION)
        row = slot.to(tl.int64) * (3 * G) + gate * G + units
        there = units < G
        at = row[:, None] * D + dims[None, :]
        tl.store(d_w_ih_ptr + at, d_w_ih, mask=there[:, None] & (dims < D)[None, :])
        at = row[:, None] * G + states[None, :]
        tl.store(d_w_hh_ptr + at, d_w, mask=there[:, None] & (states < G)[None, :])
        tl.store(d_b_hh_ptr + row, d_b, mask=there)
    else:
        levels = (tl.program_id(1) - 3 * chunks) * CHUNK + tl.arange(0, CHUNK)
        for tile in range(slot, tl.cdiv(batch, ROWS), tl.num_programs(0)):
            sequence = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
            real = (sequence < batch)[:, None]
            at = sequence[:, None] * LEVELS + levels[None, :]
            grad = load(grad_ptr, at, real & (levels < LEVELS)[None, :], tl.float32)
            d_b += tl.sum(grad, 0)
            at = sequence[:, None] * G + states[None, :]
            pooled = load(pooled_ptr, at, real & (states < G)[None, :], OPERAND)
            d_w += product(tl.trans(grad.to(OPERAND)), pooled, PRECISION)
        row = slot.to(tl.int64) * LEVELS + levels
        there = levels < LEVELS
        at = row[:, None] * G + states[None, :]
        tl.store(d_w_out_ptr + at, d_w, mask=there[:, None] & (states < G)[None, :])
        tl.store(d_b_out_ptr + row, d_b, mask=there)


@triton.jit(do_not_specialize=["tokens"])
def embeddings_kernel(
    gates_ptr, place_ptr, w_ih_ptr, d_e_ptr, tokens,
    D: tl.constexpr, G: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    """dE: each token's three gradients times the input's weights."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = tl.load(place_ptr + token, mask=token < tokens, other=-1) >= 0
    dims = tl.arange(0, BLOCK_D)
    d_e = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for gate in range(0, 3):
        for start in range(0, G, CHUNK):
            units = start + tl.arange(0, CHUNK)
            at = (tokens.to(tl.int64) * gate + token)[:, None] * G + units[None, :]
            grad = load(gates_ptr, at, real[:, None] & (units < G)[None, :], OPERAND)
            w = rows_of(w_ih_ptr, gate, units, dims, G, D, OPERAND)
            d_e += product(grad, w, PRECISION)
    mask = real[:, None] & (dims < D)[None, :]
    tl.store(d_e_ptr + token[:, None] * D + dims[None, :], d_e, mask=mask)
