"""The noise contract: every random number is a pure function of where it is used.

Counter-based Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
keyed by a 64-bit seed that lives in a tensor, so no kernel waits for the host to read it. The
128-bit counter is

    (element index, low 32 bits; high 32 bits; stream id; level // 4)

and the four words it yields belong to the levels 4j, 4j+1, 4j+2, 4j+3: lane = level % 4. One Philox
call so serves four levels of an element, which costs a quarter of a call for each, needs no
interleaving of lanes inside a tile, and lets Box-Muller use both of its outputs.

* Element index: ``global token index * D + dimension`` (int64), never a thread or program id, so
  the result does not depend on tile sizes, thread counts or the order of the work.
* A seed is int64 ``[1]``, the key; or ``[3]``: the key, and how many tokens and how many sequences
  of the whole batch lie before the ones at hand, so that a share of a batch draws what the whole
  batch would have drawn there (:func:`at_place`).
* Diffusion noise of level k >= 1 uses level coordinate k - 1 (level 0 has no noise).
* Dropout keeps an element iff its 32-bit word >= round(p * 2^32): exact on every backend.
* Where there are no levels, a row's four quarters may share a call in their place
  (:func:`keep_quarters`), which costs a quarter of a call an element as well.
* Attention probabilities: element index ``(token * heads + head) << 16 | key position``.

This file is the torch twin, written with int64 arithmetic; the C++ and Triton versions produce the
same words bit for bit (tested), and the same normals up to the last places of log, sin and cos.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ragged

# Streams keep uses apart that share element indices. A Transformer layer takes four from its base.
STREAM_NOISE = 0
STREAM_GUMBEL = 1
STREAM_EMBEDDING = 2
STREAM_COARSE_MLP = 4
STREAM_FINE_EXPERT = 8
STREAM_COARSE_EXPERT = 12
STREAM_BACKBONE = 16
STREAMS_PER_LAYER = 4
# Offsets inside a layer's four streams.
SITE_ATTENTION = 0
SITE_PROJECTION = 1
SITE_FEEDFORWARD = 2
SITE_LOCAL_PATH = 3  # before the layer
# A backbone of 256 layers ends at stream 1040. What the other systems draw begins here.
STREAM_NEGATIVE = 2048
STREAM_AUGMENT_CHOICE = 2049
STREAM_AUGMENT_PLACE = 2050
STREAM_AUGMENT_ORDER = 2051
STREAM_CLOZE = 2052
STREAM_MIX_BETA = 2053
STREAM_MIX_PERM = 2054
STREAM_DIFFUSION_STEP = 2055
STREAM_DIFFUSION_NOISE = 2056
STREAM_LATENT = 2057
STREAM_SAMPLE = 2058
STREAM_GLOBAL = 2059
STREAM_APPROXIMATOR = 2060  # and the seven behind it
STREAM_ITEM_IDS = 2068

LANES = 4
_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's step


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def philox(seed: Tensor, index: Tensor, stream: int, group: int | Tensor) -> tuple[Tensor, ...]:
    """Philox4x32-10.

    Args:
        seed: int64 ``[]``, ``[1]`` or ``[3]``; the first is the 64-bit key, the rest is not read.
        index: int64, any shape, the element index.
        stream: stream id, 0 <= stream < 2^32.
        group: ``level // 4``, an int or an int64 tensor that broadcasts with ``index``.

    Returns:
        Four int64 tensors of 32-bit words in [0, 2^32), of the broadcast shape.
    """
    key = seed.reshape(-1)[0]
    k0, k1 = key & _MASK, (key >> 32) & _MASK
    c0, c1 = index & _MASK, (index >> 32) & _MASK
    c2 = torch.full_like(index, stream)
    c3 = torch.zeros_like(index) + group
    for _ in range(_ROUNDS):
        # A product of two 32-bit words wraps in int64 without losing a bit: mask after shifting.
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def words(seed: Tensor, index: Tensor, stream: int, level: int) -> Tensor:
    """The 32-bit word of one level, int64 in [0, 2^32), shaped like ``index``."""
    return philox(seed, index, stream, level // LANES)[level % LANES]


def level_words(seed: Tensor, index: Tensor, stream: int, levels: Sequence[int]) -> Tensor:
    """:func:`words` of several levels, one call of Philox for every four: ``[*index.shape, C]``."""
    called = {level // LANES for level in levels}
    found = {group: philox(seed, index, stream, group) for group in called}
    return torch.stack([found[level // LANES][level % LANES] for level in levels], -1)


def to_uniform(word: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniform in (0, 1): (word >> 9 + 1/2) * 2^-23, exact in float32, never 0 nor 1."""
    return ((word >> 9).to(dtype) + 0.5) * 2.0**-23


