"""A CUDA device that is not there: what the host does on one, checked on a CPU build of torch.

Tensors "on cuda" are :class:`OnCuda`, each around a CPU tensor that holds its values. A dispatch
mode sees every ATen op below autograd, computes it on those, and behaves as a GPU's host would:

* an op that mixes devices fails, but for what CUDA takes too (0-dim operands, copies);
* whatever would make the host wait (``item``, ``nonzero``, a mask as an index, a copy from or to
  the host) is noted with the function that asked, and fails while a graph is captured;
* nobody waits for a copy from pinned memory: writing that before the device has read it fails;
* capturing changes nothing that is there: it notes what is launched. ``replay`` runs the notes on
  the tensors they were taken with, after poisoning what all graphs of the pool had made. What
  Python did beside is not repeated, just as on a GPU;
* each piece of memory knows the streams that used it: unordered uses of it on two streams fail.

Triton's kernels are bound as for a launch on an architecture (everything up to the compiler runs,
and ``PretendCuda.launches`` has the signature, constants and attributes), or interpreted, or
packed PyTorch stands for them and gives values; see ``pretend_torch.pretend_cuda``.

It cannot show: kernels' results on a GPU, memory that the allocator gives to another stream, what
cuBLAS and ATen's CUDA kernels do inside (their own synchronisation, their limits while capturing),
timing, and the CUDA extension of ``csrc``.

A process that loads the device guard does nothing else: the guard cannot be unregistered.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

ROOT = Path(__file__).resolve().parent.parent
_POINTWISE, _READS, _SHAPES = (
    torch.Tag.pointwise, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
)  # fmt: skip
_aten = torch.ops.aten
_INDEXING = (
    _aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default,
    _aten._index_put_impl_.default,
)  # fmt: skip
# Kernels take strides for these, and whole rows for all others.
_STRIDED = ("q_ptr", "kv_ptr", "d_q_ptr", "d_kv_ptr")


class CudaError(RuntimeError):
    """What a GPU would have refused, or done wrong without a word."""


class Read(NamedTuple):
    """The host waited: what for, and the functions of the package that asked, innermost first."""

    what: str
    sites: tuple[str, ...]


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


class _Noted(NamedTuple):
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
        self.notes: list[_Noted] = []
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
                    _poison(result)
        for note in self.notes:
            device.order(note.reads, note.writes)
            found = note.call()
            for result, now in zip(note.results, _tensors(found), strict=True):
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


def _poison(tensor: Tensor) -> None:
    tensor.fill_(float("nan") if tensor.is_floating_point() else 0)


def _tensors(found: Any) -> list[Tensor]:
    return [t for t in tree_iter(found) if isinstance(t, Tensor)]


class PretendCuda(TorchDispatchMode):
    """The device; entering it makes ``torch.cuda`` speak of it.

    Attributes:
        reads: where the host waited.
        launches: kernels that were bound (not those interpreted).
        graphs: those captured, in order.
    """

    def __init__(self, architecture: int, index: int, current: int) -> None:
        global _current
        super().__init__()
        _current = self
        self.architecture, self.index, self.current = architecture, index, current
        self.place = torch.device("cuda", index)
        self.streams = {n: Stream(torch.device("cuda", n)) for n in range(2)}
        self.default = dict(self.streams)
        self.host: dict[Stream, int] = {}
        self.capturing: Graph | None = None
        # Autocast contexts that are in force: below a mode torch itself says that there are none.
        self.autocasts: list[Any] = []
        self.capture_stream: Stream | None = None
        self.reads: list[Read] = []
        self.launches: list[Any] = []
        self.graphs: list[Graph] = []
        self.uploads: list[Read] = []
        self.pinned: dict[int, tuple[Any, Memory]] = {}
        self.poison = True
        self._noting = ("", 1)  # name and launches of what is noted next

    @property
    def stream(self) -> Stream:
        """The current stream of the device that has the tensors."""
        return self.streams[self.index]

    def index_of(self, device: Any) -> int:
        """The number of a CUDA device; the current one where it has none."""
        if device is None or isinstance(device, int):
            return self.current if device is None else device
        index = torch.device(device).index
        return self.current if index is None else index

    # ------------------------------------------------------------------ ops

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute an op and keep the books."""
        if func.namespace == "adarec_fast":
            return self._of_the_package(func, args)
        name = func._schema.name.removeprefix("aten::")
        decomposes = func._can_decompose()
        if decomposes and name.startswith("_foreach_"):  # one on a GPU, a tensor at a time here
            return self._as_one(name, launches_of(func, args), func, args, kwargs)
        if decomposes:  # `to`, `contiguous`, `matmul`: views or copies, as it turns out
            with self:
                return func.decompose(*args, **kwargs)
        if kwargs.get("pin_memory"):
            made = func(*args, **{**kwargs, "pin_memory": False})
            storage = made.untyped_storage()
            self.pinned[storage.data_ptr()] = storage, Memory()
            return made
        given = _tensors((args, kwargs))
        ours = [t for t in given if isinstance(t, OnCuda)]
        asked = kwargs.get("device")
        asked = None if asked is None else torch.device(asked)
        copies = func in (_aten._to_copy.default, _aten.copy_.default)
        there = bool(ours) if asked is None else asked.type == "cuda"
        if func is _aten.copy_.default:
            there = isinstance(args[0], OnCuda)
        if not there and not ours:
            self._check_pinned(func, args)
            return func(*args, **kwargs)
        if asked is not None and asked.type == "cuda" and self.index_of(asked) != self.index:
            raise CudaError(f"{func} on cuda:{self.index_of(asked)}, and not on {self.place}")
        others = [t for t in given if not isinstance(t, OnCuda)]
        sent = self._sent(func, args, kwargs) if copies and there else None
        if sent is not None:
            if self.capturing is not None:
                raise CudaError(f"{func} would copy at every replay what is pinned: {_sites()}")
            others = []
        self._check_devices(func, ours, others, copies, there)
        self._check_reads(func, args, kwargs)
        if asked is not None and asked.type == "cuda":
            kwargs = {**kwargs, "device": torch.device("cpu")}
        inner_args, inner_kwargs = tree_map_only(OnCuda, lambda t: t.inner, (args, kwargs))
        self._noting = (name, launches_of(func, args))
        extra = () if sent is None else (sent,)
        return self._compute(func, (args, kwargs), inner_args, inner_kwargs, there, extra)

    def _pinned_memory(self, tensor: Any) -> Memory | None:
        if not isinstance(tensor, Tensor) or isinstance(tensor, OnCuda):
            return None
        found = self.pinned.get(tensor.untyped_storage().data_ptr())
        return None if found is None else found[1]

    def _sent(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Memory | None:
        """Of a copy to the device that nobody waits for, the pinned memory it reads."""
        at = 1 if func is _aten.copy_.default else 0
        asked = args[2] if func is _aten.copy_.default and len(args) > 2 else False
        return self._pinned_memory(args[at]) if kwargs.get("non_blocking", asked) else None

    def _check_pinned(self, func: Any, args: tuple[Any, ...]) -> None:
        """The host may write what was copied only when the device has read it."""
        for argument, value in zip(func._schema.arguments, args, strict=False):
            memory = self._pinned_memory(value)
            if memory is None or argument.alias_info is None or not argument.alias_info.is_write:
                continue
            if any(self.host.get(s, 0) < tick for s, tick in memory.read.items()):
                raise CudaError(f"pinned memory is written before it was read: {_sites()}")

    def _as_one(
        self, name: str, launches: int, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Decompose an op whose parts count as so many launches together."""
        graph = self.capturing
        before = 0 if graph is None else len(graph.notes)
        with self:
            found = func.decompose(*args, **kwargs)
        if graph is not None:
            own = graph.notes[before:]
            graph.notes[before:] = [
                note._replace(name=name, launches=launches if n == 0 else 0)
                for n, note in enumerate(own)
            ]
        return found

    def _check_devices(
        self, func: Any, ours: list[OnCuda], others: list[Tensor], copies: bool, there: bool
    ) -> None:
        if copies:
            if not there:
                self.note_read(str(func))
            elif others:
                self._upload(str(func))
            return
        scalars = _POINTWISE in func.tags or func is _aten.fill_.Tensor
        wrong = [t for t in others if t.dim() or not scalars]
        if ours and wrong and func in _INDEXING and not any(t.dim() and _is_mask(t) for t in wrong):
            return self._upload(f"{func} with an index or a value on the CPU")
        if ours and wrong and "out" not in func._schema.name and others:
            shapes = [list(t.shape) for t in wrong]
            raise CudaError(f"{func} mixes cuda with tensors on the CPU of shape {shapes}")

    def _check_reads(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if func in _INDEXING:
            waits = any(_is_mask(t) for t in args[1])
        elif func is _aten.repeat_interleave.Tensor:
            waits = kwargs.get("output_size") is None
        else:
            waits = _READS in func.tags or _SHAPES in func.tags
        if waits:
            self.note_read(str(func))

    def note_read(self, what: str) -> None:
        if self.capturing is not None:
            raise CudaError(f"{what} waits for the device while a graph is captured: {_sites()}")
        self.reads.append(Read(what, _sites()))
        merge(self.host, self.stream.clock)

    def _upload(self, what: str) -> None:
        """A copy from pageable memory: the host waits for it, and no graph can hold it."""
        if self.capturing is not None:
            raise CudaError(f"{what} copies from the host while a graph is captured: {_sites()}")
        self.uploads.append(Read(what, _sites()))

    def _compute(
        self, func: Any, given: Any, args: tuple[Any, ...], kwargs: dict[str, Any], there: bool,
        sent: tuple[Memory, ...] = (),
    ) -> Any:  # fmt: skip
        schema = func._schema
        named = {a.name: value for a, value in zip(schema.arguments, given[0], strict=False)}
        named |= given[1]
        changed = {
            a.name: named[a.name] for a in schema.arguments
            if a.alias_info is not None and a.alias_info.is_write and a.name in named
        }  # fmt: skip
        writes = tuple(t.memory for t in _tensors(list(changed.values())) if isinstance(t, OnCuda))
        reads = (*(t.memory for t in _tensors(given) if isinstance(t, OnCuda)), *sent)
        fresh = not any(r.alias_info is not None for r in schema.returns)
        views = not fresh and not changed
        if changed:
            if fresh and schema.returns:
                raise NotImplementedError(f"{func} changes arguments and makes new ones")
            self.launch(lambda: (func(*args, **kwargs), None)[1], reads, writes)
            for tensor in _tensors(list(changed.values())):
                if isinstance(tensor, OnCuda) and tensor.shape != tensor.inner.shape:
                    raise NotImplementedError(f"{func} changes a shape")
            return _changed_results(schema, named)
        if views or not there:
            if views:
                base = next(t for t in _tensors(given) if isinstance(t, OnCuda))
                found = func(*args, **kwargs)
                with torch.inference_mode(base.is_inference()):
                    return tree_map_only(Tensor, lambda t: OnCuda(t, base.memory), found)
            self.order(reads, ())
            merge(self.host, self.stream.clock)
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        return self.made(lambda: func(*args, **kwargs), reads, name)

    def made(
        self, call: Callable[[], Any], reads: tuple[Memory, ...], name: str = "",
        changed: tuple[OnCuda, ...] = (),
    ) -> Any:  # fmt: skip
        """The fresh results of a launch, on the device; it also writes to ``changed``."""
        before = [t.inner.clone() for t in changed] if self.capturing is not None else []
        found = call()
        for tensor, value in zip(changed, before, strict=False):
            tensor.inner.copy_(value)
        if self.poison and name.startswith(("empty", "new_empty")):
            for result in _tensors(found):
                _poison(result)
        # Some "fresh" results are an argument all the same, as of `contiguous`.
        fresh = tree_map_only(Tensor, lambda t: OnCuda(t, Memory()), found)
        writes = tuple(t.memory for t in (*_tensors(fresh), *changed))
        if self.capturing is not None:
            results = tuple(_tensors(found))
            self.capturing.notes.append(_Noted(call, results, reads, writes, *self._noting))
            self._only_captured_stream()
        else:
            self.order(reads, writes)
        return fresh

    def launch(
        self, call: Callable[[], None], reads: tuple[Memory, ...], writes: tuple[Memory, ...]
    ) -> None:
        """Run what only changes memory that is there, or note it while capturing."""
        if self.capturing is not None:
            self.capturing.notes.append(_Noted(call, (), reads, writes, *self._noting))
            self._only_captured_stream()
        else:
            self.order(reads, writes)
            call()

    def _only_captured_stream(self) -> None:
        if self.stream is not self.capture_stream:
            raise CudaError("a launch on another stream than the one that is captured")

    def order(self, reads: tuple[Memory, ...], writes: tuple[Memory, ...]) -> None:
        """A tick of the current stream; fails if it is not ordered after earlier uses."""
        stream = self.stream
        merge(stream.clock, self.host)
        clock = stream.clock
        clock[stream] += 1
        for users in (*(m.written for m in (*reads, *writes)), *(m.read for m in writes)):
            late = [s for s, tick in users.items() if clock.get(s, 0) < tick]
            if late:
                raise CudaError(f"memory is used on two streams, without waiting: {_sites()}")
        for memory in reads:
            memory.read[stream] = clock[stream]
        for memory in writes:
            memory.written, memory.read = {stream: clock[stream]}, {}

    def _of_the_package(self, func: Any, args: tuple[Any, ...]) -> Any:
        """An op's own code: launchers and ATen ops, each of which comes back here."""
        from adarec_fast.ops._library import implementation

        name, _, suffix = func._schema.name.partition("::")[2].rpartition("_")
        run = implementation(name, args[-1])[0 if suffix == "fwd" else 1]
        with contextlib.ExitStack() as stack:
            stack.enter_context(self)
            if self.autocasts:
                enabled, dtype = self.autocasts[-1]
                stack.enter_context(torch.autocast("cuda", dtype=dtype, enabled=enabled))
            return run(*args[:-1])

    def launch_op(
        self, function: Callable[..., Any], args: tuple[Any, ...], written: tuple[int, ...] = ()
    ) -> Any:
        """A function of tensors on the device as one launch that makes all its results.

        ``written``: which of its arguments it changes.
        """
        for given in _tensors(args):
            if not isinstance(given, OnCuda):
                raise CudaError(f"{function.__module__}: {list(given.shape)} is on the CPU")
        plain = tree_map_only(OnCuda, lambda t: t.inner, args)

        def call() -> Any:
            with on_the_host():
                return function(*plain)

        self._noting = (function.__module__.rpartition(".")[2], 1)
        changed = tuple(_tensors([args[i] for i in written]))
        return self.made(call, tuple(t.memory for t in _tensors(args)), changed=changed)

    # ------------------------------------------------------------------ kernels

    def check_launch(self, kernel: Any, grid: Any, given: dict[str, Any]) -> None:
        """Triton launches on the current device; see also the function of this name."""
        if self.current != self.index:
            raise CudaError(f"{kernel.__name__}: launched while cuda:{self.current} is current")
        check_launch(kernel, grid, given)

    def launch_kernel(
        self, kernel: Any, grid: Any, given: dict[str, Any], run: Callable[[Any], None]
    ) -> None:
        """Check a kernel's launch; ``run`` gets its arguments with CPU tensors."""
        self.check_launch(kernel, grid, given)
        memories = tuple(t.memory for t in _tensors(given) if isinstance(t, OnCuda))
        plain = tree_map_only(OnCuda, lambda t: t.inner, given)

        def call() -> None:
            with on_the_host():
                run(plain)

        self._noting = (kernel.__name__, 1)
        self.launch(call, memories, memories)


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


@contextlib.contextmanager
def on_the_host() -> Iterator[None]:
    """No mode sees what happens inside."""
    with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
        yield


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _sites() -> tuple[str, ...]:
    """Functions of the package on the stack, innermost first, as ``file:function``."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.parent.name != "tests":
            name = f"{path.stem}:{frame.f_code.co_qualname}"
            if name not in found:
                found.append(name)
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(found)


def _changed_results(schema: Any, named: dict[str, Any]) -> Any:
    """What an op that changes its arguments returns: those arguments."""
    found = []
    for result in schema.returns:
        aliases = result.alias_info.before_set
        found.append(next(
            named[a.name] for a in schema.arguments
            if a.alias_info is not None and a.alias_info.before_set & aliases
        ))  # fmt: skip
    return None if not found else found[0] if len(found) == 1 else tuple(found)


_current: PretendCuda | None = None


def the_device() -> PretendCuda:
    """The one that was entered last."""
    assert _current is not None, "no device is pretended"
    return _current
