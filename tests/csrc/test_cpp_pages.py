"""Memory of large tensors: it goes from one to the next, and no tensor notices."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adarec_fast.ops import extension

pytestmark = pytest.mark.skipif(
    extension.unavailable("cpp") is not None, reason="the C++ extension is not there"
)

MOST = 256 << 20
MIB = 1 << 18  # in floats


def _held() -> int:
    return int(torch.ops.adarec_fast_cpp.pages_held())


def _dropped(rows: int, seed: int = 5) -> Tensor:
    """A result of ``rows`` x 64 floats that nobody else holds."""
    place = torch.tensor([seed, 0, 0])
    return torch.ops.adarec_fast_cpp.dropout_fwd(torch.ones(rows, 64), place, 0.5, 1)


@pytest.mark.parametrize("rows", [256, 3000, 40_000])  # 64 KiB, less than a huge page, several
def test_memory_is_taken_again(rows: int) -> None:
    first = _dropped(rows)
    address, held = first.data_ptr(), _held()
    del first
    assert _held() > held
    again = _dropped(rows)
    assert again.data_ptr() == address
    assert _held() == held


def test_a_tensor_that_is_still_held_is_left_alone() -> None:
    first = _dropped(3000)
    view, wanted = first[1:, 3:5], first.clone()
    address = first.data_ptr()
    del first
    others = [_dropped(3000, seed) for seed in range(6, 10)]
    assert address not in [other.data_ptr() for other in others]
    assert torch.equal(view, wanted[1:, 3:5])


def test_it_holds_no_more_than_its_bound() -> None:
    kept = [_dropped(5 * MIB // 64) for _ in range(60)]  # 6 MiB each, in whole huge pages
    del kept
    assert MOST - (6 << 20) < _held() <= MOST
    huge = _dropped(MOST // 256 + 64)  # more than the bound alone
    held = _held()
    del huge
    assert _held() == held


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def test_sizes_that_change_do_not_make_it_grow() -> None:
    sizes = random.Random(0)
    resident = 0
    for step in range(60):
        live = [_dropped(sizes.randint(256, 60_000)) for _ in range(4)]
        del live
        if step == 30:
            resident = _resident()
    assert _held() <= MOST
    assert _resident() - resident < 32 << 20


def test_threads_take_from_it_at_once() -> None:
    wanted = {seed: _dropped(2000, seed) for seed in range(8)}

    def right(seed: int) -> bool:
        return all(torch.equal(_dropped(2000, seed), wanted[seed]) for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, wanted))


def test_a_tensor_can_grow() -> None:
    tensor = _dropped(256)
    wanted = tensor.clone()
    tensor.resize_(5000, 64)
    assert torch.equal(tensor[:256], wanted)
