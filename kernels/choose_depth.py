"""``choose_depth`` in Triton: noise, softmax, argmax and mass in one launch each way (Eq. 3).

A row of the forward kernel's tile is a sequence, or a token, which makes its sequence's choice
again: nine Philox calls a token cost less than a second launch, and no program waits for another.
Backward sums a sequence's tokens in their order, whatever the batch: what ``index_add_`` would do
with float atomics.

Both are bound by the launch: B = 256 moves 30 KB, or 90 KB spread to 1,800 tokens, and B = 8,192
some 3 MB, 1 us on an H100 and 3 us on an RTX 3090.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import rng
from ._jagged import sequence_of
from ._launch import launch, padded_size, search_steps
from .philox import philox4, to_uniform

ELEMENTS = 512  # of a tile
STEP = 64  # tokens of a sequence that backward reads at once
STREAM = tl.constexpr(rng.STREAM_GUMBEL)


@triton.jit
def _gumbel(seed_ptr, sequence, choice, CHOICES: tl.constexpr):
    # Sequences before those at hand count here, not tokens: hence philox4's width of 0.
    place = tl.load(seed_ptr + 2) + sequence
    word, _, _, _ = philox4(seed_ptr, place[:, None] * CHOICES + choice[None, :], STREAM, 0, 0)
    return -tl.log(-tl.log(to_uniform(word)))


@triton.jit
def _choice(logits_ptr, seed_ptr, sequence, real, temperature, CHOICES: tl.constexpr,
            BLOCK: tl.constexpr, SEEDED: tl.constexpr):
    """What the depth is the argmax of ``[rows, BLOCK]``, and the first argmax ``[rows]``."""
    choice = tl.arange(0, BLOCK)
    inside = (choice < CHOICES)[None, :]
    at = sequence[:, None] * CHOICES + choice[None, :]
    x = tl.load(logits_ptr + at, mask=real[:, None] & inside, other=0.0).to(tl.float32)
    if SEEDED:
        x = (x + _gumbel(seed_ptr, sequence, choice, CHOICES)) / temperature
        x = tl.where(inside, x, float("-inf"))
        x = tl.exp(x - tl.max(x, 1)[:, None])
        x = x / tl.sum(x, 1)[:, None]
    best = tl.max(tl.where(inside, x, float("-inf")), 1)[:, None]
    # NaN counts as the greatest, as for torch, and so a depth is always one.
    first = tl.where(((x >= best) | (x != x)) & inside, choice[None, :], CHOICES - 1)
    return x, tl.min(first, 1)


@triton.jit
def _store_mass(mass_ptr, depth, row, rows, CHOICES: tl.constexpr, BLOCK: tl.constexpr):
    """1 up to the depth and 0 beyond, to the columns ``row`` of ``[CHOICES, rows]``."""
    level = tl.arange(0, BLOCK)[:, None]
    mass = tl.where(level <= depth[None, :], 1.0, 0.0).to(mass_ptr.dtype.element_ty)
    at = level * rows.to(tl.int64) + row[None, :]
    tl.store(mass_ptr + at, mass, mask=(level < CHOICES) & (row < rows)[None, :])


@triton.jit(do_not_specialize=["batch", "rows", "steps", "temperature"])
def _choose_kernel(
    logits_ptr, seed_ptr, offsets_ptr, depth_ptr, computed_ptr, row_depth_ptr, mass_ptr, soft_ptr,
    batch, rows, steps, temperature,
    CHOICES: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, SEEDED: tl.constexpr,
    TOKENS: tl.constexpr, ALL: tl.constexpr,
):
    """The first programs take sequences; with TOKENS those behind them take tokens."""
    program = tl.program_id(0).to(tl.int64)
    of_sequences = tl.cdiv(batch, ROWS)
    if program < of_sequences:
        row = program * ROWS + tl.arange(0, ROWS)
        real = row < batch
        soft, depth = _choice(logits_ptr, seed_ptr, row, real, temperature, CHOICES, BLOCK, SEEDED)
        tl.store(depth_ptr + row, depth.to(tl.int64), mask=real)
        if ALL:
            tl.store(computed_ptr + row, tl.zeros_like(row) + (CHOICES - 1), mask=real)
        if SEEDED:
            choice = tl.arange(0, BLOCK)[None, :]
            at = row[:, None] * CHOICES + choice
            tl.store(soft_ptr + at, soft, mask=real[:, None] & (choice < CHOICES))
        if not TOKENS:
            _store_mass(mass_ptr, depth, row, batch, CHOICES, BLOCK)
    elif TOKENS:
        row = (program - of_sequences) * ROWS + tl.arange(0, ROWS)
        sequence = sequence_of(row, offsets_ptr, batch, steps).to(tl.int64)
        real = (row < rows) & (sequence < batch)
        _, depth = _choice(
            logits_ptr, seed_ptr, sequence, real, temperature, CHOICES, BLOCK, SEEDED
        )
        depth = tl.where(real, depth, -1)
        _store_mass(mass_ptr, depth, row, rows, CHOICES, BLOCK)
        if ALL:
            depth = tl.where(real, CHOICES - 1, -1)
        tl.store(row_depth_ptr + row, depth.to(tl.int64), mask=row < rows)


@triton.jit(do_not_specialize=["batch", "rows", "temperature"])
def _choose_backward_kernel(
    d_mass_ptr, soft_ptr, offsets_ptr, d_logits_ptr, batch, rows, temperature,
    CHOICES: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    STEP: tl.constexpr,
):
    """y_i counts in every m_k with k <= i: a cumulative sum, then the softmax's Jacobian."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    choice = tl.arange(0, BLOCK)
    inside = (row < batch)[:, None] & (choice < CHOICES)[None, :]
    if TOKENS:  # ROWS is 1
        begin = tl.load(offsets_ptr + tl.program_id(0))
        end = tl.load(offsets_ptr + tl.program_id(0) + 1)
        total = tl.zeros((BLOCK, STEP), tl.float32)
        for start in range(0, (end - begin).to(tl.int32), STEP):
            token = begin + start + tl.arange(0, STEP)
            at = choice[:, None] * rows.to(tl.int64) + token[None, :]
            mask = (choice < CHOICES)[:, None] & (token < end)[None, :]
            total += tl.load(d_mass_ptr + at, mask=mask, other=0.0).to(tl.float32)
        d_mass = tl.sum(total, 1)[None, :]
    else:
        at = choice[None, :] * rows.to(tl.int64) + row[:, None]
        d_mass = tl.load(d_mass_ptr + at, mask=inside, other=0.0).to(tl.float32)
    at = row[:, None] * CHOICES + choice[None, :]
    soft = tl.load(soft_ptr + at, mask=inside, other=0.0)
    d_soft = tl.cumsum(d_mass, 1)
    d_soft -= tl.sum(soft * d_soft, 1)[:, None]
    tl.store(d_logits_ptr + at, soft * d_soft / temperature, mask=inside)


