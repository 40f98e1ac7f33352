"""`wide_normals`: long rows of normals, the same of every backend."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import Backend, backends_for

from adarec_fast import rng
from adarec_fast.ops import wide_normals
from adarec_fast.ops._library import unavailable

STREAM = rng.STREAM_DIFFUSION_NOISE
SEED = torch.tensor([0x1234567855AA, 9, 9])


@pytest.fixture(params=backends_for("wide_normals"))
def backend(request: pytest.FixtureRequest) -> Backend:
    found: Backend = request.param
    why = unavailable(found.op, found.name, found.device)
    if why is not None:
        pytest.skip(why)
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 31, 63, 64, 65, 257, 1000])
@pytest.mark.parametrize("group", [0, 7])
def test_every_backend_draws_the_same(backend: Backend, size: int, group: int) -> None:
    """Against float64: the words are the same, or nothing would come near it."""
    row = torch.tensor([0, 5, 3, 5, -7, 2**62 + 11, (1 << 33) + 1])
    exact = rng.wide_normals(SEED, row, size, torch.float64, STREAM, group)
    plain = rng.wide_normals(SEED, row, size, torch.float32, STREAM, group)
    found = wide_normals(
        row.to(backend.device), size, seed=SEED.to(backend.device), stream=STREAM, group=group,
        backend=backend.name,
    ).cpu()  # fmt: skip
    assert found.shape == (7, size)
    assert found.dtype == torch.float32
    off, allowed = (found - exact).abs(), 2 * (plain - exact).abs() + 4e-6
    assert (off <= allowed).all()
    assert torch.equal(found[1], found[3])  # a row goes by its number alone


def test_nothing_behind_a_row_is_written(backend: Backend) -> None:
    """Rows of 61 are stored side by side, the last vector of each in part."""
    row = torch.arange(40, device=backend.device)
    seed = SEED.to(backend.device)
    whole = wide_normals(row, 61, seed=seed, stream=STREAM, backend=backend.name)
    for at in (0, 17, 39):
        alone = wide_normals(
            row[at : at + 1], 61, seed=seed, stream=STREAM, backend=backend.name
        )
        assert torch.equal(alone[0], whole[at])
    assert torch.isfinite(whole).all()


def test_they_are_standard_normals(backend: Backend) -> None:
    row = torch.arange(64, device=backend.device)
    seed = rng.as_seed(11, backend.device)
    found = wide_normals(row, 4096, seed=seed, stream=STREAM, backend=backend.name).cpu().double()
    count = found.numel()
    assert abs(float(found.mean())) < 4 / math.sqrt(count)
    assert abs(float(found.var()) - 1) < 4 * math.sqrt(2 / count)
    within = float((found.abs() < 1).double().mean())
    assert within == pytest.approx(math.erf(math.sqrt(0.5)), abs=4 * 0.47 / math.sqrt(count))


def test_other_dtypes_and_the_reference_are_plain() -> None:
    row = torch.arange(3)
    for dtype in (torch.float64, torch.bfloat16):
        found = wide_normals(row, 9, seed=SEED, stream=STREAM, dtype=dtype)
        assert torch.equal(found, rng.wide_normals(SEED, row, 9, dtype, STREAM))
    plain = wide_normals(row, 9, seed=SEED, stream=STREAM, backend="reference")
    assert torch.equal(plain, rng.wide_normals(SEED, row, 9, torch.float32, STREAM))


def test_no_rows_are_none(backend: Backend) -> None:
    row = torch.arange(0, device=backend.device)
    seed = SEED.to(backend.device)
    found = wide_normals(row, 9, seed=seed, stream=STREAM, backend=backend.name)
    assert found.shape == (0, 9)


def test_operator_checks(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("plain PyTorch, no operator")
    row, seed = torch.arange(5, device=backend.device), SEED.to(backend.device)
    torch.library.opcheck(
        torch.ops.adarec_fast.wide_normals_fwd.default, (row, seed, 21, STREAM, 3, backend.name)
    )


def test_compiles_for_changing_rows(backend: Backend) -> None:
    def draw(row: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return 2 * wide_normals(row, 21, seed=seed, stream=STREAM, backend=backend.name)

    compiled = torch.compile(draw, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (4, 9):
        row, seed = torch.arange(rows, device=backend.device), SEED.to(backend.device)
        assert torch.equal(compiled(row, seed), draw(row, seed))


def test_what_does_not_fit_is_named() -> None:
    row = torch.arange(3)
    with pytest.raises(ValueError, match="size=0 must be at least 1"):
        wide_normals(row, 0, seed=SEED, stream=STREAM)
    with pytest.raises(ValueError, match=r"row has dtype torch.float32; it must be torch.int64"):
        wide_normals(row.float(), 4, seed=SEED, stream=STREAM)
    with pytest.raises(ValueError, match="seed has shape"):
        wide_normals(row, 4, seed=torch.arange(2), stream=STREAM)
