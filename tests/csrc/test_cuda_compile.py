"""Every CUDA kernel compiles for sm_80, sm_86 and sm_90 with no GPU, and costs no more than noted.

``python tests/csrc/test_cuda_compile.py`` notes the present costs in
 bench/results/cuda-resources.json.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTED = ROOT / "bench/results/cuda-resources.json"
ARCHITECTURES = ("sm_80", "sm_86", "sm_90")
COSTS = ("registers", "stack_bytes", "spill_bytes", "shared_bytes")
NVCC = shutil.which(os.environ.get("NVCC", "nvcc"))
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))

Resources = dict[str, dict[str, dict[str, int]]]

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not there")


def version() -> str:
    """The compiler's release, e.g. ``13.0``; costs are compared within one alone."""
    assert NVCC is not None
    text = subprocess.run([NVCC, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    assert found, f"nvcc --version says nothing known: {text}"
    return found[1]


def parse(log: str) -> dict[str, dict[str, int]]:
    """Costs by kernel (demangled, without parameters) from what ``ptxas -v`` printed."""
    costs: dict[str, dict[str, int]] = {}
    kernel = ""
    for line in log.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = plain_name(found[1])
            costs[kernel] = dict.fromkeys(COSTS, 0)
        elif found := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            costs[kernel]["stack_bytes"] = int(found[1])
            costs[kernel]["spill_bytes"] = int(found[2]) + int(found[3])
        elif found := re.search(r"Used (\d+) registers", line):
            costs[kernel]["registers"] = int(found[1])
            shared = re.search(r"(\d+) bytes smem", line)
            costs[kernel]["shared_bytes"] = int(shared[1]) if shared else 0
    return costs


def plain_name(mangled: str) -> str:
    """``backward_kernel<BFloat16>`` of a mangled name; the rest depends on the file's hash."""
    found = re.search(r"\d+(\w+?_kernel)(I(f|\w*?8BFloat16)E)?", mangled)
    assert found, f"a kernel's name must end in _kernel: {mangled}"
    name = re.sub(r"^\d+", "", re.sub(r".*?\d+(?=[a-z_]+_kernel$)", "", found[1]))
    if not found[2]:
        return name
    return f"{name}<{'float' if found[3] == 'f' else 'BFloat16'}>"


def compile_all(architecture: str, folder: Path) -> dict[str, dict[str, int]]:
    """Compile csrc/cuda for an architecture; costs by kernel."""
    assert NVCC is not None
    costs: dict[str, dict[str, int]] = {}
    for source in SOURCES:
        done = subprocess.run(
            [NVCC, "-O3", "-std=c++17", "-Xptxas", "-v", "-gencode",
             f"arch=compute_{architecture[3:]},code={architecture}", "-c", str(source), "-o",
             str(folder / f"{source.stem}-{architecture}.o")],
            capture_output=True, text=True, timeout=600,
        )
        assert done.returncode == 0, f"{source.name} for {architecture}:\n{done.stderr}"
        costs |= parse(done.stderr)
    return costs


def test_ptxas_output_is_understood() -> None:
    log = (
        "ptxas info    : Compiling entry function "
        "'_ZN6adarec4cuda14forward_kernelINS0_8BFloat16EEEvNS0_12MoEAggregateE' for 'sm_86'\n"
        "    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 105 registers, used 1 barriers, 320 bytes smem, 496 bytes cmem[0]\n"
        "ptxas info    : Compiling entry function "
        "'_ZN6adarec4cuda32_GLOBAL__N__238b4304_25_x_cu_2d310sum_kernelENS1_4SumsE' for 'sm_86'\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 32 registers, used 1 barriers, 600 bytes cmem[0]\n"
    )
    assert parse(log) == {
        "forward_kernel<BFloat16>": {
            "registers": 105, "stack_bytes": 16, "spill_bytes": 12, "shared_bytes": 320
        },
        "sum_kernel": {"registers": 32, "stack_bytes": 0, "spill_bytes": 0, "shared_bytes": 0},
    }


@needs_nvcc
@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, marks=[pytest.mark.slow] * (a == "sm_80")) for a in ARCHITECTURES],
)
def test_kernels_compile_and_cost_no_more_than_noted(architecture: str, tmp_path: Path) -> None:
    costs = compile_all(architecture, tmp_path)
    noted = json.loads(NOTED.read_text(encoding="utf-8"))
    assert set(costs) == set(noted["kernels"][architecture]), "the kernels changed: note them anew"
    for kernel, cost in costs.items():
        assert cost["spill_bytes"] == 0, f"{kernel} spills on {architecture}"
        assert cost["stack_bytes"] == 0, f"{kernel} has a stack on {architecture}"
        if noted["nvcc"] != version():
            continue
        before = noted["kernels"][architecture][kernel]
        worse = {name: (before[name], cost[name]) for name in COSTS if cost[name] > before[name]}
        assert not worse, f"{kernel} on {architecture} costs more than noted: {worse}"


def note() -> None:
    """Write what the kernels cost now."""
    with tempfile.TemporaryDirectory() as folder:
        kernels: Resources = {a: compile_all(a, Path(folder)) for a in ARCHITECTURES}
    result = {
        "about": "ptxas -v; shared_bytes leaves out what a launch asks for",
        "command": "python tests/csrc/test_cuda_compile.py",
        "nvcc": version(),
        "kernels": kernels,
    }
    staged = NOTED.with_name(NOTED.name + ".new")
    staged.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(staged, NOTED)


if __name__ == "__main__":
    note()
