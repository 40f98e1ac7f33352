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
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from pretend_launches import (
    Graph,
    Noted,
    check_launch,
    launches_of,
    mapped,
    poison,
    tensors,
)
from pretend_memory import CudaError, Memory, OnCuda, Stream, enter, merge, order, sites
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_POINTWISE, _READS, _SHAPES = (
    torch.Tag.pointwise, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
)  # fmt: skip
_aten = torch.ops.aten
_INDEXING = (
    _aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default,
    _aten._index_put_impl_.default,
)  # fmt: skip


class Read(NamedTuple):
    """The host waited: what for, and the functions of the package that asked, innermost first."""

    what: str
    sites: tuple[str, ...]


class PretendCuda(TorchDispatchMode):
    """The device; entering it makes ``torch.cuda`` speak of it.

    Attributes:
        reads: where the host waited.
        launches: kernels that were bound (not those interpreted).
        graphs: those captured, in order.
    """

    def __init__(self, architecture: int, index: int, current: int) -> None:
        super().__init__()
        enter(self)
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

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and to say so at every op imports torch's compiler."""
        return False

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute an op and keep the books."""
        if func.namespace == "adarec_fast":
            return self._of_the_package(func, args)
        name = func._schema.name.removeprefix("aten::")
        decomposes = _decomposes(func)
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
        given = tensors((args, kwargs))
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
                raise CudaError(f"{func} would copy at every replay what is pinned: {sites()}")
            others = []
        self._check_devices(func, ours, others, copies, there)
        self._check_reads(func, args, kwargs)
        if asked is not None and asked.type == "cuda":
            kwargs = {**kwargs, "device": torch.device("cpu")}
        inner_args, inner_kwargs = mapped(OnCuda, lambda t: t.inner, (args, kwargs))
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
        if not self.pinned:
            return
        for argument, value in zip(func._schema.arguments, args, strict=False):
            memory = self._pinned_memory(value)
            if memory is None or argument.alias_info is None or not argument.alias_info.is_write:
                continue
            if any(self.host.get(s, 0) < tick for s, tick in memory.read.items()):
                raise CudaError(f"pinned memory is written before it was read: {sites()}")

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
            raise CudaError(f"{what} waits for the device while a graph is captured: {sites()}")
        self.reads.append(Read(what, sites()))
        merge(self.host, self.stream.clock)

    def _upload(self, what: str) -> None:
        """A copy from pageable memory: the host waits for it, and no graph can hold it."""
        if self.capturing is not None:
            raise CudaError(f"{what} copies from the host while a graph is captured: {sites()}")
        self.uploads.append(Read(what, sites()))

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
        writes = tuple(t.memory for t in tensors(list(changed.values())) if isinstance(t, OnCuda))
        reads = (*(t.memory for t in tensors(given) if isinstance(t, OnCuda)), *sent)
        fresh = not any(r.alias_info is not None for r in schema.returns)
        views = not fresh and not changed
        if changed:
            if fresh and schema.returns:
                raise NotImplementedError(f"{func} changes arguments and makes new ones")
            self.launch(lambda: (func(*args, **kwargs), None)[1], reads, writes)
            for tensor in tensors(list(changed.values())):
                if isinstance(tensor, OnCuda) and tensor.shape != tensor.inner.shape:
                    raise NotImplementedError(f"{func} changes a shape")
            return _changed_results(schema, named)
        if views or not there:
            if views:
                base = next(t for t in tensors(given) if isinstance(t, OnCuda))
                found = func(*args, **kwargs)
                with torch.inference_mode(base.is_inference()):
                    return mapped(Tensor, lambda t: OnCuda(t, base.memory), found)
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
            for result in tensors(found):
                poison(result)
        # Some "fresh" results are an argument all the same, as of `contiguous`.
        fresh = mapped(Tensor, lambda t: OnCuda(t, Memory()), found)
        writes = tuple(t.memory for t in (*tensors(fresh), *changed))
        if self.capturing is not None:
            results = tuple(tensors(found))
            self.capturing.notes.append(Noted(call, results, reads, writes, *self._noting))
            self._only_captured_stream()
        else:
            self.order(reads, writes)
        return fresh

    def launch(
        self, call: Callable[[], None], reads: tuple[Memory, ...], writes: tuple[Memory, ...]
    ) -> None:
        """Run what only changes memory that is there, or note it while capturing."""
        if self.capturing is not None:
            self.capturing.notes.append(Noted(call, (), reads, writes, *self._noting))
            self._only_captured_stream()
        else:
            self.order(reads, writes)
            call()

    def _only_captured_stream(self) -> None:
        if self.stream is not self.capture_stream:
            raise CudaError("a launch on another stream than the one that is captured")

    def order(self, reads: tuple[Memory, ...], writes: tuple[Memory, ...]) -> None:
        """A tick of the current stream; fails if it is not ordered after earlier uses."""
        order(self.stream, self.host, reads, writes)

    def _of_the_package(self, func: Any, args: tuple[Any, ...]) -> Any:
        """An op's own code: launchers and ATen ops, each of which comes back here."""
        from adarec_fast.ops._library import implementation

        name, _, suffix = func._schema.name.partition("::")[2].rpartition("_")
        run = getattr(implementation(name, args[-1]), suffix)
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
        for given in tensors(args):
            if not isinstance(given, OnCuda):
                raise CudaError(f"{function.__module__}: {list(given.shape)} is on the CPU")
        plain = mapped(OnCuda, lambda t: t.inner, args)

        def call() -> Any:
            with on_the_host():
                return function(*plain)

        self._noting = (function.__module__.rpartition(".")[2], 1)
        changed = tuple(tensors([args[i] for i in written]))
        return self.made(call, tuple(t.memory for t in tensors(args)), changed=changed)

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
        memories = tuple(t.memory for t in tensors(given) if isinstance(t, OnCuda))
        plain = mapped(OnCuda, lambda t: t.inner, given)

        def call() -> None:
            with on_the_host():
                run(plain)

        self._noting = (kernel.__name__, 1)
        self.launch(call, memories, memories)


@contextlib.contextmanager
def on_the_host() -> Iterator[None]:
    """No mode sees what happens inside."""
    with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
        yield


@functools.cache
def _decomposes(func: Any) -> bool:
    return bool(func._can_decompose())


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


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
