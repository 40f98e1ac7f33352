"""Everything that needs a GPU, in one command of under nine minutes: ``python -m bench.gpu``.

Runs the GPU tests, the benchmarks on the device, and a profile of the training step, and writes
one result file with all of it (into $OUT if that is set, else bench/results). What does not fit
into its share of the time is left out, and the file says so. Without a CUDA device it exits 2.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from . import profile, records
from .machine import describe, measure_peaks, slug

ROOT = Path(__file__).parents[1]
_TOTAL = 530.0  # seconds
_TESTS, _PROFILE, _GRACE = 140.0, 45.0, 10.0
_TAIL = 40  # lines of a test run's output that are kept
_STEPS = 10


def run_tests(seconds: float) -> dict[str, Any]:
    """``pytest -m gpu``; the end of its output and its exit status, None if time ran out."""
    command = [
        sys.executable, "-m", "pytest", "tests", "-m", "gpu", "-q", "-p", "no:cacheprovider",
    ]  # fmt: skip
    return _run("GPU tests", command, seconds)


def run_benchmarks(folder: Path, seconds: float) -> dict[str, Any]:
    """The benchmarks on the device; they stop beginning new ones in time to write their file."""
    command = [
        sys.executable, "-m", "pytest", "bench", "--benchmark-only", "-q", "--bench-device", "cuda",
        "--benchmark-max-time", "0.3", "--save-results", "--results-dir", str(folder),
        "--time-budget", str(max(10.0, seconds - 60)), "-p", "no:cacheprovider",
    ]  # fmt: skip
    return _run("benchmarks", command, seconds)


def _run(name: str, command: list[str], seconds: float) -> dict[str, Any]:
    print(f"--- {name} (at most {seconds:.0f} s)", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        status = None
        process.send_signal(signal.SIGINT)  # pytest then reports and saves what it has
        try:
            output, _ = process.communicate(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    lines = output.splitlines()
    print("\n".join(lines[-120:]), flush=True)
    return {
        "exit_status": status,
        "seconds": round(time.monotonic() - started, 1),
        "output": lines[-_TAIL:],
    }


def profile_step(folder: Path, peaks: dict[str, float]) -> dict[str, Any]:
    """:mod:`bench.profile` of a training step (B = 256, D = 64), as it stands in the record."""
    print("--- profile of the training step", flush=True)
    found = profile.profile("train", 64, "cuda", _STEPS, folder)
    profile.print_report(found, peaks, "cuda")
    return found.as_record(peaks)


def main(arguments: list[str] | None = None) -> int:
    """Run it all; 0 if tests and benchmarks passed, 1 if not, 2 without a CUDA device."""
    if arguments is None:
        arguments = sys.argv[1:]
    if arguments:
        print(f"python -m bench.gpu takes no arguments, got {' '.join(arguments)}",
              file=sys.stderr)  # fmt: skip
        return 2
    if not torch.cuda.is_available():
        print(
            f"no CUDA device: torch {torch.__version__} sees none, so there is nothing to run; "
            "the CPU's benchmarks are `pytest bench/ --benchmark-only`",
            file=sys.stderr,
        )
        return 2
    started = time.monotonic()
    folder = Path(os.environ.get("OUT") or records.FOLDER)
    tests = run_tests(_TESTS)
    with tempfile.TemporaryDirectory() as scratch:
        left = _TOTAL - _PROFILE - _GRACE - (time.monotonic() - started)
        benchmarks = run_benchmarks(Path(scratch), left)
        record = records.newest("cuda", Path(scratch))
        try:
            peaks = record["peaks"] if record is not None else measure_peaks("cuda")
            profiled = profile_step(Path(scratch), peaks)
        except Exception as error:  # the rest of the file is worth having
            profiled = {"error": f"{type(error).__name__}: {error}"}
            print(profiled["error"], file=sys.stderr)
    if record is None:  # the benchmarks wrote nothing: keep what there is
        record = {
            "kind": f"{records.KIND}, incomplete", "device": "cuda", "slug": slug("cuda"),
            "date": records.now(), "command": "python -m bench.gpu", **describe("cuda"),
            "rows": [],
        }  # fmt: skip
    record.update(tests=tests, benchmarks=benchmarks, profile=profiled)
    path = records.write(record, folder)
    print(f"results written to {path}, {time.monotonic() - started:.0f} s in all")
    passed = tests["exit_status"] == 0 and benchmarks["exit_status"] == 0
    return 0 if passed and "error" not in profiled else 1


if __name__ == "__main__":
    sys.exit(main())