def fwd(
    logits: Tensor, seed: Tensor | None, offsets: Tensor | None, temperature: float,
    all_levels: bool, rows: int,
) -> tuple[Tensor, ...]:
    """``choose_depth_fwd`` of the op's schema."""
    logits = logits.contiguous()
    batch, choices = logits.shape
    block = padded_size(choices, "T+1")
    tile = ELEMENTS // block
    by_token = offsets is not None
    whole = {"dtype": torch.int64}
    depth = logits.new_empty(batch, **whole)
    computed = logits.new_empty(batch if all_levels else 0, **whole)
    row_depth = logits.new_empty(rows if by_token else 0, **whole)
    mass = logits.new_empty(choices, rows if by_token else batch)
    soft = logits.new_empty(0 if seed is None else batch, choices, dtype=torch.float32)
    arguments = {
        "logits_ptr": logits, "seed_ptr": seed, "offsets_ptr": offsets, "depth_ptr": depth,
        "computed_ptr": computed, "row_depth_ptr": row_depth, "mass_ptr": mass, "soft_ptr": soft,
        "batch": batch, "rows": rows, "steps": search_steps(batch), "temperature": temperature,
        "CHOICES": choices, "BLOCK": block, "ROWS": tile, "SEEDED": seed is not None,
        "TOKENS": by_token, "ALL": all_levels,
    }
    programs = triton.cdiv(batch, tile) + triton.cdiv(rows, tile)
    launch(_choose_kernel, (programs,), arguments, {"num_warps": 4})
    return depth, computed, row_depth, mass, soft


def bwd(grad_mass: Tensor, soft: Tensor, offsets: Tensor | None, temperature: float) -> Tensor:
    """``choose_depth_bwd``: the gradient of the logits ``[B, T+1]``."""
    batch, choices = soft.shape
    block = padded_size(choices, "T+1")
    by_token = offsets is not None
    tile = 1 if by_token else ELEMENTS // block
    d_logits = soft.new_empty(soft.shape, dtype=grad_mass.dtype)
    arguments = {
        "d_mass_ptr": grad_mass, "soft_ptr": soft, "offsets_ptr": offsets,
        "d_logits_ptr": d_logits, "batch": batch, "rows": grad_mass.shape[1],
        "temperature": temperature, "CHOICES": choices, "BLOCK": block, "ROWS": tile,
        "TOKENS": by_token, "STEP": STEP,
    }
    launch(_choose_backward_kernel, (triton.cdiv(batch, tile),), arguments,
           {"num_warps": 1 if by_token else 4})
    return d_logits
