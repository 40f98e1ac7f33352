"""What lies on a pretended device: memory, tensors in it, and the streams that use it."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from pretend_cuda import PretendCuda

ROOT = Path(__file__).resolve().parents[2]


class CudaError(RuntimeError):
    """What a GPU would have refused, or done wrong without a word."""


class Memory:
    """Which streams wrote and read a piece of memory last, in ticks of theirs."""

    def __init__(self) -> None:
        self.written: dict[Stream, int] = {}
        self.read: dict[Stream, int] = {}


class OnCuda(Tensor):
    """A tensor that says it is on ``cuda:0``; ``inner`` has its values."""

    inner: Tensor
    memory: Memory

    @staticmethod
    def __new__(cls, inner: Tensor, memory: Memory) -> OnCuda:
        self = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=the_device().place,
        )  # fmt: skip
        self.inner, self.memory = inner, memory
        return self

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return the_device().run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnCuda({self.inner!r})"

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> OnCuda:
        made = self.detach().clone().requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            made._is_param = True
        memo[id(self)] = made
        return made

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


class Event:
    """A point of a stream's clock."""

    def __init__(self, **_: Any) -> None:
        self.clock: dict[Stream, int] = {}

    def record(self, stream: Stream | None = None) -> None:
        self.clock = dict((stream or the_device().stream).clock)

    def synchronize(self) -> None:
        merge(the_device().host, self.clock)

    def query(self) -> bool:
        return True


class Stream:
    """A stream with its clock: the ticks of each stream that have happened before its next."""

    def __init__(self, device: Any = None, **_: Any) -> None:
        self.index = the_device().index_of(device)
        self.clock: dict[Stream, int] = {self: 0}

    def wait_stream(self, other: Stream) -> None:
        merge(self.clock, other.clock)

    def synchronize(self) -> None:
        merge(the_device().host, self.clock)


def merge(clock: dict[Stream, int], other: dict[Stream, int]) -> None:
    for stream, tick in other.items():
        clock[stream] = max(clock.get(stream, 0), tick)


def order(
    stream: Stream, host: dict[Stream, int], reads: tuple[Memory, ...], writes: tuple[Memory, ...]
) -> None:
    """A tick of a stream, after what the host has waited for.

    Raises:
        CudaError: another stream used the memory, and this one has not waited for it.
    """
    merge(stream.clock, host)
    clock = stream.clock
    clock[stream] += 1
    for users in (*(m.written for m in (*reads, *writes)), *(m.read for m in writes)):
        late = [s for s, tick in users.items() if clock.get(s, 0) < tick]
        if late:
            raise CudaError(f"memory is used on two streams, without waiting: {sites()}")
    for memory in reads:
        memory.read[stream] = clock[stream]
    for memory in writes:
        memory.written, memory.read = {stream: clock[stream]}, {}


def sites() -> tuple[str, ...]:
    """Functions of the package on the stack, innermost first, as ``file:function``."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        stem = _of_the_package(frame.f_code.co_filename)
        if stem is not None:
            name = f"{stem}:{frame.f_code.co_qualname}"
            if name not in found:
                found.append(name)
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(found)


@cache
def _of_the_package(file: str) -> str | None:
    """The name of a file of the package or of its benchmarks, without its suffix."""
    path = Path(file)
    ours = path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "tests")
    return path.stem if ours else None


_current: PretendCuda | None = None


def enter(device: PretendCuda) -> None:
    """Make a device the one that :func:`the_device` finds."""
    global _current
    _current = device


def the_device() -> PretendCuda:
    """The one that was entered last."""
    assert _current is not None, "no device is pretended"
    return _current