def below(word: Tensor, bound: int | Tensor) -> Tensor:
    """Whole numbers 0..bound-1 of 32-bit words, uniform to 2^-32 of each: word * bound >> 32.

    Args:
        word: int64 in [0, 2^32).
        bound: 1 <= bound < 2^31, an int or int64 that broadcasts with ``word``.
    """
    return (word * bound) >> 32


def box_muller(a: Tensor, b: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two standard normals of two words: r cos t, r sin t; r = sqrt(-2 ln u_a), t = 2 pi u_b."""
    radius = torch.sqrt(-2.0 * torch.log(to_uniform(a, dtype)))
    angle = (2.0 * math.pi) * to_uniform(b, dtype)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def at_place(seed: Tensor, place: Tensor | None = None) -> Tensor:
    """The seed ``[3]`` of a share of a batch.

    Args:
        seed: int64 ``[1]``, or ``[3]``, which is returned as it is.
        place: int64 ``[2]``, tokens and sequences of the whole batch before this share; None: none.
    """
    if seed.shape[0] == 3:
        return seed
    return F.pad(seed, (0, 2)) if place is None else torch.cat([seed, place])


def of_pass(seed: Tensor, number: int, place: Tensor | None = None) -> Tensor:
    """The seed ``[3]`` of a further forward pass of a step, whose dropout is its own.

    Args:
        seed: the step's, int64 ``[1]`` or ``[3]``.
        number: of the pass, from 1; the step's first pass takes ``seed`` itself.
        place: int64 ``[2]``, as for :func:`at_place`, of what the pass reads; None: none.
    """
    return at_place(mixed(seed[:1] ^ mixed(torch.full_like(seed[:1], number))), place)


def moved(seed: Tensor | None, tokens: int) -> Tensor | None:
    """The seed ``[3]`` of what begins ``tokens`` further on; None stays None."""
    return None if seed is None else seed + F.pad(seed.new_full((1,), tokens), (1, 1))


def first_token(seed: Tensor) -> Tensor | int:
    """Tokens of the whole batch before the ones at hand."""
    return seed[1] if seed.numel() == 3 else 0


def first_sequence(seed: Tensor) -> Tensor | int:
    """Sequences of the whole batch before the ones at hand."""
    return seed[2] if seed.numel() == 3 else 0


def element_index(num_tokens: int, size: int, seed: Tensor | None = None) -> Tensor:
    """int64 ``[num_tokens, size]``: token * size + dimension, at the place of a seed."""
    device = None if seed is None else seed.device
    index = torch.arange(num_tokens * size, device=device).view(num_tokens, size)
    return index if seed is None else index + first_token(seed) * size


def normal_levels(
    seed: Tensor, index: Tensor, levels: int, dtype: torch.dtype, stream: int = STREAM_NOISE
) -> Tensor:
    """Standard normals at level coordinates 0..levels-1: ``[levels, *index.shape]``."""
    planes: list[Tensor] = []
    for group in range(-(-levels // LANES)):
        w0, w1, w2, w3 = philox(seed, index, stream, group)
        planes += [*box_muller(w0, w1, dtype), *box_muller(w2, w3, dtype)]
    if not planes:
        return torch.empty(0, *index.shape, dtype=dtype, device=index.device)
    return torch.stack(planes[:levels])


def wide_normals(
    seed: Tensor, row: Tensor, size: int, dtype: torch.dtype, stream: int, group: int = 0
) -> Tensor:
    """Standard normals ``[R, size]`` of rows that have no levels, four a call of Philox.

    A row is four quarters of Q = ceil(size / 4), the last one shorter; quarter j has lane j at the
    element indices row * Q + 0..Q-1.

    Args:
        seed: the key.
        row: int64 ``[R]``, numbers of the rows.
        size: of each.
        dtype: of the normals.
        stream: stream id.
        group: ``level // 4``.
    """
    quarter = -(-size // LANES)
    index = row[:, None] * quarter + torch.arange(quarter, device=row.device)
    w0, w1, w2, w3 = philox(seed, index, stream, group)
    return torch.cat([*box_muller(w0, w1, dtype), *box_muller(w2, w3, dtype)], 1)[:, :size]


def trajectory_noise(
    seed: Tensor, num_tokens: int, size: int, depth: int, dtype: torch.dtype
) -> Tensor:
    """Diffusion noise epsilon_k of Eq. 4 for k = 1..depth: ``[depth, num_tokens, size]``."""
    index = element_index(num_tokens, size, seed)
    return normal_levels(seed, index, depth, dtype)


def history_noise(
    seed: Tensor, values: Tensor, offsets: Tensor, size: int, depth: int, dtype: torch.dtype
) -> Tensor:
    """Diffusion noise that goes by the history alone: ``[depth, N, size]``.

    The element index of a token is not its place in the batch but a 64-bit hash of its whole
    history, plus ``place in the history * size + dimension``: who stands beside a user, and where,
    plays no part.

    Args:
        seed: int64 ``[1]``, the key.
        values: int64 ``[N]``, item ids.
        offsets: int64 ``[B+1]``.
        size: D.
        depth: levels.
        dtype: of the noise.
    """
    owner = ragged.sequence_ids(offsets, values.shape[0])
    place = ragged.positions(offsets, values.shape[0])
    first = _history_hash(values, offsets)[owner] + place * size
    index = first[:, None] + torch.arange(size, device=values.device)
    return normal_levels(seed, index, depth, dtype)


def history_index(values: Tensor, offsets: Tensor, size: int) -> Tensor:
    """int64 ``[B, size]``: element indices of a row a history, that go by the history alone."""
    first = _history_hash(values, offsets)[:-1]
    return first[:, None] + torch.arange(size, device=values.device)


def _history_hash(values: Tensor, offsets: Tensor) -> Tensor:
    """int64 ``[B+1]``: 64-bit hashes of histories, and of capacity."""
    owner = ragged.sequence_ids(offsets, values.shape[0])
    place = ragged.positions(offsets, values.shape[0])
    return mixed(torch.zeros_like(offsets).index_add_(0, owner, mixed(mixed(values) + place)))


def gumbel(seed: Tensor, num_sequences: int, choices: int, dtype: torch.dtype) -> Tensor:
    """Gumbel(0, 1) noise of Eq. 3: ``[num_sequences, choices]``, index = sequence * choices + i."""
    index = torch.arange(num_sequences * choices, device=seed.device).view(num_sequences, choices)
    index = index + first_sequence(seed) * choices
    return -torch.log(-torch.log(to_uniform(words(seed, index, STREAM_GUMBEL, 0), dtype)))


def dropout_threshold(p: float) -> int:
    """The word below which an element is dropped: round(p * 2^32)."""
    return round(p * 2.0**32)


def keep_mask(seed: Tensor, index: Tensor, stream: int, level: int, p: float) -> Tensor:
    """Bool, shaped like ``index``: True where dropout with probability p keeps the element."""
    return words(seed, index, stream, level) >= dropout_threshold(p)


def keep_levels(seed: Tensor, index: Tensor, stream: int, levels: int, p: float) -> Tensor:
    """:func:`keep_mask` of the levels 0..levels-1: bool ``[levels, *index.shape]``."""
    masks: list[Tensor] = []
    for group in range(-(-levels // LANES)):
        masks += [word >= dropout_threshold(p) for word in philox(seed, index, stream, group)]
    return torch.stack(masks[:levels])


def keep_quarters(
    seed: Tensor, num_tokens: int, size: int, stream: int, p: float
) -> Tensor:
    """A mask of rows that have no levels: bool ``[num_tokens, size]``.

    A row is four quarters of Q = ceil(size / 4) elements, the last one shorter; quarter j has lane
    j of level group 0 at the element indices token * Q + 0..Q-1.
    """
    quarter = -(-size // LANES)
    quarters = philox(seed, element_index(num_tokens, quarter, seed), stream, 0)
    return torch.cat(quarters, 1)[:, :size] >= dropout_threshold(p)


def attention_index(tokens: Tensor, heads: int, keys: Tensor) -> Tensor:
    """Element index of attention probabilities.

    Args:
        tokens: int64 ``[...]``, index of the query token in the whole batch.
        heads: number of heads H.
        keys: int64 ``[L]``, position of the key inside its sequence, < 2^16.

    Returns:
        int64 ``[..., H, L]``.
    """
    head = torch.arange(heads, device=tokens.device)
    row = tokens[..., None] * heads + head
    return (row[..., None] << 16) | keys


def as_seed(value: int, device: torch.device | str = "cpu") -> Tensor:
    """A 64-bit seed as the int64 ``[1]`` tensor that the ops take."""
    return torch.tensor([_signed(value % (1 << 64))], dtype=torch.int64, device=device)


def mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser of every element, int64: a bijection that spreads neighbours."""
    x = x + _signed(_GOLDEN)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def spread_seed(seed: int) -> Tensor:
    """A key far from those of neighbouring seeds, since each training step takes the next key.

    The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). int64 ``[1]``.
    """
    mask = (1 << 64) - 1
    z = (seed + _GOLDEN) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return as_seed(z ^ (z >> 31))
