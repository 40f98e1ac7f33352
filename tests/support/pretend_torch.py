"""``torch.cuda`` and Triton, as they speak of the device of ``pretend_cuda.py``."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from pretend_cuda import PretendCuda, on_the_host
from pretend_launches import Graph, mapped
from pretend_memory import CudaError, Event, OnCuda, Stream, merge, the_device
from torch.utils import _foreach_utils

from adarec_fast.kernels._launch import MULTIPROCESSORS
from adarec_fast.models.encoders import plan
from adarec_fast.ops import _library, _triton
from adarec_fast.ranking import recommender

# What autograd asks of a device type, for two devices with one stream each. To be loaded before
# libtorch, whose build for CPUs would answer that there is no accelerator.
GUARD = """
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <optional>
namespace {
using c10::Device; using c10::DeviceType; using c10::Stream;
struct Guard final : c10::impl::DeviceGuardImplInterface {
  Device first() const { return Device(DeviceType::CUDA, 0); }
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return first(); }
  Device getDevice() const override { return first(); }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device d) const override { return Stream(Stream::DEFAULT, d); }
  Stream exchangeStream(Stream s) const override { return s; }
  c10::DeviceIndex deviceCount() const noexcept override { return 2; }
  bool queryStream(const Stream&) const override { return true; }
  bool queryEvent(void*) const override { return true; }
  void record(void**, const Stream&, const c10::DeviceIndex,
              const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);
struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", Hooks);
}
namespace at::accelerator {
std::optional<c10::DeviceType> getAccelerator(bool) { return c10::DeviceType::CUDA; }
}
"""


def build_guard(folder: Path) -> Path:
    """Compile ``GUARD``, which takes some seconds; the library."""
    home = Path(torch.__file__).parent
    source, library = folder / "guard.cpp", folder / "guard.so"
    source.write_text(GUARD, encoding="utf-8")
    done = subprocess.run(
        [os.environ.get("CXX", "c++"), "-std=c++20", "-O0", "-shared", "-fPIC",
         f"-I{home / 'include'}", str(source), "-o", str(library), f"-L{home / 'lib'}", "-lc10",
         "-ltorch_cpu", f"-Wl,-rpath,{home / 'lib'}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return library


# ---------------------------------------------------------------------- torch.cuda


@contextlib.contextmanager
def _on_device(device: Any) -> Iterator[None]:
    pretended = the_device()
    before, pretended.current = pretended.current, pretended.index_of(device)
    try:
        yield
    finally:
        pretended.current = before


@contextlib.contextmanager
def _on_stream(stream: Stream | None) -> Iterator[None]:
    if stream is None:
        yield
        return
    streams = the_device().streams
    before, streams[stream.index] = streams[stream.index], stream
    try:
        with _on_device(stream.index):
            yield
    finally:
        streams[stream.index] = before


@contextlib.contextmanager
def _graph(
    cuda_graph: Graph, pool: list[Graph] | None = None, stream: Stream | None = None,
    capture_error_mode: str = "global",
) -> Iterator[None]:  # fmt: skip
    device = the_device()
    if device.capturing is not None:
        raise CudaError("a graph is captured while another is")
    stream = stream or Stream()
    cuda_graph.pool = [] if pool is None else pool
    cuda_graph.pool.append(cuda_graph)
    merge(device.host, device.stream.clock)  # it synchronises first
    with _on_stream(stream):
        device.capturing, device.capture_stream = cuda_graph, stream
        try:
            yield
        finally:
            device.capturing = device.capture_stream = None
    device.graphs.append(cuda_graph)


def _replacements(device: PretendCuda) -> dict[str, Any]:
    major, minor = divmod(device.architecture, 10)
    state = torch.zeros(16, dtype=torch.uint8)
    properties = SimpleNamespace(
        name="Pretended", multi_processor_count=MULTIPROCESSORS[device.architecture], major=major,
        minor=minor, total_memory=24 << 30, gcnArchName="",
    )  # fmt: skip

    def set_device(number: Any) -> None:
        device.current = device.index_of(number)

    return {
        "is_available": lambda: True, "is_initialized": lambda: True, "_lazy_init": lambda: None,
        "device_count": lambda: 2, "current_device": lambda: device.current,
        "set_device": set_device, "get_device_capability": lambda *_: (major, minor),
        "get_device_properties": lambda *_: properties,
        "get_device_name": lambda *_: properties.name, "is_bf16_supported": lambda *_: True,
        "manual_seed_all": lambda _: None, "manual_seed": lambda _: None,
        "empty_cache": lambda: None,
        "synchronize": lambda *_: device.note_read("torch.cuda.synchronize"),
        "get_rng_state": lambda *_: state.clone(),
        "set_rng_state": lambda new, *_: state.copy_(new),
        "Stream": Stream, "Event": Event, "CUDAGraph": Graph, "graph": _graph, "stream": _on_stream,
        "graph_pool_handle": list,
        "current_stream": lambda d=None: device.streams[device.index_of(d)],
        "default_stream": lambda d=None: device.default[device.index_of(d)],
        "device": _on_device, "device_of": lambda tensor: _on_device(tensor.device),
        "is_current_stream_capturing": lambda: device.capturing is not None,
    }  # fmt: skip


def _uploading(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``torch.tensor`` as two calls: its own copy to a device passes by every mode."""

    @functools.wraps(make)
    def run(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        made = make(data, **options)
        return made if device is None else made.to(device)

    return run


def _noting_autocast(device: PretendCuda) -> dict[str, Any]:
    real_enter, real_exit = torch.autocast.__enter__, torch.autocast.__exit__

    def enter(self: Any) -> Any:
        if self.device == "cuda":
            device.autocasts.append((self._enabled, self.fast_dtype))
        return real_enter(self)

    def leave(self: Any, *raised: Any) -> Any:
        if self.device == "cuda":
            device.autocasts.pop()
        return real_exit(self, *raised)

    return {"__enter__": enter, "__exit__": leave}


# ---------------------------------------------------------------------- Triton


class Bound(NamedTuple):
    """A kernel as it would be compiled (from ``signature`` on) and launched."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]
    signature: dict[Any, Any]
    constants: dict[Any, Any]
    attributes: dict[Any, Any]


class _Driver:
    """Triton's driver, as far as a launch that is not compiled needs it."""

    def __init__(self, architecture: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return the_device().current

    def get_current_stream(self, device: int) -> int:
        return 0


def _interpreting(device: PretendCuda) -> tuple[Any, dict[str, Any]]:
    from triton.runtime.interpreter import InterpretedFunction

    original = InterpretedFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **given: Any) -> None:
        named = {**dict(zip(self.arg_names, args, strict=False)), **given}
        device.launch_kernel(
            self, grid, named, lambda plain: original(self, grid=grid, warmup=False, **plain)
        )

    return InterpretedFunction, {"run": run}


def _binding(device: PretendCuda) -> tuple[Any, dict[str, Any]]:
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    original = JITFunction.run
    driver.set_active(_Driver(device.architecture))

    def do_compile(
        self: Any, key: Any, signature: Any, number: int, constants: Any, options: Any,
        attributes: Any, warmup: bool,
    ) -> Any:  # fmt: skip
        return SimpleNamespace(
            bound=(signature, constants, attributes), function=0, packed_metadata=(),
            launch_metadata=lambda *_: None, run=lambda *_: None,
        )  # fmt: skip

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **given: Any) -> None:
        inner_args, inner_given = mapped(OnCuda, lambda t: t.inner, (args, given))
        with on_the_host():
            kernel = original(self, *inner_args, grid=grid, warmup=False, **inner_given)
        named = dict(zip(self.arg_names, args, strict=False))
        device.launch_kernel(self, grid, {**named, **given}, lambda plain: None)
        options = {k: v for k, v in given.items() if k != "enable_fp_fusion"}
        arguments = mapped(OnCuda, lambda t: t.inner, named)
        device.launches.append(Bound(self, grid, arguments, options, *kernel.bound))

    return JITFunction, {"run": run, "_do_compile": do_compile}


