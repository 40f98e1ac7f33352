"""A run's kernels, compiled in parallel before its first step: seconds with a bar, not silence.

Left to the first step, they are compiled one after the other as they are met: a minute or two in
which nothing moves.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..config import ModelConfig, Supervision, TrainConfig
from ..models.registry import described
from ..ops._library import choose
from ..ops.extension import cache_dir, locked
from .errors import CompilationFailed
from .exercise import exercise

if TYPE_CHECKING:
    from ..kernels._prewarm import Collected

# Called with the kernels that are ready and how many there are.
Progress = Callable[[int, int], object]
_CPU = torch.device("cpu")
_COUNTED_ITEMS = 1 << 17  # a larger catalogue has the kernels of this one, and needs no such table


def collect_run(
    model_config: ModelConfig,
    train_config: TrainConfig,
    architecture: int,
    supervisions: Sequence[Supervision] | None = None,
    *,
    multiprocessors: int | None = None,
) -> Collected:
    """The launches of a run (:func:`.exercise`) on a device of an architecture, 86 for sm_86.

    How work is shared out depends on the device's ``multiprocessors``; None: those of the
    architecture's common part.
    """
    from ..kernels._prewarm import collecting

    small = model_config.replace(
        num_items=min(model_config.num_items, _COUNTED_ITEMS), backend="auto"
    )
    with collecting(architecture, multiprocessors) as collected:
        exercise(small, train_config, _CPU, supervisions=supervisions)
    return collected


def compile_run(collected: Collected, progress: Progress, *, elsewhere: bool = False) -> None:
    """Compile what was collected.

    Raises:
        CompilationFailed: what did not compile would not run either.
    """
    from ..kernels._prewarm import Compiled, compile_all

    total, ready = len(collected.launches) + 1, 0

    def done(_: Compiled) -> None:
        nonlocal ready
        ready += 1
        progress(ready, total)

    progress(0, total)
    results = compile_all(collected, elsewhere=elsewhere, done=done)
    failed = [result for result in results if result.error is not None]
    if failed:
        raise CompilationFailed(
            f"{len(failed)} of {total} kernels do not compile, {failed[0].kernel} the first: "
            f"{failed[0].error}"
        )


def prewarm(
    model_config: ModelConfig, train_config: TrainConfig, device: torch.device, progress: Progress
) -> bool:
    """Compile a run's kernels for a CUDA device, unless that was done before.

    Args:
        model_config, train_config: the run's.
        device: where it trains.
        progress: told how many are ready.

    Returns:
        Whether anything was to be done.

    Raises:
        CompilationFailed: see :func:`compile_run`.
    """
    if device.type != "cuda" or os.environ.get("ADAREC_FAST_AUTOTUNE") == "1":
        return False  # measured tiles are others
    if choose("encoder_layer", model_config.backend, "cuda") != "triton":
        return False
    card = torch.cuda.get_device_properties(device)
    architecture, multiprocessors = 10 * card.major + card.minor, card.multi_processor_count
    stamp = _stamp(model_config, train_config, architecture, multiprocessors)
    if stamp.exists():
        return False
    stamp.parent.mkdir(parents=True, exist_ok=True)
    with locked(stamp.with_suffix(".lock")):
        if stamp.exists():  # another process compiled them while this one waited
            return False
        collected = collect_run(
            model_config, train_config, architecture, multiprocessors=multiprocessors
        )
        compile_run(collected, progress)
        stamp.touch()
    return True


def _stamp(
    model_config: ModelConfig, train_config: TrainConfig, architecture: int, multiprocessors: int
) -> Path:
    """A file that is there once the kernels of such a run are in triton's cache."""
    import triton

    from ..kernels._autotune import source_hash
    from ..kernels._prewarm import cache_folder

    told = json.dumps([
        described(model_config), train_config.to_dict(), architecture, multiprocessors,
        source_hash(), triton.__version__, str(cache_folder()), torch.__version__,
    ])  # fmt: skip
    return cache_dir() / f"kernels-{hashlib.sha256(told.encode()).hexdigest()[:20]}.ready"
