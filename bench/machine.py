"""What a figure was measured on: the machine, the versions, and the peaks it reaches."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

import adarec_fast

_SGEMM = 1024  # rows and columns of the matrices
_COPY_BYTES = 1 << 28  # four times a large cache
_PEAK_SECONDS = 0.3


def processor() -> str:
    """The CPU's model name, e.g. ``AMD EPYC 9654``."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def cores() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def instructions() -> str:
    """The vector instructions that torch uses here, and our extension if it is kept to fewer."""
    found = torch.backends.cpu.get_cpu_capability()
    found = {"AVX512": "AVX-512", "DEFAULT": "none"}.get(found, found)
    asked = os.environ.get("ADAREC_FAST_PORTABLE", "0")
    names = {"0": found, "": found, "1": "AVX2", "avx2": "AVX2", "avx512": "AVX-512"}
    ours = names.get(asked, asked)
    return found if ours == found else f"{ours} (torch {found})"


def slug(device: str) -> str:
    """The machine's part of a result file's name, e.g. ``amd-epyc-2c`` or ``nvidia-h200``."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{processor()} {cores()}c"
    name = re.sub(r"\((r|tm)\)|processor|cpu|@.*?hz", "", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def describe(device: str) -> dict[str, Any]:
    """Machine and versions, as they go into a result file."""
    machine: dict[str, Any] = {
        "cpu": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "instructions": instructions(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine["gpu"] = properties.name
        machine["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        machine["compute_capability"] = f"{properties.major}.{properties.minor}"
    versions = {
        "adarec_fast": adarec_fast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
    if torch.version.cuda is not None:
        versions["cuda"] = torch.version.cuda
    return {"machine": machine, "versions": versions}


def synchronize(device: str) -> None:
    """Wait for the device; nothing to do on a CPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def _fastest(function: Callable[[], object], device: str) -> float:
    function()
    synchronize(device)
    best, end = float("inf"), time.perf_counter() + _PEAK_SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        function()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best


def measure_peaks(device: str) -> dict[str, float]:
    """What this machine reaches now: ``gflops`` (float32 matrix product on all cores or the whole
    GPU), ``gflops_one_core`` (CPU), ``gflops_tf32`` and ``gflops_bf16`` (CUDA), and ``gbps``
    (stream copy, bytes read plus bytes written)."""
    extent = 8 * _SGEMM if device == "cuda" else _SGEMM
    a = torch.randn(extent, extent, device=device)
    b, out = torch.randn_like(a), torch.empty_like(a)
    flops = 2.0 * extent**3

    def product() -> Tensor:
        return torch.mm(a, b, out=out)

    peaks: dict[str, float] = {}
    if device == "cpu":
        peaks["gflops"] = flops / _fastest(product, device) / 1e9
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            peaks["gflops_one_core"] = flops / _fastest(product, device) / 1e9
        finally:
            torch.set_num_threads(threads)
    else:
        # Not torch.get_float32_matmul_precision, which raises where this switch was used before.
        switch = torch.backends.cuda.matmul
        precision = switch.fp32_precision
        try:
            switch.fp32_precision = "ieee"
            peaks["gflops"] = flops / _fastest(product, device) / 1e9
            switch.fp32_precision = "tf32"
            peaks["gflops_tf32"] = flops / _fastest(product, device) / 1e9
        finally:
            switch.fp32_precision = precision
        a16, b16 = a.bfloat16(), b.bfloat16()
        peaks["gflops_bf16"] = flops / _fastest(lambda: a16 @ b16, device) / 1e9
    source = torch.zeros((16 if device == "cuda" else 1) * _COPY_BYTES // 4, device=device)
    target = torch.zeros_like(source)
    copied = 2.0 * source.numel() * source.element_size()
    peaks["gbps"] = copied / _fastest(lambda: target.copy_(source), device) / 1e9
    return {name: round(value, 2) for name, value in peaks.items()}


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _kept() -> int:
    """Bytes that the extension's earlier results left to its next ones."""
    ops = torch.ops.adarec_fast_cpp
    return ops.pages_held() if hasattr(ops, "pages_held") else 0


def peak_memory(function: Callable[[], object], device: str) -> int | None:
    """Bytes that one call needs above what is held before it; None where this cannot be read.

    On a CPU it is the growth of the resident set (Linux), after free memory of the C library's
    heap was given back. Memory that a library keeps for its next call counts in its first call
    only, so measure that one; what our extension keeps counts in every call.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
        # What the extension keeps for its next results is memory of the function, not of before.
        before = _status("VmRSS") - _kept()
    except (OSError, AttributeError):
        function()
        return None
    function()
    return max(0, _status("VmHWM") - before)
