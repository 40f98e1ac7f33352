"""What is launched on a pretended device: captured graphs, how many kernels, what they ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pretend_memory import CudaError, Memory, OnCuda, the_device
from torch import Tensor
from torch.utils._pytree import tree_map_only

# Kernels take strides for these, and whole rows for all others.
_STRIDED = ("q_ptr", "kv_ptr", "d_q_ptr", "d_kv_ptr")


class Noted(NamedTuple):
    """A captured launch: a function of CPU tensors, and where its fresh results go."""

    call: Callable[[], Any]
    results: tuple[Tensor, ...]
    reads: tuple[Memory, ...]
    writes: tuple[Memory, ...]
    name: str = ""
    launches: int = 1  # on a GPU: see launches_of


class Graph:
    """Stands for ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self.notes: list[Noted] = []
        self.pool: list[Graph] = []
        self.replays = 0

    @property
    def launches(self) -> dict[str, int]:
        """How many kernels a GPU would be given by a replay, by name."""
        found: dict[str, int] = {}
        for note in self.notes:
            if note.launches:
                found[note.name] = found.get(note.name, 0) + note.launches
        return found

    def replay(self) -> None:
        device = the_device()
        if device.capturing is not None:
            raise CudaError("a graph is replayed while another is captured")
        self.replays += 1
        for graph in self.pool:
            for note in graph.notes:
                for result in note.results:
                    poison(result)
        for note in self.notes:
            device.order(note.reads, note.writes)
            found = note.call()
            for result, now in zip(note.results, tensors(found), strict=True):
                result.copy_(now)


# Kernels that an ATen op starts on CUDA, where it is not one: memory that is only allocated, and
# ops of several passes. Of lists of tensors (``_foreach_``, fused Adam) one kernel takes as many as
# its argument holds: 110 of one list, 36 of four (ATen/native/cuda/MultiTensorApply.cuh).
_PASSES = {
    "empty": 0, "new_empty": 0, "empty_like": 0, "empty_strided": 0, "new_empty_strided": 0,
    "sort": 4, "topk": 2, "cumsum": 2, "embedding_dense_backward": 8, "_foreach_norm": 2,
}  # fmt: skip
_LISTS = {"_foreach": 110, "_fused_adam_": 36}


def launches_of(func: Any, args: tuple[Any, ...]) -> int:
    """How many kernels an ATen op starts on CUDA."""
    name = func._schema.name.removeprefix("aten::")
    passes = _PASSES.get(name, 1)
    for prefix, most in _LISTS.items():
        if name.startswith(prefix):
            return passes * -(-len(args[0]) // most)
    return passes


def poison(tensor: Tensor) -> None:
    tensor.fill_(float("nan") if tensor.is_floating_point() else 0)


def tensors(found: Any) -> list[Tensor]:
    """Those in lists, tuples and dictionaries, in order."""
    made: list[Tensor] = []
    _gather(found, made)
    return made


def _gather(found: Any, made: list[Tensor]) -> None:
    if isinstance(found, Tensor):
        made.append(found)
    elif isinstance(found, (list, tuple, dict)):
        for value in found.values() if isinstance(found, dict) else found:
            _gather(value, made)


def mapped(kind: type[Tensor], function: Callable[[Any], Any], found: Any) -> Any:
    """``tree_map_only``, which takes four times as long for the arguments of an op."""
    if isinstance(found, kind):
        return function(found)
    if type(found) is list or type(found) is tuple:
        return type(found)([mapped(kind, function, value) for value in found])
    if type(found) is dict:
        return {key: mapped(kind, function, value) for key, value in found.items()}
    # A named tuple, or what else torch makes of them.
    whole = isinstance(found, (list, tuple, dict))
    return tree_map_only(kind, function, found) if whole else found


def check_launch(kernel: Any, grid: Any, given: dict[str, Any]) -> None:
    """What a launch on CUDA asks for, and what our kernels ask of their tensors."""
    name = kernel.__name__
    bounds = (2**31, 65536, 65536)
    if not 1 <= len(grid) <= 3 or any(
        type(n) is not int or not 0 < n < most for n, most in zip(grid, bounds, strict=False)
    ):
        raise CudaError(f"{name}: the grid {grid} is out of range")
    flat = [(k, v) for k, value in given.items()
            for v in (value if isinstance(value, tuple) else (value,))]
    for key, value in flat:
        if not isinstance(value, Tensor):
            if type(value) is int and not -(2**63) <= value < 2**63:
                raise CudaError(f"{name}: {key}={value} has more than 64 bits")
            continue
        if not isinstance(value, OnCuda):
            raise CudaError(f"{name}: {key} is on the CPU")
        if key == "seed_ptr" and (value.shape != (3,) or value.dtype != torch.int64):
            raise CudaError(f"{name}: a seed of {list(value.shape)} {value.dtype}")
        if key in _STRIDED and value.dim() == 3:
            row = value.stride(-2)
            whole = value.stride(-1) == 1 and value.stride(0) == row * value.shape[1]
        else:
            whole = value.is_contiguous()
        if not whole and value.numel():
            raise CudaError(f"{name}: {key} is {list(value.shape)} with {value.stride()}")
    warps, stages = given.get("num_warps", 4), given.get("num_stages", 1)
    if warps not in (1, 2, 4, 8, 16, 32) or not 1 <= stages <= 8:
        raise CudaError(f"{name}: {warps} warps, {stages} stages")
    missing = [n for n in kernel.arg_names if n not in given]
    if missing:
        raise CudaError(f"{name}: {missing} are not given")
