"""The recurrence of ``depth_controller``: a tile of sequences a program, a step after the other.

Time is what the longest sequence takes: 50 steps that wait for each other, whatever the batch. So a
step is kept short. Everything stands transposed, ``[units, users]``: a gate is W_hh [G, G] times
h [G, users], for which eight users fill a tensor core's instruction, so that 256 users are 32 tiles
on as many multiprocessors. W_hh stays on chip (three gates in shared memory, from which the
products take it); the input's gates of the next step are loaded before the products of this one;
the three products do not wait for each other.

Users come in ``order``, longest first: those of a tile end together, and a program that walks over
several tiles begins with its longest. Columns do not touch each other, so a sequence has the same
result in every tile.

Where three gates' weights do not fit into shared memory (``CHUNK`` smaller than the hidden size), a
step takes the products in parts of h, which it reads back from where the last step has put it, and
the weights come from L1 and L2.

Floor of a step, 8 users, G = 64: 98 k FMA are 384 clocks of an RTX 3090's tensor cores in TF32,
192 in half, and 768 of its FMA pipes in IEEE float32 (384 for the 4 users that IEEE's tiles have);
48 KB of weights are as many clocks of shared memory as TF32's products. Then two sigmoids, a tanh
and eight barriers follow each other, some 400 clocks. An H100's products take a quarter of that, so
there shared memory is the floor.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._product import product


@triton.jit
def load(ptr, at, mask, OPERAND: tl.constexpr):
    """Values as OPERAND, 0 where masked out."""
    return tl.load(ptr + at, mask=mask, other=0.0).to(OPERAND)


@triton.jit
def rows_of(w_ptr, gate, units, dims, G: tl.constexpr, D: tl.constexpr, OPERAND: tl.constexpr):
    """A gate's rows ``units`` of a weight ``[3G, D]``: ``[units, dims]``."""
    at = (gate * G + units)[:, None] * D + dims[None, :]
    return load(w_ptr, at, (units < G)[:, None] & (dims < D)[None, :], OPERAND)


@triton.jit
def columns_of(w_ptr, gate, units, dims, G: tl.constexpr, D: tl.constexpr,
               OPERAND: tl.constexpr):
    """The same rows transposed: ``[dims, units]``."""
    at = (gate * G + units)[None, :] * D + dims[:, None]
    return load(w_ptr, at, (units < G)[None, :] & (dims < D)[:, None], OPERAND)


@triton.jit
def tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def _three(ptr, at, plane, mask):
    """The first three planes."""
    return (
        load(ptr, at, mask, tl.float32),
        load(ptr, plane + at, mask, tl.float32),
        load(ptr, 2 * plane + at, mask, tl.float32),
    )


@triton.jit
def _three_rows(w_ptr, units, part, G: tl.constexpr, OPERAND: tl.constexpr):
    """Columns ``part`` of the three gates' recurrent weights."""
    return (
        rows_of(w_ptr, 0, units, part, G, G, OPERAND),
        rows_of(w_ptr, 1, units, part, G, G, OPERAND),
        rows_of(w_ptr, 2, units, part, G, G, OPERAND),
    )


@triton.jit
def _users(tile, order_ptr, offsets_ptr, batch, USERS: tl.constexpr):
    """The users of a tile, whether they are there, and their first token and end."""
    place = tile * USERS + tl.arange(0, USERS)
    there = place < batch
    user = tl.load(order_ptr + place, mask=there, other=0).to(tl.int64)
    begin = tl.load(offsets_ptr + user, mask=there, other=0)
    end = tl.load(offsets_ptr + user + 1, mask=there, other=0)
    return user, there, begin, end


