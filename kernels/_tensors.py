"""Many tensors in one launch: a program has a part of one, and finds which by its number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import triton
import triton.language as tl
from torch import Tensor

MOST = 80  # tensors of a launch, whose addresses are its arguments
CHUNK, BLOCK = 8192, 2048  # elements of a program, and of a step of it


@triton.jit
def part_of(program, table, CHUNK: tl.constexpr):
    """The first element of a program's part, int64, and the number of elements of its tensor.

    ``table[i]`` is the first program and the number of elements of tensor i.
    """
    first = tl.full((), table[0][0], tl.int32)
    size = tl.full((), table[0][1], tl.int64)
    for entry in tl.static_range(1, len(table)):
        later = program >= table[entry][0]
        first = tl.where(later, table[entry][0], first)
        size = tl.where(later, table[entry][1], size)
    return (program - first).to(tl.int64) * CHUNK, size


@triton.jit
def tensor_of(program, tensors, table):
    """The address of a program's tensor, one of ``tensors``."""
    found = tensors[0]
    for entry in tl.static_range(1, len(table)):
        found = tl.where(program >= table[entry][0], tensors[entry], found)
    return found


def groups(tensors: Sequence[Tensor]) -> Iterator[tuple[slice, tuple[tuple[int, int], ...], int]]:
    """For each launch: which of the tensors, their table, and how many programs."""
    for start in range(0, len(tensors), MOST):
        part, table, programs = slice(start, start + MOST), [], 0
        for tensor in tensors[part]:
            table.append((programs, tensor.numel()))
            programs += triton.cdiv(tensor.numel(), CHUNK)
        yield part, tuple(table), programs
