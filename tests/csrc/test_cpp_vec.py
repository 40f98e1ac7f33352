"""The functions of ``csrc/cpu/vec.h`` and ``gelu.h`` against double."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from adarec_fast.ops import _plans

PROGRAM = Path(__file__).resolve().parents[1] / "support" / "vec_accuracy.cpp"
# A unit in the last place of 1 is 1.2e-7; PyTorch's own GELU errs by 8e-8 where it is small.
BOUNDS = {
    "gelu": 1.0e-7, "gelu_large": 1.2e-7, "slope": 2.0e-7, "exp": 1.4e-7, "sigmoid": 3.0e-7,
    "tanh": 1.0e-7, "log": 4.0e-7,
}


def _compile(processor: str, target: Path) -> None:
    try:
        compiler = _plans.compiler()
    except _plans.ExtensionError as error:
        pytest.skip(str(error))
    flags = _plans._host_flags(f"-march={processor}").split()
    command = [*compiler, *flags, "-O1", f"-I{_plans.SOURCES / 'cpu'}", str(PROGRAM), "-o", target]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.fixture(scope="module", params=["native", "x86-64-v2"])
def said(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[float]]:
    """What the program prints, compiled for the processor at hand, or in the generic back end."""
    program = tmp_path_factory.mktemp("vec") / "program"
    _compile(request.param, program)
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in lines.splitlines())
    return {name: [float(value) for value in values] for name, *values in rows}


@pytest.mark.parametrize("name", BOUNDS)
def test_errors_stay_within_their_bounds(said: dict[str, list[float]], name: str) -> None:
    assert 0 < said[name][0] <= BOUNDS[name]


def test_beyond_the_range(said: dict[str, list[float]]) -> None:
    nan, *finite = said["exp_beyond"]  # at NaN, -inf, -1000 and -0
    assert nan != nan
    assert finite == [0, 0, 1]
    nan, *finite = said["gelu_beyond"]  # at NaN, inf, 1000 and -0
    assert nan != nan
    assert finite == [float("inf"), 1000, 0]
    nan, *finite = said["slope_beyond"]
    assert nan != nan
    assert finite == [1, 1, 0.5]


@pytest.mark.parametrize("processor", ["x86-64-v3", "x86-64-v4"])
def test_both_widths_compile_without_a_warning(processor: str, tmp_path: Path) -> None:
    _compile(processor, tmp_path / "program")
