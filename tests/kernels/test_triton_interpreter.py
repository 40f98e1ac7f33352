"""Start the Triton tests interpreted, and the compile-only check, each in its own process.

Triton decides when it is imported whether kernels are interpreted, so both need a fresh one.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest
from helpers import APPROXIMATE

from bench.triton_table import read

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

ROOT = Path(__file__).parents[2]
TRITON = version("triton")
MEASURED = sorted(read())
measured = pytest.mark.skipif(
    TRITON not in MEASURED,
    reason=f"tiles are chosen for triton {' and '.join(MEASURED)}, this is {TRITON}",
)


def _interpreter_trouble() -> str | None:
    """Why kernels cannot be interpreted here, found without importing Triton, or None.

    Triton 3.6 makes a number of an array with one element, which NumPy refuses from 2.4 on.
    """
    source = Path(str(importlib.util.find_spec("triton").origin)).parent / "runtime/interpreter.py"
    numpy_version = tuple(int(part) for part in version("numpy").split(".")[:2])
    if numpy_version < (2, 4) or "int(self.handle.data)" not in source.read_text(encoding="utf-8"):
        return None
    return (
        f"triton {TRITON} interprets kernels only with NumPy below 2.4, and this is "
        f"{version('numpy')}; pip install 'numpy<2.4'"
    )


def _run(arguments: list[str], interpret: bool, approximate: bool = False) -> None:
    trouble = _interpreter_trouble() if interpret else None
    if trouble is not None:
        pytest.skip(trouble)
    environment = {
        **os.environ, "TRITON_INTERPRET": str(int(interpret)), APPROXIMATE: str(int(approximate)),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


def _interpreted(names: Sequence[str], *options: str, approximate: bool = False) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this session is interpreted already and runs the files itself")
    files = [f"tests/{name}.py" for name in names]
    _run(["-m", "pytest", "-q", "-n", "0", *files, *options], interpret=True,
         approximate=approximate)  # fmt: skip


def test_interpreted() -> None:
    """One process: each would import torch and Triton."""
    names = ("model", "step", "fused_trajectory", "philox", "product", "reduce", "autotune")
    _interpreted([f"kernels/test_triton_{name}" for name in names])


@pytest.mark.parametrize(
    "chosen",
    ["equals_the_float64", pytest.param("not equals_the_float64", marks=pytest.mark.slow)],
)
def test_interpreted_tiles(chosen: str) -> None:
    _interpreted(["kernels/test_triton_tiles"], "-k", chosen)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiles", "fused_trajectory"])
def test_interpreted_with_every_variant_of_every_op(name: str) -> None:
    _interpreted([f"kernels/test_triton_{name}"], "-m", "slow", "-n", "2")


@pytest.mark.slow
def test_interpreted_with_the_arithmetic_of_a_gpu() -> None:
    """The rule that holds on CUDA, where a GPU's functions and sums are as bad as PTX allows."""
    _interpreted(
        ["kernels/test_triton_tiles"], "-k", "equals_the_float64", "-n", "2", approximate=True
    )


@pytest.mark.slow
def test_noise_of_a_share_interpreted() -> None:
    _interpreted(["ops/test_noise_places"], "-k", "triton")


@measured
def test_default_configurations_fit_sm_86() -> None:
    """Nothing spills or asks for more than 99 KiB: by the table, and compiled for what is not.

    Rows whose kernel was changed since they were measured are compiled now.
    """
    _run(["-m", "bench.triton_resources", "--check", "--stale", "--arch", "86"], interpret=False)


@measured
def test_some_configurations_compiled_now_are_as_good_as_the_table() -> None:
    _run(
        ["-m", "bench.triton_resources", "--check", "--no-variants", "--arch", "86", "--size", "64",
         "--precision", "tf32", "--op", "hda_trajectory", "level_pool", "moe_aggregate"],
        interpret=False,
    )


def test_some_kernels_compile_for_amd() -> None:
    _run(
        ["-m", "bench.triton_resources", "--check", "--arch", "94", "--size", "64", "--precision",
         "half", "--op", "hda_trajectory", "level_pool", "score_topk"],
        interpret=False,
    )


@measured
@pytest.mark.slow
def test_every_configuration_is_as_good_as_the_table() -> None:
    _run(["-m", "bench.triton_resources", "--check"], interpret=False)
