"""The noise contract on the device: Philox words, normals and dropout masks of ``rng.py``.

One call serves the four levels 4j..4j+3 of an element, so callers loop over groups of four levels
and take lane ``level % 4``. The words equal ``rng.py``'s bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

TWO_PI = tl.constexpr(6.283185307179586)


@triton.jit
def philox4(seed_ptr, index, stream, group, WIDTH: tl.constexpr):
    """Philox4x32-10 of ``index`` (int64), ``stream`` and ``group`` (``level // 4``).

    The seed stays on the device: ``seed_ptr`` points at its key and, behind it, the number of
    tokens before those at hand, which count WIDTH elements each. Returns four uint32 tensors
    shaped like ``index``.
    """
    index += tl.load(seed_ptr + 1) * WIDTH
    seed = tl.load(seed_ptr).to(tl.uint64, bitcast=True)
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    counter = index.to(tl.uint64, bitcast=True)
    c0 = (counter & 0xFFFFFFFF).to(tl.uint32)
    c1 = (counter >> 32).to(tl.uint32)
    c2 = (tl.zeros_like(c0) + stream).to(tl.uint32)
    c3 = (tl.zeros_like(c0) + group).to(tl.uint32)
    m0 = tl.full((), 0xD2511F53, tl.uint32)
    m1 = tl.full((), 0xCD9E8D57, tl.uint32)
    w0 = tl.full((), 0x9E3779B9, tl.uint32)
    w1 = tl.full((), 0xBB67AE85, tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, m0), tl.mul(c0, m0, sanitize_overflow=False)
        high1, low1 = tl.umulhi(c2, m1), tl.mul(c2, m1, sanitize_overflow=False)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = tl.add(k0, w0, sanitize_overflow=False)
        k1 = tl.add(k1, w1, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def lane_of(w0, w1, w2, w3, LANE: tl.constexpr):
    """The word of lane LANE."""
    if LANE == 0:
        word = w0
    elif LANE == 1:
        word = w1
    elif LANE == 2:
        word = w2
    else:
        word = w3
    return word


@triton.jit
def to_uniform(word):
    """(word >> 9 + 1/2) * 2^-23, exact in float32."""
    return ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def sincos_turns(u):
    """sin and cos of 2 pi u for u in [0, 1).

    The reduction to an eighth of a turn is exact in float32 and the polynomials are those of
    Cephes' sinf and cosf (Moshier, 1989). The library's sin and cos reduce arguments of any size,
    which costs registers and local memory.
    """
    quarter = (u * 4.0 + 0.5).to(tl.int32)
    x = (u - quarter.to(tl.float32) * 0.25) * TWO_PI
    xx = x * x
    s = ((-1.9515295891e-4 * xx + 8.3321608736e-3) * xx - 1.6666654611e-1) * xx * x + x
    c = (2.443315711809948e-5 * xx - 1.388731625493765e-3) * xx + 4.166664568298827e-2
    c = c * xx * xx - 0.5 * xx + 1.0
    swap = (quarter & 1) != 0
    sine, cosine = tl.where(swap, c, s), tl.where(swap, s, c)
    sine = tl.where((quarter & 2) != 0, -sine, sine)
    cosine = tl.where(((quarter + 1) & 2) != 0, -cosine, cosine)
    return sine, cosine


@triton.jit
def box_muller(a, b):
    """Two standard normals from two words: r cos t and r sin t."""
    radius = tl.sqrt(-2.0 * tl.log(to_uniform(a)))
    sine, cosine = sincos_turns(to_uniform(b))
    return radius * cosine, radius * sine


@triton.jit
def keep(word, threshold):
    """Dropout's mask: True where the word reaches round(p * 2^32), an int64."""
    return word.to(tl.int64) >= threshold


@triton.jit
def keep_bits(seed_ptr, index, stream, group, threshold, WIDTH: tl.constexpr):
    """Dropout's masks of the levels 4 * group .. 4 * group + 3 as the bits 0..3 of an int32.

    All four levels of a Philox call in one register an element.
    """
    w0, w1, w2, w3 = philox4(seed_ptr, index, stream, group, WIDTH)
    low = keep(w0, threshold).to(tl.int32) | (keep(w1, threshold).to(tl.int32) << 1)
    high = keep(w2, threshold).to(tl.int32) | (keep(w3, threshold).to(tl.int32) << 1)
    return low | (high << 2)


@triton.jit
def drop(x, bits, lane, keep_scale):
    """``x * keep_scale`` where bit ``lane`` of ``keep_bits`` is set, else 0; same for gradients."""
    return tl.where(((bits >> lane) & 1) != 0, x * keep_scale, 0.0)