@triton.jit(do_not_specialize=["tokens", "batch"])
def scan_kernel(
    gates_ptr, order_ptr, offsets_ptr, w_hh_ptr, b_hh_ptr, w_out_ptr, b_out_ptr, hidden_ptr,
    logits_ptr, tokens, batch,
    G: tl.constexpr, BLOCK_G: tl.constexpr, LEVELS: tl.constexpr, USERS: tl.constexpr,
    CHUNK: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    """Hidden states of all tokens, their mean and the logits.

    The input's gates are planes ``[3, N, G]``, those of r and z with their recurrent bias.
    """
    units = tl.arange(0, BLOCK_G)
    inside = (units < G)[:, None]
    plane = tokens.to(tl.int64) * G
    b_n = load(b_hh_ptr, 2 * G + units, units < G, tl.float32)[:, None]
    WHOLE: tl.constexpr = CHUNK >= BLOCK_G
    if WHOLE:
        w_r, w_z, w_n = _three_rows(w_hh_ptr, units, units, G, OPERAND)
    for tile in range(tl.program_id(0), tl.cdiv(batch, USERS), tl.num_programs(0)):
        user, there, begin, end = _users(tile, order_ptr, offsets_ptr, batch, USERS)
        length = (end - begin).to(tl.int32)
        at = begin[None, :] * G + units[:, None]
        if WHOLE:
            running = inside & (length > 0)[None, :]
            in_r, in_z, in_n = _three(gates_ptr, at, plane, running)
        h = tl.zeros((BLOCK_G, USERS), tl.float32)
        total = tl.zeros((BLOCK_G, USERS), tl.float32)
        for step in range(0, tl.max(length)):
            running = inside & (step < length)[None, :]
            if WHOLE:
                ahead = inside & (step + 1 < length)[None, :]
                next_r, next_z, next_n = _three(gates_ptr, at + G, plane, ahead)
                before = h.to(OPERAND)
                reset = in_r + product(w_r, before, PRECISION)
                update = in_z + product(w_z, before, PRECISION)
                recurrent = b_n + product(w_n, before, PRECISION)
            else:
                # Plain loads of what other threads stored before the barrier: the pipeline would
                # make asynchronous copies of them, hence one stage and the next part by hand.
                reset = load(gates_ptr, at, running, tl.float32)
                update = load(gates_ptr, plane + at, running, tl.float32)
                recurrent = b_n + tl.zeros((BLOCK_G, USERS), tl.float32)
                part = tl.arange(0, CHUNK)
                had = ((step < length) & (step > 0))[None, :]
                at_part = (begin + (step - 1))[None, :] * G + part[:, None]
                w_r, w_z, w_n = _three_rows(w_hh_ptr, units, part, G, OPERAND)
                before = load(hidden_ptr, at_part, (part < G)[:, None] & had, OPERAND)
                for _ in tl.range(0, G, CHUNK, num_stages=1):
                    part += CHUNK
                    at_part += CHUNK
                    next_w_r, next_w_z, next_w_n = _three_rows(w_hh_ptr, units, part, G, OPERAND)
                    behind = load(hidden_ptr, at_part, (part < G)[:, None] & had, OPERAND)
                    reset += product(w_r, before, PRECISION)
                    update += product(w_z, before, PRECISION)
                    recurrent += product(w_n, before, PRECISION)
                    w_r, w_z, w_n, before = next_w_r, next_w_z, next_w_n, behind
                in_n = load(gates_ptr, 2 * plane + at, running, tl.float32)
            update = tl.sigmoid(update)
            new = tanh(in_n + tl.sigmoid(reset) * recurrent)
            # Rounded as it is saved, so that backward sees the same state.
            h = ((1.0 - update) * new + update * h).to(hidden_ptr.dtype.element_ty)
            tl.store(hidden_ptr + at, h, mask=running)
            h = tl.where(running, h.to(tl.float32), 0.0)
            total += h
            at += G
            if WHOLE:
                in_r, in_z, in_n = next_r, next_z, next_n
            else:
                tl.debug_barrier()
        pooled = total / tl.maximum(length, 1).to(tl.float32)[None, :]
        # No product of tensor cores, whose operands would need shared memory beside W_hh.
        for level in range(0, LEVELS):
            w_out = load(w_out_ptr, level * G + units, units < G, tl.float32)
            logit = tl.sum(w_out[:, None] * pooled, 0) + tl.load(b_out_ptr + level).to(tl.float32)
            tl.store(logits_ptr + user * LEVELS + level, logit, mask=there)


@triton.jit(do_not_specialize=["tokens", "batch"])
def scan_backward_kernel(
    grad_ptr, gates_ptr, order_ptr, offsets_ptr, turned_ptr, w_out_ptr, hidden_ptr, pooled_ptr,
    d_bias_ptr, tokens, batch,
    G: tl.constexpr, BLOCK_G: tl.constexpr, LEVELS: tl.constexpr, USERS: tl.constexpr,
    CHUNK: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):
    """From r, z, n and W_hn h + b_hn to the gradients before r, z and n, and of the fourth.

    On the way, sums over a sequence: of the states, whose mean w_out's gradient needs, and of the
    first three gradients, which are its bias's.
    """
    units = tl.arange(0, BLOCK_G)
    inside = (units < G)[:, None]
    plane = tokens.to(tl.int64) * G
    WHOLE: tl.constexpr = CHUNK >= BLOCK_G
    FMA: tl.constexpr = tl.float32 == OPERAND and PRECISION == "ieee"
    if WHOLE:
        w_r, w_z, w_n = _three_rows(turned_ptr, units, units, G, OPERAND)
    for tile in range(tl.program_id(0), tl.cdiv(batch, USERS), tl.num_programs(0)):
        user, there, begin, end = _users(tile, order_ptr, offsets_ptr, batch, USERS)
        length = (end - begin).to(tl.int32)
        mean = 1.0 / tl.maximum(length, 1).to(tl.float32)[None, :]
        share = tl.zeros((BLOCK_G, USERS), tl.float32)
        for level in range(0, LEVELS):
            w_out = load(w_out_ptr, level * G + units, units < G, tl.float32)
            grad = load(grad_ptr, user * LEVELS + level, there, tl.float32)
            share += w_out[:, None] * grad[None, :]
        share *= mean
        # Zero, which the compiler does not know: it would make one chain of three products, where
        # tensor cores make three short ones at once.
        apart = share * 0.0
        at = (end - 1)[None, :] * G + units[:, None]
        running = inside & (length > 0)[None, :]
        total = load(hidden_ptr, at, running, tl.float32)
        last = at
        if WHOLE:
            reset, update, new = _three(gates_ptr, at, plane, running)
            recurrent = load(gates_ptr, 3 * plane + at, running, tl.float32)
            before = load(hidden_ptr, at - G, inside & (length > 1)[None, :], tl.float32)
        carried = tl.zeros((BLOCK_G, USERS), tl.float32)
        sum_r = tl.zeros((BLOCK_G, USERS), tl.float32)
        sum_z = tl.zeros((BLOCK_G, USERS), tl.float32)
        sum_n = tl.zeros((BLOCK_G, USERS), tl.float32)
        for done in range(0, tl.max(length)):
            running = inside & (done < length)[None, :]
            ahead = inside & (done + 1 < length)[None, :]
            if WHOLE:
                next_reset, next_update, next_new = _three(gates_ptr, at - G, plane, ahead)
                next_recurrent = load(gates_ptr, 3 * plane + at - G, ahead, tl.float32)
                ahead = inside & (done + 2 < length)[None, :]
                next_before = load(hidden_ptr, at - 2 * G, ahead, tl.float32)
            else:
                reset, update, new = _three(gates_ptr, at, plane, running)
                recurrent = load(gates_ptr, 3 * plane + at, running, tl.float32)
                before = load(hidden_ptr, at - G, ahead, tl.float32)
            d_h = tl.where(running, carried + share, 0.0)
            d_new = d_h * (1.0 - update) * (1.0 - new * new)
            d_update = d_h * (before - new) * update * (1.0 - update)
            d_reset = d_new * recurrent * reset * (1.0 - reset)
            d_recurrent = d_new * reset
            # The gates are not needed any more: their gradients take their place.
            tl.store(gates_ptr + at, d_reset, mask=running)
            tl.store(gates_ptr + plane + at, d_update, mask=running)
            tl.store(gates_ptr + 2 * plane + at, d_new, mask=running)
            tl.store(gates_ptr + 3 * plane + at, d_recurrent, mask=running)
            if WHOLE:
                total += before
                sum_r += d_reset
                sum_z += d_update
                sum_n += d_new
            carried = d_h * update
            if WHOLE and FMA:
                carried += product(w_r, d_reset.to(OPERAND), PRECISION)
                carried += product(w_z, d_update.to(OPERAND), PRECISION)
                carried += product(w_n, d_recurrent.to(OPERAND), PRECISION)
            elif WHOLE:
                carried += product(w_r, d_reset.to(OPERAND), PRECISION)
                by_update = apart + product(w_z, d_update.to(OPERAND), PRECISION)
                by_state = apart + product(w_n, d_recurrent.to(OPERAND), PRECISION)
                carried += by_update + by_state
            else:
                tl.debug_barrier()
                part = tl.arange(0, CHUNK)
                ran = (done < length)[None, :]
                at_part = (end - 1 - done)[None, :] * G + part[:, None]
                w_r, w_z, w_n = _three_rows(turned_ptr, units, part, G, OPERAND)
                mask = (part < G)[:, None] & ran
                d_r = load(gates_ptr, at_part, mask, OPERAND)
                d_z = load(gates_ptr, plane + at_part, mask, OPERAND)
                d_n = load(gates_ptr, 3 * plane + at_part, mask, OPERAND)
                for _ in tl.range(0, G, CHUNK, num_stages=1):
                    part += CHUNK
                    at_part += CHUNK
                    next_w_r, next_w_z, next_w_n = _three_rows(turned_ptr, units, part, G, OPERAND)
                    mask = (part < G)[:, None] & ran
                    next_r = load(gates_ptr, at_part, mask, OPERAND)
                    next_z = load(gates_ptr, plane + at_part, mask, OPERAND)
                    next_n = load(gates_ptr, 3 * plane + at_part, mask, OPERAND)
                    carried += product(w_r, d_r, PRECISION)
                    carried += product(w_z, d_z, PRECISION)
                    carried += product(w_n, d_n, PRECISION)
                    w_r, w_z, w_n = next_w_r, next_w_z, next_w_n
                    d_r, d_z, d_n = next_r, next_z, next_n
            at -= G
            if WHOLE:
                reset, update, new = next_reset, next_update, next_new
                recurrent, before = next_recurrent, next_before
        if not WHOLE:
            # Beside parts of weights there are no registers for sums: they are read once more.
            tl.debug_barrier()
            for done in range(0, tl.max(length)):
                running = inside & (done < length)[None, :]
                ahead = inside & (done + 1 < length)[None, :]
                d_reset, d_update, d_new = _three(gates_ptr, last, plane, running)
                total += load(hidden_ptr, last - G, ahead, tl.float32)
                sum_r += d_reset
                sum_z += d_update
                sum_n += d_new
                last -= G
        mask = inside & there[None, :]
        tl.store(pooled_ptr + user[None, :] * G + units[:, None], total * mean, mask=mask)
        at = user[None, :] * (3 * G) + units[:, None]
        tl.store(d_bias_ptr + at, sum_r, mask=mask)
        tl.store(d_bias_ptr + G + at, sum_z, mask=mask)
        tl.store(d_bias_ptr + 2 * G + at, sum_n, mask=mask)
