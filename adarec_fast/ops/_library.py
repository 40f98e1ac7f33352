"""The op registry: schemas, fakes, backends and who runs what.

An op is a pair of functional schemas, ``name_fwd`` and ``name_bwd``, defined once in the
``adarec_fast`` library. Their last argument names the backend, so that a compiled graph fixes it.
``define`` plus ``impl`` is used instead of ``custom_op`` because it costs a quarter of it a call
and these shapes are small; autograd sits outside, in an ``autograd.Function``. The smallest op,
``moe_aggregate``, has a second one in C++ for eager calls of its ``cpp`` backend.

Some ops have another pair, ``name_keep`` and ``name_resume``: a forward that also returns what its
backward would compute again, and the backward that takes it. Backends may lack it.

Backends:
    reference   plain PyTorch on padded tensors, inlined: autograd and torch.compile see through it.
    packed      plain PyTorch on packed tokens behind the op; the fallback where nothing was built.
    cpp         the C++ extension (CPU).
    triton      the kernels (CUDA, or any device under TRITON_INTERPRET=1).
    cuda        the CUDA extension.

Each of them fills its place in a table (:func:`provide`): ``packed/__init__.py``, and
``_triton.py`` and ``extension.py`` beside this file.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple

import torch

from .. import rng

BACKENDS = ("reference", "packed", "cpp", "triton", "cuda")
ENVIRONMENT = "ADAREC_FAST_BACKEND"

_LIBRARY = torch.library.Library("adarec_fast", "DEF")


class BackendError(RuntimeError):
    """A backend was asked for that cannot run this op here.

    Example:
        >>> wrong = af.ADARec(num_items=12, backend="cuda")
        >>> wrong.recommend([[1, 9]], k=3)
        Traceback (most recent call last):
        ...
        adarec_fast.ops._library.BackendError: ...
    """


class Implementation(NamedTuple):
    """What a backend brings for one op; all take the schema's arguments less ``backend``."""

    fwd: Callable[..., Any]
    bwd: Callable[..., Any]
    keep: Callable[..., Any] | None = None
    resume: Callable[..., Any] | None = None


class Choice(NamedTuple):
    """Who would run an op, and why."""

    backend: str
    reason: str


class OpInfo(NamedTuple):
    """An op, the backends written for it, fastest first per device type, and when it is used.

    ``waits``: packed PyTorch reads sizes from the device to run it.
    """

    name: str
    cpu: tuple[str, ...]
    cuda: tuple[str, ...]
    note: str = ""
    waits: bool = True

    def backends(self, device: str) -> tuple[str, ...]:
        """Candidates on a device type, fastest first."""
        return self.cuda if device == "cuda" else self.cpu


OPS: dict[str, OpInfo] = {}
# What :func:`provide` fills: how to load an op (None: any op) of a backend, and what it lacks.
_LOADERS: dict[tuple[str | None, str], Callable[[str], Implementation]] = {}
_MISSING: dict[str, Callable[[], str | None]] = {}


def define(
    name: str,
    forward: str,
    backward: str | None,
    fake_forward: Callable[..., Any],
    fake_backward: Callable[..., Any] | None,
    *,
    cpu: tuple[str, ...] = ("packed",),
    cuda: tuple[str, ...] = ("packed",),
    note: str = "",
    waits: bool = True,
    fake_kept: Callable[..., torch.Tensor] | None = None,
) -> None:
    """Define an op's schemas with fakes and register its backends.

    Args:
        name: the op's name, the same in ops/, reference/, packed/, kernels/ and csrc/.
        forward, backward: schemas without the name, e.g. ``"(Tensor x) -> Tensor"``; ``str
            backend`` is appended to the arguments.
        fake_forward, fake_backward: shape functions, taking the same arguments with ``backend``.
        cpu, cuda: backends in the order of preference, ``reference`` not named.
        note: what ``adarec-fast info`` adds to the reason of the choice.
        waits: whether ``packed`` reads anything on the host.
        fake_kept: the shape function of what ``name_keep`` returns beside the results, which
            ``name_resume`` takes behind their gradients.
    """
    OPS[name] = OpInfo(name, (*cpu, "reference"), (*cuda, "reference"), note, waits)
    schemas = [("fwd", forward, fake_forward), ("bwd", backward, fake_backward)]
    if fake_kept is not None and backward is not None and fake_backward is not None:
        schemas += _with_kept(forward, backward, fake_forward, fake_backward, fake_kept)
    for suffix, schema, fake in schemas:
        if schema is None:
            continue
        arguments, result = schema.split("->")
        full = f"{name}_{suffix}{arguments.strip()[:-1]}, str backend) -> {result.strip()}"
        _LIBRARY.define(full)
        _LIBRARY.impl(f"{name}_{suffix}", _runner(name, suffix), "CompositeExplicitAutograd")
        torch.library.register_fake(f"adarec_fast::{name}_{suffix}", fake, lib=_LIBRARY)


