"""A range around every op that runs, for profilers; nothing is there when nobody profiles.

All ops meet in ``adarec_fast.ops._library.implementation``, which hands them a backend's forward
and backward. :func:`marked` puts another function into its place, whose results open a range
first: a ``record_function`` for torch's profiler and, on CUDA, an NVTX range for Nsight. The
reference backend is inlined and has no ranges.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from adarec_fast.ops import _library

# Names are free of the signs that Nsight's filters give a meaning: / , [ ] * + @ $ and |.
EQUATIONS = {
    "dropout": "backbone",
    "embedding": "backbone",
    "objective": "Eq 12",
    "epoch_statistics": "log",
    "gradient_norm": "Adam",
    "adam": "Adam",
    "encoder_layer": "backbone",
    "local_path": "backbone",
    "fine expert": "Eq 8",
    "length_bias": "Eq 1",
    "depth_controller": "Eq 1-2",
    "choose_depth": "Eq 3",
    "hda_trajectory": "Eq 4-5",
    "level_biases": "Eq 5-7",
    "mlp_expert": "Eq 9",
    "mlp_expert_pooled": "Eq 6-9",
    "level_pool": "Eq 7",
    "moe_aggregate": "Eq 7-11",
    "fused_trajectory": "Eq 4-11",
    "level_infonce": "Eq 6",
    "linear_cross_entropy": "Eq 13",
    "score_topk": "ranking",
    "memory_topk": "ranking",
}
DIRECTIONS = {"fwd": "forward", "bwd": "backward", "keep": "forward", "resume": "backward"}


def label(name: str, direction: str) -> str:
    """A range's name, e.g. ``Eq 4-5 hda_trajectory forward``."""
    return f"{EQUATIONS[name]} {name} {direction}"


@dataclass
class Marks:
    """What passed the ranges.

    Attributes:
        found: range name to (op or use of an op, direction, backend).
        depths: the depths ``[B]`` of every trajectory, in order.
    """

    found: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    depths: list[Tensor] = field(default_factory=list)


@contextlib.contextmanager
def marked() -> Iterator[Marks]:
    """While it holds, every op runs inside its range."""
    marks = Marks()
    original = _library.implementation

    @functools.cache
    def implementation(name: str, backend: str) -> _library.Implementation:
        plain = original(name, backend)
        return _library.Implementation(*(
            run and _ranged(run, name, suffix, backend, marks)
            for run, suffix in zip(plain, plain._fields, strict=True)
        ))

    with mock.patch.object(_library, "implementation", implementation):
        yield marks


def _ranged(
    run: Callable[..., Any], name: str, suffix: str, backend: str, marks: Marks
) -> Callable[..., Any]:
    # Behind the gradient of a layer's single output, and what was kept.
    inputs = {"fwd": 0, "keep": 0, "bwd": 1, "resume": 2}[suffix]

    def within(*arguments: Any) -> Any:
        use = name
        if name == "encoder_layer" and arguments[inputs + 2] is not None:  # it has a depth
            use = "fine expert"
        if name == "hda_trajectory" and suffix in ("fwd", "keep"):
            marks.depths.append(arguments[2])
        title = label(use, DIRECTIONS[suffix])
        marks.found[title] = (use, DIRECTIONS[suffix], backend)
        on_cuda = any(isinstance(a, Tensor) and a.is_cuda for a in arguments)
        nvtx = torch.cuda.nvtx.range(title) if on_cuda else contextlib.nullcontext()
        with torch.profiler.record_function(title), nvtx:
            return run(*arguments)

    return within
