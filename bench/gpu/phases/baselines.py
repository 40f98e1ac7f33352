"""The benchmarks with their baselines on the card, an op at a time.

Each run of pytest writes a record of its own, so that a time that is over costs one op.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from adarec_fast.data import Batch

from ...model_case import OURS, ModelCase
from ...test_bench_epoch import Epoch
from ...test_bench_step import TrainingStep
from ...workloads import WORKLOADS
from ..phase import Results
from ..work import exercised

# A step and the ops that have a target first.
_RUNS = (
    ("step", "train"), ("moe_aggregate", "train,large"), ("hda_trajectory", "large"),
    ("recommend", None), ("encoder_layer", "train"), ("linear_cross_entropy", "train"),
    ("depth_controller", "train"), ("mlp_expert", "train"), ("level_infonce", "train"),
    ("score_topk", None), ("epoch", None),
)  # fmt: skip
_SIZE = 64  # the benchmarks' own default


def run(results: Results) -> None:
    """Rows of :mod:`bench.cell`, as ``pytest bench/ --bench-device cuda`` has them."""
    for op, workloads in _RUNS:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable, "-m", "pytest", "bench", "--benchmark-only", "-q", "--op", op,
                "--bench-device", "cuda", "--hidden-size", str(_SIZE), "--benchmark-max-time",
                "0.3", "--save-results", "--results-dir", folder, "-p", "no:cacheprovider",
                "--tb=line", "--time-budget", f"{max(results.left - 20, 5):.0f}",
            ]  # fmt: skip
            if workloads:
                command += ["--workload", workloads]
            if op == "epoch":
                command += ["-k", "not Peers and not beside"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            results.say("\n".join(done.stdout.splitlines()[-12:]))
            written = list(Path(folder).glob("*.json"))
            if done.returncode or not written:
                results.add("failed", {"op": op, "output": done.stdout.splitlines()[-25:]})
            for path in written:
                for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
                    results.add("rows", row)
        failed = [entry["op"] for entry in results.found.get("failed", [])]
        results.put(summary=f"{len(results.found.get('rows', []))} rows; failed: "
                            f"{', '.join(failed) or 'none'}")  # fmt: skip


def kernels(device: str) -> None:
    """Every launch of our own variants in :func:`run`, by what prepares them there.

    Checks are made where they launch anything: of a step and of an epoch, whose gradients they
    compare without dropout. What ours is compared with takes a CPU minutes.
    """
    for op, workloads in _RUNS:
        for kind in importlib.import_module(f"bench.test_bench_{op}").CASES:
            ours = [name for name in kind.variants("cuda") if name in ("triton", OURS)]
            if "beside" in kind.form or not ours:
                continue
            for workload in workloads.split(",") if workloads else kind.workloads:
                if kind.serving_only if WORKLOADS[workload].training else kind.training_only:
                    continue
                for direction in kind.directions(workload):
                    _prepare(kind(workload, _SIZE, direction, device), ours[0])
    exercised(_SIZE, "ieee", device)  # the step that is captured there


def _prepare(case: Any, variant: str) -> None:
    turns = 1
    if isinstance(case, Epoch):
        case.batches = _of_each_kind(case.batches)
        turns = len(case.batches)
    elif isinstance(case, ModelCase):
        turns = len(case.data)
    with contextlib.ExitStack() as stack:
        if not isinstance(case, (Epoch, TrainingStep)):
            stack.enter_context(mock.patch.object(type(case), "_check", return_value=None))
        prepared = case.prepare(variant)
    for _ in range(turns):
        prepared.run()


def _of_each_kind(batches: list[tuple[Batch, int]]) -> list[tuple[Batch, int]]:
    """A batch of each kind that the compiler tells apart: by its users, and by tokens mod 16."""
    found: dict[tuple[int, bool], tuple[Batch, int]] = {}
    for batch, longest in batches:
        key = batch.offsets.shape[0], batch.item_ids.shape[0] % 16 == 0
        found.setdefault(key, (batch, longest))
    return list(found.values())
