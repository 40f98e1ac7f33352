"""What the rule of ``helpers.assert_close_to_float64`` lets pass on CUDA and what not, and where
tests are collected."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers_accuracy import assert_close_to_float64
from torch import Tensor

ROOT = Path(__file__).parents[2]
TERMS = 4096  # more than any sum of the suites on CUDA has


def _product() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.rand(shape, generator=draw) for shape in ((8, TERMS), (TERMS, 8)))


def _to_tf32(x: Tensor) -> Tensor:
    """Rounded to 11 significant bits, to nearest."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def test_sums_of_one_term_after_the_other_pass() -> None:
    x, w = _product()
    total = torch.zeros(8, 8)
    for k in range(TERMS):
        total = total + x[:, k, None] * w[None, k]
    assert_close_to_float64(total, x @ w, x.double() @ w.double(), "sum", terms=TERMS)


def test_tf32_is_refused_where_float32_is_meant() -> None:
    """And so is bfloat16: a kernel that picks the wrong product is found."""
    x, w = _product()
    gold = x.double() @ w.double()
    one_sided = (x + x * 2**-12) @ w  # as truncation errs, always the same way
    assert torch.equal(_to_tf32(x), _to_tf32(_to_tf32(x)))
    for wrong in (one_sided, x.bfloat16().float() @ w.bfloat16().float()):
        with pytest.raises(AssertionError, match="off by"):
            assert_close_to_float64(wrong, x @ w, gold, "product", terms=TERMS)
    few = x[:, :64], w[:64]
    with pytest.raises(AssertionError, match="off by"):
        assert_close_to_float64(
            _to_tf32(few[0]) @ _to_tf32(few[1]), few[0] @ few[1],
            few[0].double() @ few[1].double(), "product", terms=64,
        )  # fmt: skip


def test_a_wrong_element_is_refused() -> None:
    x, w = _product()
    gold = x.double() @ w.double()
    wrong = (x @ w).clone()
    wrong[3, 3] -= x[3, -1] * w[-1, 3]  # the last term forgotten
    with pytest.raises(AssertionError, match="off by"):
        assert_close_to_float64(wrong, x @ w, gold, "product", terms=TERMS)


def test_a_checkout_in_a_folder_named_as_a_marker_loses_no_test(tmp_path: Path) -> None:
    """A folder's name is among every test's keywords, by which ``-k`` selects, but no marker."""
    place = tmp_path / "gpu" / "slow"
    tests = place / "tests"
    shutil.copytree(ROOT / "tests", tests, ignore=shutil.ignore_patterns("__pycache__", "test_*"))
    (tests / "test_one.py").write_text("def test_one() -> None:\n    assert True\n")
    shutil.copy(ROOT / "pyproject.toml", place)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_one.py"],
        cwd=place, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "1 passed" in last
    assert "skipped" not in last
