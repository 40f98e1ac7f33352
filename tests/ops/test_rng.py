"""The noise contract: known answers, independence of shape, moments."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adarec_fast import rng

STREAMS = st.sampled_from([rng.STREAM_NOISE, rng.STREAM_GUMBEL, rng.STREAM_BACKBONE])


def word32(value: torch.Tensor) -> str:
    return f"{int(value):08x}"


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        # kat_vectors of Random123 (Salmon et al., SC 2011), philox4x32 with 10 rounds.
        (
            "00000000 00000000 00000000 00000000",
            "00000000 00000000",
            "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        ),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    low, high, stream, group = (int(word, 16) for word in counter.split())
    key_low, key_high = (int(word, 16) for word in key.split())
    index = rng.as_seed(high << 32 | low)  # the same two's complement as a seed's
    words = rng.philox(rng.as_seed(key_high << 32 | key_low), index, stream, group)
    assert " ".join(word32(word) for word in words) == answer


def scalar_philox(seed: int, index: int, stream: int, group: int) -> tuple[int, ...]:
    """Philox4x32-10 in Python's integers."""
    mask = 0xFFFFFFFF
    c = [index & mask, index >> 32 & mask, stream, group]
    k = [seed & mask, seed >> 32 & mask]
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 & mask, p0 >> 32 ^ c[3] ^ k[1], p0 & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return tuple(c)


@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    index=st.integers(0, 2**63 - 1),
    stream=st.integers(0, 2**32 - 1),
    group=st.integers(0, 16),
)
def test_agrees_with_arithmetic_on_whole_numbers(
    seed: int, index: int, stream: int, group: int
) -> None:
    words = rng.philox(rng.as_seed(seed), torch.tensor([index]), stream, group)
    assert tuple(int(word) for word in words) == scalar_philox(seed % 2**64, index, stream, group)


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 2**64 + 5])
def test_seeds_are_taken_modulo_64_bits(seed: int) -> None:
    made = rng.as_seed(seed)
    assert made.dtype == torch.int64
    assert made.shape == (1,)
    assert int(made) % 2**64 == seed % 2**64


