"""The noise contract in Triton equals ``rng.py``; run by test_triton_interpreter.py."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from adarec_fast import rng

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "these kernels run interpreted; test_triton_interpreter.py starts this file with "
        "TRITON_INTERPRET=1",
        allow_module_level=True,
    )

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from adarec_fast.kernels.philox import box_muller, keep, philox4  # noqa: E402

SEEDS = (0, 1, -1, 2**63 - 5, -(2**40) - 7)
COUNT = 512


@triton.jit
def _kernel(seed_ptr, index_ptr, words_ptr, normals_ptr, keep_ptr, stream, group, threshold,
            COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    w0, w1, w2, w3 = philox4(seed_ptr, tl.load(index_ptr + at), stream, group, 3)
    n0, n1 = box_muller(w0, w1)
    n2, n3 = box_muller(w2, w3)
    tl.store(words_ptr + at, w0.to(tl.int64))
    tl.store(words_ptr + COUNT + at, w1.to(tl.int64))
    tl.store(words_ptr + 2 * COUNT + at, w2.to(tl.int64))
    tl.store(words_ptr + 3 * COUNT + at, w3.to(tl.int64))
    tl.store(normals_ptr + at, n0)
    tl.store(normals_ptr + COUNT + at, n1)
    tl.store(normals_ptr + 2 * COUNT + at, n2)
    tl.store(normals_ptr + 3 * COUNT + at, n3)
    tl.store(keep_ptr + at, keep(w0, threshold).to(tl.int32))


def _run(seed: int, stream: int, group: int, p: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed % 1000)
    index = torch.randint(0, 2**40, (COUNT,), generator=generator)
    index[:4] = torch.tensor([0, 1, 2**32 - 1, 2**62])
    words = torch.empty(4, COUNT, dtype=torch.int64)
    normals = torch.full((4, COUNT), float("nan"))
    kept = torch.empty(COUNT, dtype=torch.int32)
    _kernel[(1,)](
        rng.at_place(rng.as_seed(seed)), index, words, normals, kept, stream, group,
        rng.dropout_threshold(p), COUNT=COUNT,
    )
    return index, words, normals, kept


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("stream", "group"), [(0, 0), (1, 0), (9, 3), (19, 1)])
def test_words_are_bit_equal(seed: int, stream: int, group: int) -> None:
    index, words, _, _ = _run(seed, stream, group, 0.5)
    assert torch.equal(words, torch.stack(rng.philox(rng.as_seed(seed), index, stream, group)))


@pytest.mark.parametrize("seed", SEEDS)
def test_normals_are_as_exact_as_float32_allows(seed: int) -> None:
    index, _, normals, _ = _run(seed, 0, 2, 0.5)
    gold, same = (
        rng.normal_levels(rng.as_seed(seed), index, 12, dtype)[8:]
        for dtype in (torch.float64, torch.float32)
    )
    assert (normals - gold).abs().max() <= (same - gold).abs().max()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_masks_are_equal(p: float) -> None:
    index, _, _, kept = _run(7, 4, 1, p)
    assert torch.equal(kept.bool(), rng.keep_mask(rng.as_seed(7), index, 4, 4, p))
