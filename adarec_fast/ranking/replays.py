"""Requests on CUDA: one upload from pinned memory, one graph, one copy of its results.

A graph fixes shapes and addresses. So a request is padded to a bucket's shape where it is, on the
host as a rule, packed into one buffer there, and copied into the buffer that the graph reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Shape(NamedTuple):
    """How many users, tokens and seen items a request has room for."""

    users: int
    tokens: int
    seen: int

    @property
    def words(self) -> int:
        """Of the buffer, int64."""
        return sum(self.sections())

    def sections(self) -> tuple[int, int, int, int]:
        """Words of values, offsets, seen items and their offsets, each from a multiple of 16 bytes:
        kernels are compiled apart for pointers that are not."""
        offsets = (self.users + 2) // 2 * 2
        return (self.tokens + 1) // 2 * 2, offsets, (self.seen + 1) // 2 * 2, offsets


def buckets(users: int, tokens: int, seen: int) -> Shape:
    """Shapes that a request is padded to, each the next power of two: users, tokens, seen items.

    Users that only fill up have a history of one token each.
    """
    rows = 1 << (users - 1).bit_length()
    return Shape(
        rows,
        1 << (tokens + rows - users - 1).bit_length(),
        1 << max(seen - 1, 0).bit_length(),
    )


class Request(NamedTuple):
    """A buffer int64 ``[shape.words]`` and the parts of it: histories and seen items, jagged."""

    words: Tensor
    values: Tensor
    offsets: Tensor
    seen: Tensor
    seen_offsets: Tensor

    @classmethod
    def of(cls, words: Tensor, shape: Shape) -> Request:
        """The views of a buffer."""
        sizes = shape.tokens, shape.users + 1, shape.seen, shape.users + 1
        parts = words.split(shape.sections())
        return cls(words, *(part[:size] for part, size in zip(parts, sizes, strict=True)))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All but the buffer."""
        return self[1:]

    def fill(self, values: Tensor, offsets: Tensor, seen: Tensor, seen_offsets: Tensor) -> None:
        """Take up a smaller request; item 1 stands for everybody who is not there.

        Reads nothing on the host. Neither batch has capacity.
        """
        tokens, number = values.shape[0], seen.shape[0]
        rows, more = offsets.shape[0], self.offsets.shape[0] - offsets.shape[0]
        for target, source in ((self.values, values), (self.seen, seen)):
            target[: source.shape[0]].copy_(source)
            target[source.shape[0] :].fill_(1)
        self.offsets[:rows].copy_(offsets)
        if more:
            torch.arange(tokens + 1, tokens + 1 + more, out=self.offsets[rows:])
        self.seen_offsets[:rows].copy_(seen_offsets)
        self.seen_offsets[rows:].fill_(number)


class Pinned:
    """Pinned memory that requests are put into, and copied from while the host goes on.

    There are two buffers, so that one may be filled while the device still reads the other; it is
    waited for only where it still reads the one before.
    """

    def __init__(self) -> None:
        self._buffers = [torch.empty(0, dtype=torch.int64)] * 2
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def send(self, target: Tensor, fill: Callable[[Tensor], None]) -> None:
        """Let ``fill`` write a buffer as long as ``target``, int64, and copy it there."""
        turn, self._turn = self._turn, 1 - self._turn
        copied = self._copied[turn]
        if copied is None:
            copied = self._copied[turn] = torch.cuda.Event()
        else:
            copied.synchronize()
        if self._buffers[turn].shape[0] < target.shape[0]:
            self._buffers[turn] = torch.empty(target.shape[0], dtype=torch.int64, pin_memory=True)
        buffer = self._buffers[turn][: target.shape[0]]
        fill(buffer)
        target.copy_(buffer, non_blocking=True)
        copied.record(torch.cuda.current_stream(target.device))


def packed(tensors: tuple[Tensor, ...]) -> Tensor:
    """Tensors as the bytes of one, the widest elements first."""
    return torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors])


def unpacked(whole: Tensor, like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What :func:`packed` made of tensors like these, as views."""
    parts = whole.split([tensor.numel() * tensor.element_size() for tensor in like])
    return tuple(
        part.view(tensor.dtype).view(tensor.shape)
        for part, tensor in zip(parts, like, strict=True)
    )
