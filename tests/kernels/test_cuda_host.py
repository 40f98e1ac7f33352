"""Start the tests that pretend a CUDA device, in processes of their own.

What they pretend it with must be loaded before torch, and stays for the rest of a process.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if torch.version.cuda is not None:
    pytest.skip("this torch has a CUDA device guard of its own", allow_module_level=True)
if shutil.which(os.environ.get("CXX", "c++")) is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

from pretend_torch import build_guard

ROOT = Path(__file__).parents[2]
_START = """
import ctypes, sys
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guard(tmp_path_factory.mktemp("guard"))


def _pretended(names: tuple[str, ...], guard: Path, *options: str) -> None:
    environment = {
        **os.environ, "TRITON_INTERPRET": "0", "ADAREC_FAST_TESTS_PRETEND_CUDA": "1",
        "ADAREC_FAST_NO_EXT": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _START, str(guard), "-q", "-p", "no:cacheprovider", "-n", "0",
         *(f"tests/kernels/test_pretended_{name}.py" for name in names), *options],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


@pytest.mark.parametrize(
    "names", [("launches", "flows", "prepared", "count"), ("card",)], ids="-".join
)
def test_on_a_pretended_device(names: tuple[str, ...], guard: Path) -> None:
    """Two processes: a start costs seconds, and one would be the suite's last to end."""
    _pretended(names, guard)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["launches", "prepared"])
def test_the_rest_on_a_pretended_device(name: str, guard: Path) -> None:
    _pretended((name,), guard, "-m", "slow")