def test_lanes_are_levels() -> None:
    """Level k is word k % 4 of the call k // 4, for words, masks and normals alike."""
    seed, index = rng.as_seed(7), rng.element_index(5, 3)
    masks = rng.keep_levels(seed, index, rng.STREAM_FINE_EXPERT, 9, 0.4)
    for level in range(9):
        word = rng.philox(seed, index, rng.STREAM_FINE_EXPERT, level // 4)[level % 4]
        assert torch.equal(rng.words(seed, index, rng.STREAM_FINE_EXPERT, level), word)
        assert torch.equal(masks[level], word >= round(0.4 * 2**32))
        kept = rng.keep_mask(seed, index, rng.STREAM_FINE_EXPERT, level, 0.4)
        assert torch.equal(masks[level], kept)


@pytest.mark.parametrize("size", [1, 4, 6, 20])
def test_quarters_of_a_row_are_lanes(size: int) -> None:
    """At any place in a batch; the last quarter may be shorter, or not there."""
    seed, quarter = rng.as_seed(7), -(-size // 4)
    mask = rng.keep_quarters(seed, 5, size, rng.STREAM_BACKBONE, 0.4)
    assert mask.shape == (5, size)
    for token in range(5):
        for place in range(size):
            lane, at = divmod(place, quarter)
            word = scalar_philox(7, token * quarter + at, rng.STREAM_BACKBONE, 0)[lane]
            assert bool(mask[token, place]) == (word >= round(0.4 * 2**32))
    later = rng.keep_quarters(
        rng.at_place(seed, torch.tensor([2, 1])), 3, size, rng.STREAM_BACKBONE, 0.4
    )
    assert torch.equal(later, mask[2:])


@given(depth=st.integers(1, 11), tokens=st.integers(1, 6), size=st.integers(1, 9))
def test_fewer_levels_or_tokens_are_a_part_of_more(depth: int, tokens: int, size: int) -> None:
    seed = rng.as_seed(-3)
    more = rng.trajectory_noise(seed, tokens + 3, size, depth + 2, torch.float32)
    fewer = rng.trajectory_noise(seed, tokens, size, depth, torch.float32)
    assert torch.equal(more[:depth, :tokens], fewer)


@given(stream=STREAMS, start=st.integers(0, 2**40))
def test_a_tile_does_not_matter(stream: int, start: int) -> None:
    seed, index = rng.as_seed(11), torch.arange(start, start + 24)
    whole = rng.normal_levels(seed, index, 6, torch.float64, stream)
    tiles = [rng.normal_levels(seed, part, 6, torch.float64, stream) for part in index.split(7)]
    assert torch.equal(whole, torch.cat(tiles, 1))
    shuffled = torch.randperm(24)
    assert torch.equal(
        rng.normal_levels(seed, index[shuffled], 6, torch.float64, stream), whole[:, shuffled]
    )


def test_streams_seeds_levels_and_indices_differ() -> None:
    index = torch.arange(64)
    draws = [
        rng.words(rng.as_seed(seed), index + shift, stream, level)
        for seed, shift, stream, level in [
            (0, 0, 0, 0), (1, 0, 0, 0), (1 << 32, 0, 0, 0), (0, 1 << 32, 0, 0), (0, 0, 1, 0),
            (0, 0, 0, 1), (0, 0, 0, 4),
        ]
    ]
    for first in range(len(draws)):
        for second in range(first):
            assert not (draws[first] == draws[second]).any()


def test_level_k_of_the_trajectory_uses_the_coordinate_k_minus_1() -> None:
    seed, index = rng.as_seed(5), rng.element_index(4, 6)
    noise = rng.trajectory_noise(seed, 4, 6, 5, torch.float64)
    for k in range(1, 6):
        group, lane = divmod(k - 1, 4)
        words = rng.philox(seed, index, rng.STREAM_NOISE, group)
        a, b = words[lane // 2 * 2], words[lane // 2 * 2 + 1]
        radius = torch.sqrt(-2 * torch.log(((a >> 9).double() + 0.5) * 2.0**-23))
        angle = 2 * math.pi * ((b >> 9).double() + 0.5) * 2.0**-23
        wanted = radius * (torch.cos(angle) if lane % 2 == 0 else torch.sin(angle))
        torch.testing.assert_close(noise[k - 1], wanted, rtol=1e-14, atol=1e-14)


def test_uniforms_stay_inside_and_are_exact_in_float32() -> None:
    words = torch.tensor([0, 511, 512, 2**31, 2**32 - 1])
    for dtype in (torch.float32, torch.float64):
        uniform = rng.to_uniform(words, dtype)
        assert uniform.dtype == dtype
        assert float(uniform.min()) == 2.0**-24
        assert float(uniform.max()) == 1 - 2.0**-24
    narrow, wide = (rng.to_uniform(words, dtype) for dtype in (torch.float32, torch.float64))
    assert torch.equal(narrow.double(), wide)


def test_moments() -> None:
    """Within five standard errors of what the distributions have."""
    count = 1 << 18
    seed, index = rng.as_seed(2024), torch.arange(count)

    def check(sample: torch.Tensor, mean: float, variance: float, kurtosis: float) -> None:
        error = math.sqrt(variance / sample.numel())
        assert abs(float(sample.mean()) - mean) < 5 * error
        spread = float((sample - mean).square().mean())
        assert abs(spread - variance) < 5 * variance * math.sqrt((kurtosis - 1) / sample.numel())

    check(rng.to_uniform(rng.words(seed, index, 3, 0), torch.float64), 0.5, 1 / 12, 1.8)
    normals = rng.normal_levels(seed, index, 4, torch.float64)
    for plane in normals:
        check(plane, 0.0, 1.0, 3.0)
    # Cosine and sine of one angle are two independent normals, and so are two calls.
    correlation = torch.corrcoef(normals) - torch.eye(4, dtype=torch.float64)
    assert float(correlation.abs().max()) < 5 / math.sqrt(count)
    gumbel = rng.gumbel(seed, count // 8, 8, torch.float64)
    check(gumbel.flatten(), 0.57721566490153286, math.pi**2 / 6, 5.4)


def test_gumbel_by_hand() -> None:
    noise = rng.gumbel(rng.as_seed(9), 2, 3, torch.float64)
    word = scalar_philox(9, 1 * 3 + 2, rng.STREAM_GUMBEL, 0)[0]
    uniform = ((word >> 9) + 0.5) / 2**23
    assert noise.shape == (2, 3)
    assert float(noise[1, 2]) == pytest.approx(-math.log(-math.log(uniform)), rel=1e-13)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_keep_rate(p: float) -> None:
    index = torch.arange(1 << 17)
    for level in (0, 5):
        kept = rng.keep_mask(rng.as_seed(1), index, rng.STREAM_BACKBONE, level, p)
        error = math.sqrt(p * (1 - p) / index.numel())
        assert abs(float(kept.double().mean()) - (1 - p)) < 5 * error


def test_nothing_is_dropped_at_zero() -> None:
    assert rng.keep_mask(rng.as_seed(1), torch.arange(1000), 0, 0, 0.0).all()


def test_attention_indices_do_not_meet() -> None:
    tokens, keys = torch.arange(6), torch.arange(50)
    index = rng.attention_index(tokens, 3, keys)
    assert index.shape == (6, 3, 50)
    assert int(index[4, 2, 7]) == (4 * 3 + 2) * 2**16 + 7
    assert index.unique().numel() == index.numel()


def test_no_level_is_no_noise() -> None:
    assert rng.trajectory_noise(rng.as_seed(0), 3, 4, 0, torch.float32).shape == (0, 3, 4)