def _with_kept(
    forward: str,
    backward: str,
    fake_forward: Callable[..., Any],
    fake_backward: Callable[..., Any],
    fake_kept: Callable[..., torch.Tensor],
) -> list[tuple[str, str, Callable[..., Any]]]:
    """``keep`` and ``resume`` with schemas and fakes, from those of ``fwd`` and ``bwd``."""
    arguments, results = (part.strip() for part in forward.split("->"))
    count = results.count("Tensor")
    gradients = backward.removesuffix(backward[backward.index(arguments[1:]) :])

    def keep(*inputs: Any) -> tuple[torch.Tensor, ...]:
        made = fake_forward(*inputs)
        return (*(made if count > 1 else (made,)), fake_kept(*inputs))

    def resume(*inputs: Any) -> Any:
        return fake_backward(*inputs[:count], *inputs[count + 1 :])

    kept = ", ".join(["Tensor"] * (count + 1))
    return [
        ("keep", f"{arguments} -> ({kept})", keep),
        ("resume", backward.replace(gradients, f"{gradients}Tensor kept, ", 1), resume),
    ]


def _runner(name: str, suffix: str) -> Callable[..., Any]:
    position = Implementation._fields.index(suffix)

    def run(*arguments: Any) -> Any:
        code = implementation(name, arguments[-1])[position]
        if code is None:
            raise BackendError(f"backend {arguments[-1]!r} has no {name}_{suffix}")
        return code(*arguments[:-1])

    return run


# Bytes that one call of an op may leave for its backward pass: about what a processor's last cache
# holds, beyond which reading it back would cost what computing it again does, and memory besides.
KEPT_BYTES = 32 << 20


def keeps(backend: str, floats: int) -> bool:
    """Whether an op's forward pass should leave so many floats for its backward pass. An exported
    program has none, and no bound on its tokens may come of the question."""
    if backend != "cpp" or torch.compiler.is_exporting():
        return False
    return 4 * floats <= KEPT_BYTES


@functools.cache
def implementation(name: str, backend: str) -> Implementation:
    """Load a backend's code for an op. Raises BackendError if it cannot be had."""
    load = _LOADERS.get((name, backend)) or _LOADERS.get((None, backend))
    if load is None:
        raise BackendError(f"backend {backend!r} has no code behind the op {name}")
    return load(name)


def provide(
    backend: str,
    load: Callable[[str], Implementation],
    missing: Callable[[], str | None] | None = None,
    *,
    op: str | None = None,
) -> None:
    """Fill a backend's place in the table.

    Args:
        backend: its name.
        load: from an op's name to the code behind it; called once an op, when it first runs.
        missing: why the backend cannot be used here, or None; asked whenever it might be chosen.
        op: the one op that ``load`` is for, in the place of what the backend has for all.
    """
    _LOADERS[op, backend] = load
    if missing is not None:
        _MISSING[backend] = missing


def of_module(module: ModuleType) -> Implementation:
    """A module's ``fwd`` and, where the op has a gradient, ``bwd``."""
    return Implementation(module.fwd, getattr(module, "bwd", _no_backward))


def _no_backward(*_: Any) -> Any:
    raise BackendError("this op has no gradient")


_as_on_cuda: ContextVar[bool] = ContextVar("as_on_cuda", default=False)


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Choose backends for CPU tensors as for CUDA's with triton, whose launches are only noted."""
    token = _as_on_cuda.set(True)
    try:
        yield
    finally:
        _as_on_cuda.reset(token)


def collecting() -> bool:
    """Whether :func:`as_on_cuda` is in force."""
    return _as_on_cuda.get()


def on_cuda(device: torch.device) -> bool:
    """Whether tensors there are CUDA's, or stand for such (:func:`as_on_cuda`)."""
    return device.type == "cuda" or _as_on_cuda.get()


def unavailable(
    name: str, backend: str, device: str, dtype: torch.dtype = torch.float32
) -> str | None:
    """Why ``backend`` cannot run ``name`` on a device type and dtype, or None if it can."""
    info = OPS[name]
    if backend == "reference":
        return None
    if _as_on_cuda.get():
        if backend in ("triton", "packed") and backend in info.cuda:
            return None
        return "kernels are being collected, those of triton"
    if dtype == torch.float64 and backend != "packed":
        return "computes in float32, not float64"
    # The interpreter runs the kernels on CPU tensors, which is how they are tested.
    interpreted = backend == "triton" and interpreting() and backend in info.cuda
    if backend not in info.backends(device) and not interpreted:
        return f"not written for {device}"
    missing = _MISSING.get(backend)
    return None if missing is None else missing()


