"""A model for other processes: its numbers in memory that all of them map, the rest pickled.

The memory is a file without a name, whose pages the kernel has once, however many map it. What maps
it does so privately: who writes to a page gets a copy of that page.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..config import ConfigError
from .served import ServedModel

_ALIGNMENT = 64  # bytes, of every array
_HEAD = 32  # two numbers: where the pickle begins, and how long it is


def publish(model: ServedModel) -> int:
    """Write a model into shared memory; the descriptor of it, which the caller closes.

    Raises:
        ConfigError: the system has no such memory, or the model holds what cannot be pickled, as
            a foreign encoder's lambda.
    """
    if not hasattr(os, "memfd_create"):
        raise ConfigError("workers: several need Linux, whose memory processes can share by name")
    descriptor = os.memfd_create("adarec-model")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.seek(_HEAD)
            arrays: list[tuple[int, int]] = []

            def aside(buffer: pickle.PickleBuffer) -> None:
                arrays.append(_append(file, buffer.raw()))

            content = io.BytesIO()
            _Pickler(content, file, aside).dump(model)
            whole = pickle.dumps((arrays, content.getvalue()))
            start, size = _append(file, memoryview(whole))
            file.seek(0)
            file.write(start.to_bytes(8, "little") + size.to_bytes(8, "little"))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        os.close(descriptor)
        raise ConfigError(
            f"workers: the model cannot be handed to another process: {error}; serve it with 1"
        ) from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def attach(descriptor: int) -> ServedModel:
    """The model in shared memory; the descriptor may be closed, the numbers stay where they are.

    What follows from the weights alone is computed anew, in this process' own memory.
    """
    memory = mmap.mmap(
        descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
    )
    start, size = (int.from_bytes(memory[n : n + 8], "little") for n in (0, 8))
    arrays, content = pickle.loads(memory[start : start + size])
    view = memoryview(memory)
    buffers = (view[first : first + count] for first, count in arrays)
    found: ServedModel = _Unpickler(io.BytesIO(content), memory, buffers).load()
    return found


def _append(file: BinaryIO, content: memoryview) -> tuple[int, int]:
    """Where the content is now, and its bytes."""
    place = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
    file.seek(place)
    file.write(content)
    return place, content.nbytes


class _Pickler(pickle.Pickler):
    """Tensors, and arrays of NumPy by its own way, go into the file."""

    def __init__(
        self, target: io.BytesIO, file: BinaryIO, aside: Callable[[pickle.PickleBuffer], None]
    ) -> None:
        super().__init__(target, protocol=5, buffer_callback=aside)
        self._file = file

    def persistent_id(self, obj: Any) -> Any:
        """Instead of a plain tensor: its dtype, its shape and its place."""
        if type(obj) is not Tensor or obj.requires_grad or not obj.numel() or obj.is_sparse:
            return None
        plain = obj.detach().contiguous().view(-1).view(torch.uint8)
        place, size = _append(self._file, plain.numpy().data)
        return str(obj.dtype), tuple(obj.shape), place, size


class _Unpickler(pickle.Unpickler):
    def __init__(self, source: io.BytesIO, memory: mmap.mmap, buffers: Any) -> None:
        super().__init__(source, buffers=buffers)
        self._memory = memory

    def persistent_load(self, pid: Any) -> Tensor:
        """The tensor at its place in the memory."""
        dtype, shape, place, size = pid
        flat = torch.frombuffer(self._memory, dtype=torch.uint8, offset=place, count=size)
        return flat.view(getattr(torch, dtype.removeprefix("torch."))).view(shape)
