"""How a launcher starts its kernels: precision, architecture, and one gate that all pass through.

The gate can record instead of run: that is how the resources of exactly the default configurations
are compiled and counted on a machine without a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..precision import of_float32
from ._heuristics import AMD

# Multiprocessors of the common part of an architecture: A100, RTX 3090, RTX 4090, H200, MI300X.
MULTIPROCESSORS = {80: 108, 86: 82, 89: 128, 90: 132, 94: 304}
LARGEST_SIZE = 256
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Launch(NamedTuple):
    """A kernel with its grid, its arguments by name and its compile options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]


class Operands(NamedTuple):
    """What the tensor cores are fed: dtype, ``product``'s PRECISION, and a table key."""

    dtype: Any
    torch_dtype: torch.dtype
    precision: str
    kind: str


_recording: Callable[[Launch], object] | None = None
_architecture: int | None = None
_multiprocessors = 0


@contextmanager
def recording(
    architecture: int, multiprocessors: int | None = None,
    note: Callable[[Launch], object] | None = None,
) -> Iterator[list[Launch]]:  # fmt: skip
    """Collect launches, as they would be on ``architecture`` (86 for sm_86), without running.

    ``multiprocessors`` are those of the device; None: of the architecture's common part. ``note``
    is called with each launch, which is not kept then: its tensors may be gigabytes.
    """
    global _recording, _architecture, _multiprocessors
    launches: list[Launch] = []
    _recording, _architecture = note or launches.append, architecture
    _multiprocessors = multiprocessors or MULTIPROCESSORS[architecture]
    try:
        yield launches
    finally:
        _recording, _architecture = None, None


def architecture(device: torch.device) -> int:
    """Compute capability as an int, 86 for sm_86; 86 on a CPU, where the interpreter runs."""
    if _architecture is not None:
        return _architecture
    if device.type != "cuda":
        return 86
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def multiprocessors(device: torch.device) -> int:
    """How many there are; the interpreter takes one block after another and is given few."""
    if _architecture is not None:
        return _multiprocessors
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], options: dict[str, int]
) -> None:
    """Run a kernel on its tensors' device, or record it; nothing to do for an empty grid."""
    if min(grid) == 0:
        return
    if _recording is not None:
        _recording(Launch(kernel, grid, arguments, options))
        return
    values = (v[0] if isinstance(v, tuple) else v for v in arguments.values())
    first = next(value for value in values if isinstance(value, Tensor))
    # By place: Triton takes no argument of the name "stream" as a keyword.
    ordered = [arguments[name] for name in kernel.arg_names]
    with torch.cuda.device_of(first):
        kernel[grid](*ordered, **options, enable_fp_fusion=True)


def operands(x: Tensor) -> Operands:
    """Precision of the matrix products: autocast's dtype, x's own, or that of float32.

    Raises:
        ValueError: a dtype that the kernels do not have.
    """
    dtype = x.dtype
    kind = x.device.type
    if dtype == torch.float32 and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    if dtype in (torch.bfloat16, torch.float16):
        kernel_dtype = tl.bfloat16 if dtype == torch.bfloat16 else tl.float16
        return Operands(kernel_dtype, dtype, "upcast" if INTERPRETED else "ieee", "half")
    if dtype == torch.float32:
        return float32_operands(x.device)
    raise ValueError(
        f"the triton backend computes in float32, bfloat16 or float16, not {dtype}; "
        f"use backend='packed'"
    )


def float32_operands(device: torch.device) -> Operands:
    """Float32 as :mod:`adarec_fast.precision` has it, also under autocast."""
    kind = of_float32()
    number = architecture(device)
    # What rounds in one instruction; see ``_product``.
    precision = "tf32_rn" if kind == "tf32" and number >= 90 and number not in AMD else kind
    return Operands(tl.float32, torch.float32, precision, kind)


def padded_size(size: int, name: str = "D") -> int:
    """The power of two, at least 16, that a tile of ``size`` columns takes.

    Raises:
        ValueError: more than the kernels hold on chip.
    """
    if not 1 <= size <= LARGEST_SIZE:
        raise ValueError(
            f"{name}={size}: the triton backend takes 1 to {LARGEST_SIZE}; use backend='packed'"
        )
    return max(16, triton.next_power_of_2(size))


def pairs_a_program(tiles: int, levels: int, device: torch.device, extra: float = 0.0) -> int:
    """How many pairs of levels a program of a tile takes, so that the launch ends soonest.

    All of them where the tiles alone fill the device; where they do not, levels side by side.
    Programs are taken to run one a multiprocessor, in rounds, and each to begin with what takes a
    quarter of the time of a pair; of equal choices the one with the fewest programs is made.

    Args:
        tiles: of rows.
        levels: the most that a row may have.
        device: where they run.
        extra: what it costs to split a tile, in pairs: another launch.
    """
    pairs = max(1, triton.cdiv(levels, 2))

    def time(each: int) -> float:
        groups = triton.cdiv(pairs, each)
        rounds = triton.cdiv(tiles * groups, multiprocessors(device))
        return rounds * (0.25 + each) + (extra if groups > 1 else 0.0)

    return min(range(pairs, 0, -1), key=time)


def search_steps(batch: int) -> int:
    """Steps that a binary search over ``batch`` sequences takes."""
    return batch.bit_length()
