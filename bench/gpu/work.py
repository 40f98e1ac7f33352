"""What the phases measure: ops and models at a workload, in the precisions that there are."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from adarec_fast import ADARec, TrainConfig
from adarec_fast.config import Supervision
from adarec_fast.ops import OPS
from adarec_fast.ops._library import collecting, unavailable
from adarec_fast.training.exercise import exercise

from ..op_case import OpCase
from ..workloads import MAX_DEPTH, NUM_ITEMS

PRECISIONS = ("ieee", "tf32", "bf16")
# What a step is made of, the costly first: where time runs out, what is left matters least.
_ORDER = (
    "encoder_layer", "hda_trajectory", "mlp_expert", "moe_aggregate", "linear_cross_entropy",
    "depth_controller", "level_infonce", "score_topk", "memory_topk", "level_pool", "dropout",
    "local_path",
)  # fmt: skip


@contextlib.contextmanager
def computing(precision: str, device: str) -> Iterator[None]:
    """Products of float32 tensors as IEEE or TF32, or autocast to bfloat16; plain PyTorch's too.

    For ops; a model knows its own precision.
    """
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        switch.fp32_precision = before


def op_cases() -> list[type[OpCase]]:
    """Every op as it is benchmarked, the fused trajectory (opt-in) last."""
    names = [*_ORDER, *(name for name in OPS if name not in _ORDER)]
    names.sort(key=lambda name: name == "fused_trajectory")
    found: list[type[OpCase]] = []
    for name in names:
        if importlib.util.find_spec(f"bench.test_bench_{name}") is None:
            continue  # a few numbers a user: it is timed and checked as part of a step
        cases = importlib.import_module(f"bench.test_bench_{name}").CASES
        found += [case for case in cases if issubclass(case, OpCase)]
    return found


def backends(name: str, device: str) -> list[str]:
    """Ours on a GPU that can run: kernels, not plain PyTorch."""
    wanted = [b for b in OPS[name].cuda if b in ("cuda", "triton")]
    if collecting():
        return [b for b in wanted if b == "triton"]
    return [b for b in wanted if unavailable(name, b, device) is None]


def model(size: int, supervision: str, precision: str, device: str) -> ADARec:
    """ADARec as ``bench.model_case`` has it: T = 8, two layers, dropout 0.5, Beauty's items."""
    return ADARec(
        num_items=NUM_ITEMS, hidden_size=size, max_depth=MAX_DEPTH, supervision=supervision,
        precision=precision,
    ).to(device)  # fmt: skip


def exercised(
    size: int, precision: str, device: str, *, batches: Sequence[int] = (256,),
    supervisions: Sequence[Supervision] = ("prefix",), **options: Any,
) -> None:  # fmt: skip
    """Launch what training and serving :func:`model` do, at these numbers of users.

    How levels and the catalogue are shared out over programs depends on them.
    """
    config = model(size, "prefix", precision, device).config.replace(**options)
    for users in batches:
        exercise(
            config, TrainConfig(), torch.device(device), users=users, supervisions=supervisions
        )


def label(case: OpCase | type[OpCase]) -> str:
    """``encoder_layer (fine expert)``."""
    return f"{case.name} ({case.form})" if case.form else case.name


def attempt(function: Callable[..., object], *arguments: Any) -> str | None:
    """The error of one measurement, in one line, so that the next one is made."""
    try:
        function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:500]
    return None