@functools.cache
def _values_of_packed(
    real: Callable[..., Any], name: str, backend: str
) -> _library.Implementation:
    """Packed PyTorch in Triton's place, each op of it one launch."""
    found = real(name, backend if backend != "triton" else "packed")
    if backend != "triton":
        return found

    def launched(function: Callable[..., Any], suffix: str) -> Callable[..., Any]:
        op = getattr(torch.ops.adarec_fast, f"{name}_{suffix}", None)
        arguments = [] if op is None else op.default._schema.arguments
        written = tuple(i for i, argument in enumerate(arguments) if argument.is_write)
        return lambda *args: the_device().launch_op(function, args, written)

    return _library.Implementation(*map(launched, found, ("fwd", "bwd")))


# ---------------------------------------------------------------------- all of it


@contextlib.contextmanager
def pretend_cuda(
    *, values: bool = False, architecture: int = 86, index: int = 0, current: int = 0
) -> Iterator[PretendCuda]:
    """Enter a device: ``torch.cuda`` and Triton take it for a real one.

    Args:
        values: packed PyTorch computes what Triton's kernels would, op by op; otherwise the
            launchers run, and their kernels are interpreted under ``TRITON_INTERPRET=1`` and else
            bound, which leaves what they would have written undefined.
        architecture: 86 for sm_86.
        index: of the device that has the tensors; there are two.
        current: the current device at first.
    """
    device = PretendCuda(architecture, index, current)
    patches: list[tuple[Any, dict[str, Any]]] = [
        (torch.cuda, _replacements(device)), (torch, {"tensor": _uploading(torch.tensor)}),
        (torch.cuda.nvtx, {"range": lambda _: contextlib.nullcontext()}),
        (torch.autocast, _noting_autocast(device)),
        (_foreach_utils, {"_foreach_supported_types": [torch.Tensor, torch.nn.Parameter, OnCuda]}),
    ]  # fmt: skip
    if values:
        packed = functools.partial(_values_of_packed, _library.implementation)
        users = (_library, recommender, plan)
        patches += [(module, {"implementation": packed}) for module in users]
    elif os.environ.get("TRITON_INTERPRET") == "1":
        patches.append(_interpreting(device))
    else:
        patches.append(_binding(device))
    before = [(owner, {n: getattr(owner, n) for n in new}) for owner, new in patches]
    # Module.to would put a wrapper's data into a parameter and lose the wrapper.
    replacing = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        for owner, new in patches:
            for name, value in new.items():
                setattr(owner, name, value)
        _triton.missing.cache_clear()
        with device:
            yield device
    finally:
        for owner, old in before:
            for name, value in old.items():
                setattr(owner, name, value)
        torch.__future__.set_overwrite_module_params_on_conversion(replacing)
        _triton.missing.cache_clear()