def interpreting() -> bool:
    """Whether triton's interpreter runs the kernels."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def choose(name: str, backend: str, device: str, dtype: torch.dtype = torch.float32) -> str:
    """The backend that runs an op; ``ADAREC_FAST_BACKEND`` speaks where the argument is "auto".

    Raises:
        BackendError: an unknown backend, or one that was asked for and cannot run.
    """
    return explain(name, backend, device, dtype).backend


# All that torch.compiler.assume_constant_result does besides importing torch._dynamo, which would
# be half of the time that a request or a command waits for its first answer.
setattr(choose, "_dynamo_marked_constant", True)  # noqa: B010


def explain(
    name: str, backend: str = "auto", device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Choice:
    """:func:`choose` with its reason, as ``adarec-fast info`` prints it."""
    source = "asked for"
    if backend == "auto":
        backend = os.environ.get(ENVIRONMENT, "auto")
        source = f"{ENVIRONMENT} is set"
    if backend != "auto":
        if backend not in BACKENDS:
            raise BackendError(
                f"backend={backend!r} is unknown; choose from auto, {', '.join(BACKENDS)}"
            )
        why = unavailable(name, backend, device, dtype)
        if why is None:
            return Choice(backend, source)
        if source == "asked for":
            raise BackendError(f"backend {backend!r} cannot run {name} on {device}: {why}")
        # The variable is for whole runs: an op that lacks the backend falls to the next one.
        source = f"{backend} {why}"
    missing: list[str] = []
    device = "cuda" if _as_on_cuda.get() else device
    for candidate in OPS[name].backends(device):
        why = unavailable(name, candidate, device, dtype)
        if why is None:
            notes = [source] if source.startswith(backend) and backend != "auto" else []
            return Choice(candidate, "; ".join([*notes, *missing]) or "fastest there is")
        missing.append(f"{candidate}: {why}")
    raise AssertionError("reference always runs")


def has_kernel(
    name: str, backend: str, device: str, dtype: torch.dtype = torch.float32
) -> bool:
    """Whether a kernel would run an op that does at once what other ops can do one by one.

    Elsewhere its parts are called, and whatever backend was asked for is asked of them.
    """
    try:
        return choose(name, backend, device, dtype) in ("cpp", "triton", "cuda")
    except BackendError:
        return False


setattr(has_kernel, "_dynamo_marked_constant", True)  # noqa: B010


def synchronising(
    backend: str = "auto", device: str = "cuda", dtype: torch.dtype = torch.float32
) -> list[str]:
    """Ops that the host would wait for: those left to packed PyTorch, where that reads sizes."""
    return [
        name for name, op in OPS.items()
        if op.waits and choose(name, backend, device, dtype) == "packed"
    ]


def backend_report(device: str = "cpu") -> list[dict[str, Any]]:
    """One row an op: ``op, backend, reason, available`` on a device type."""
    rows = []
    for name, info in OPS.items():
        choice = explain(name, "auto", device)
        reason = "; ".join(filter(None, (choice.reason, info.note)))
        able = [b for b in info.backends(device) if unavailable(name, b, device) is None]
        rows.append(
            {"op": name, "backend": choice.backend, "reason": reason, "available": able}
        )
    return rows


def run(function: type[torch.autograd.Function], name: str, backend: str, *inputs: Any) -> Any:
    """Call an op forward: through its autograd function, or, where nobody records gradients, as it
    is, which saves most of what a small call costs.

    Args:
        function: its ``forward`` takes ``(ctx, backend, *inputs)`` and returns what the op does.
        name: the op's.
        backend: who runs it, not ``reference``.
        inputs: the schema's arguments less ``backend``.
    """
    if torch.is_grad_enabled():
        return function.apply(backend, *inputs)
    return getattr(torch.ops.adarec_fast, f"{name}_fwd")(*inputs, backend)


def require(condition: bool, message: Callable[[], str]) -> None:
    """Raise ValueError with ``message()`` unless the condition holds."""
    if not condition:
        raise ValueError(message())


def check_shape(name: str, tensor: torch.Tensor, *shape: int | None) -> None:
    """Raise ValueError naming the argument unless its shape is the one given (None: any size)."""
    actual = tensor.shape
    if actual == shape:  # the common case, which a small op's every call pays for
        return
    if len(actual) != len(shape) or any(
        want is not None and got != want for got, want in zip(actual, shape, strict=True)
    ):
        wanted = ", ".join("*" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} has shape {list(actual)}; it must be [{wanted}]")


def check_index(
    name: str,
    tensor: torch.Tensor,
    size: int | None = None,
    *,
    dtype: torch.dtype = torch.int64,
) -> None:
    """Raise ValueError unless the tensor is ``[size]`` and of that integer dtype."""
    if tensor.dtype != dtype:
        raise ValueError(f"{name} has dtype {tensor.dtype}; it must be {dtype}")
    check_shape(name, tensor, size)


def check_seed(seed: torch.Tensor, name: str = "seed") -> torch.Tensor:
    """The seed as int64 ``[3]``, as backends take it; ValueError unless ``[1]`` or ``[3]``."""
    check_index(name, seed, None if seed.shape == (3,) else 1)
    return rng.at_place(seed)
