"""The generic back end of ``csrc/cpu/vec.h``: four lanes on any processor, NEON on ARM."""

from __future__ import annotations

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from adarec_fast import rng
from adarec_fast.ops import _plans

PROGRAM = Path(__file__).resolve().parents[1] / "support" / "vec_portable.cpp"
PARTS = ("dropout.cpp", "mlp_expert.cpp")
ARM = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64-static"
Lines = dict[str, list[str]]

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="compares with what is for x86-64"
)


def _compile(compiler: list[str], processor: str, target: Path, *options: str) -> None:
    """A program, or with -fsyntax-only nothing, of kernels without a header of torch."""
    flags = _plans._host_flags(f"-march={processor}").split()
    line = [*compiler, *flags, "-O2", f"-I{_plans.SOURCES / 'cpu'}", *options, "-o", str(target)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def _said(command: list[str]) -> Lines:
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows: Lines = {}
    for name, *values in (line.split() for line in text.splitlines()):
        rows.setdefault(name, []).extend(values)
    return rows


def _floats(values: list[str]) -> torch.Tensor:
    return torch.tensor([float.fromhex(value) for value in values], dtype=torch.float64)


def _agree(ours: Lines, theirs: Lines) -> None:
    assert ours.keys() == theirs.keys()
    for name in ("philox", "dropout"):
        assert ours[name] == theirs[name]
    for name in ("y", "dx", "d_w1", "d_w2", "d_gain"):
        a, b = _floats(ours[name]), _floats(theirs[name])
        assert a.isfinite().all()
        # Sums of 20 to 57 terms in another order and, on x86-64-v2, without fused multiply-adds.
        assert (a - b).abs().max() <= 4e-6 * b.abs().max(), name


@pytest.fixture(scope="module")
def host() -> list[str]:
    try:
        return _plans.compiler()
    except _plans.ExtensionError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def programs(host: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Lines]:
    """What the program prints, compiled for AVX2 and for processors without it."""
    if _plans.missing(_plans.targets()[1]):
        pytest.skip("this processor has no AVX2 to compare with")
    folder = tmp_path_factory.mktemp("generic")
    sources = [str(PROGRAM), *(str(_plans.SOURCES / "cpu" / part) for part in PARTS)]
    processors = ("x86-64-v3", "x86-64-v2")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda p: _compile(host, p, folder / p, *sources), processors))
    return {processor: _said([str(folder / processor)]) for processor in processors}


def test_words_are_those_of_the_contract(programs: dict[str, Lines]) -> None:
    assert programs["x86-64-v2"]["width"] == ["4"]
    index = torch.arange(64) + (1 << 32) - 80 + 3 * 20
    seed = rng.as_seed((77 << 32) + 5)
    wanted = torch.cat([torch.stack(rng.philox(seed, index, 9, group)) for group in (0, 1)])
    assert [int(word) for word in programs["x86-64-v2"]["philox"]] == wanted.flatten().tolist()


def test_four_lanes_agree_with_avx2(programs: dict[str, Lines]) -> None:
    assert programs["x86-64-v3"]["width"] == ["8"]
    _agree(programs["x86-64-v2"], programs["x86-64-v3"])


def test_kernels_use_no_instruction_of_x86(host: list[str]) -> None:
    """Without AVX vec.h includes no intrinsics, so that one in a kernel is an error here too."""
    flags = [*_plans._host_flags("-march=x86-64-v2").split(), f"-I{_plans.SOURCES}"]

    def check(path: Path) -> None:
        line = [*host, *flags, "-fsyntax-only", str(path)]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    with ThreadPoolExecutor() as pool:
        list(pool.map(check, sorted((_plans.SOURCES / "cpu").glob("*.cpp"))))


@pytest.mark.slow
def test_arm_agrees_with_avx2(programs: dict[str, Lines], tmp_path: Path) -> None:
    """Every kernel compiles for ARM, and the program runs there, or in an emulation of it."""
    if shutil.which(ARM) is None or shutil.which(EMULATOR) is None:
        pytest.skip(f"{ARM} or {EMULATOR} is not there (Debian: g++-aarch64-linux-gnu, qemu-user)")
    for path in sorted((_plans.SOURCES / "cpu").glob("*.cpp")):
        _compile([ARM], "armv8-a", tmp_path / "object", "-c", str(path))
    sources = [str(PROGRAM), *(str(_plans.SOURCES / "cpu" / part) for part in PARTS)]
    _compile([ARM], "armv8-a", tmp_path / "program", "-static", *sources)
    ours = _said([EMULATOR, str(tmp_path / "program")])
    assert ours["width"] == ["4"]
    _agree(ours, programs["x86-64-v3"])
