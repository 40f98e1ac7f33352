"""Ragged batches, op cases, and the backends that run them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from adarec_fast.ops import OPS
from adarec_fast.ops._library import collecting, unavailable

# Loaded here, since a test takes the profile in force when it is decorated.
_PROFILE = {
    "deadline": None,
    "max_examples": 10,
    "database": None,
    # The fixtures hold for a whole test and not for an example; a suite's tests are inherited.
    "suppress_health_check": [
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
        HealthCheck.too_slow,
    ],
}
settings.register_profile("ci", derandomize=True, **_PROFILE)
settings.register_profile("random", print_blob=True, **_PROFILE)
# On a GPU each example may need kernels of its own: failures are told, not shrunk for minutes.
settings.register_profile(
    "gpu", derandomize=True, phases=(Phase.explicit, Phase.generate), **_PROFILE
)


def _same_examples_everywhere() -> None:
    """Of hypothesis's draws, one in twenty is a number that stands in a module that is loaded.

    Which are, differs: the list of kernels that the tests ask for is made on another machine than
    that of the GPU, whose packages lie elsewhere. Versions that do not draw so have no such name.
    """
    providers = importlib.import_module("hypothesis.internal.conjecture.providers")
    if hasattr(providers, "_get_local_constants"):
        nothing = providers.Constants()
        setattr(providers, "_get_local_constants", lambda: nothing)  # noqa: B010, private


if torch.cuda.is_available() or collecting():
    _same_examples_everywhere()
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "gpu" if torch.cuda.is_available() else "ci")
)

SIZES = (16, 32, 64, 128, 256, 20, 72)
# On a GPU a size is a set of kernels to compile, and D = 4 and 8 run 16's with a mask, as 20 does
# 32's: a size of every tile, and one that does not fill its tile.
GPU_SIZES = (16, 20, 64, 128, 256)
LARGE = 128  # from here on a GPU's tests take an op's fullest variants alone
# So is T, of some: one level, that of most tests, and a deep hierarchy.
GPU_DEPTHS = (0, 1, 2, 8)
# What these show of plain PyTorch on a GPU; the other tests would look at PyTorch alone.
PLAIN_ON_GPU = (
    "test_matches_the_float64_reference", "test_many_sequences", "test_autocast", "test_by_hand",
)  # fmt: skip
# The interpreter computes as a GPU does, with PTX's approximate functions: see approximate.py.
APPROXIMATE = "ADAREC_FAST_TESTS_APPROXIMATE"


class Backend(NamedTuple):
    """An op's backend on a device type."""

    op: str
    name: str
    device: str

    @property
    def on_gpu(self) -> bool:
        """Whether it is tested as on a GPU: there, or where its kernels are collected for one."""
        return self.device == "cuda" or (self.name == "triton" and collecting())

    @property
    def approximates(self) -> bool:
        """Whether its functions and the order of its sums are a GPU's."""
        if self.name not in ("triton", "cuda"):
            return False
        return self.device == "cuda" or os.environ.get(APPROXIMATE) == "1"

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """What it computes in; the plain PyTorch ones have float64 as well."""
        wide = self.name in ("reference", "packed")
        return (torch.float32, torch.float64) if wide else (torch.float32,)


# Whole models are compiled through these ops in tests/models/test_compilation.py.
SWEPT = {("test_compiles_once_for_all_lengths", "packed")}


def gpu_device() -> str:
    """Where the tests marked ``gpu`` run: CUDA, or the CPU while their kernels are collected."""
    return "cpu" if collecting() else "cuda"


def backends_for(op: str, test: str = "") -> list[Any]:
    """Every backend written for an op, as parameters; those of CUDA only where there is a device.

    The kernels under the interpreter have test files of their own; with TRITON_INTERPRET=1 they
    run through every test here as well. On CUDA plain PyTorch runs in ``PLAIN_ON_GPU`` alone.
    """
    if collecting():
        found = [name for name in OPS[op].cuda if name == "triton"]
        mark = pytest.mark.gpu
        return [pytest.param(Backend(op, n, "cpu"), id=f"{n}-on-cuda", marks=mark) for n in found]
    on_cpu = [name for name in OPS[op].cpu if name != "triton"]
    if os.environ.get("TRITON_INTERPRET") == "1" and "triton" in OPS[op].cuda:
        on_cpu.append("triton")
    parameters = [
        pytest.param(
            Backend(op, name, "cpu"), id=name, marks=[pytest.mark.slow] * ((test, name) in SWEPT)
        )
        for name in on_cpu
    ]
    if torch.cuda.is_available():
        parameters += [
            pytest.param(Backend(op, name, "cuda"), id=f"{name}-on-cuda", marks=pytest.mark.gpu)
            for name in OPS[op].cuda
            if name in ("triton", "cuda") or (name == "packed" and test in PLAIN_ON_GPU)
        ]
    return parameters


def available(chosen: Backend) -> Backend:
    """Skip, with the reason, what cannot run here."""
    why = unavailable(chosen.op, chosen.name, chosen.device)
    if why is not None:
        pytest.skip(f"{chosen.name} cannot run {chosen.op} on {chosen.device}: {why}")
    return chosen


def sized(batch: Batch, backend: Backend, least: int = 16) -> Batch:
    """The batch at a size and a T that a GPU's tests compile kernels for; D at least ``least``.

    Sequences that went down to T still do.
    """
    if not backend.on_gpu:
        return batch
    deepest = next((d for d in GPU_DEPTHS if d >= batch.max_depth), batch.max_depth)
    depths = tuple(deepest if d == batch.max_depth else d for d in batch.depths)
    return replace(batch, size=max(batch.size, least), max_depth=deepest, depths=depths)


@dataclass(frozen=True)
class Batch:
    """A ragged batch: lengths and depths of its sequences, D, T, and rows of unused capacity."""

    lengths: tuple[int, ...]
    depths: tuple[int, ...]
    size: int = 16
    max_depth: int = 2
    capacity: int = 0
    max_length: int = 12
    seed: int = 0

    @property
    def levels(self) -> int:
        return self.max_depth + 1

    @property
    def num_sequences(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths) + self.capacity

    def offsets(self) -> Tensor:
        return torch.tensor([0, *self.lengths]).cumsum(0)

    def depth(self) -> Tensor:
        return torch.tensor(self.depths, dtype=torch.int64)

    def real(self) -> Tensor:
        """Bool ``[N]``: False at capacity."""
        return torch.arange(self.num_tokens) < sum(self.lengths)

    def reached(self) -> Tensor:
        """Bool ``[T+1, B]``."""
        return torch.arange(self.levels)[:, None] <= self.depth()

    def computed(self) -> Tensor:
        """Bool ``[T+1, N]``: the level is within the depth of the token's sequence."""
        spread = self.reached().repeat_interleave(torch.tensor(self.lengths, dtype=torch.int64), 1)
        unused = torch.zeros(self.levels, self.capacity, dtype=torch.bool)
        return torch.cat([spread, unused], 1)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


@st.composite
def batches(draw: st.DrawFn, *, empty: bool = True, sizes: Sequence[int] = (4, 16, 20)) -> Batch:
    """Small ragged batches with length 1, the full length, depth 0, depth T, none and capacity."""
    max_depth = draw(st.integers(1, 6))
    max_length = draw(st.sampled_from([1, 5, 12]))
    count = draw(st.integers(0 if empty else 1, 5))
    lengths = st.sampled_from([1, max_length]) | st.integers(1, max_length)
    depths = st.sampled_from([0, max_depth]) | st.integers(0, max_depth)
    return Batch(
        lengths=tuple(draw(st.lists(lengths, min_size=count, max_size=count))),
        depths=tuple(draw(st.lists(depths, min_size=count, max_size=count))),
        size=draw(st.sampled_from(sizes)),
        max_depth=max_depth,
        capacity=draw(st.sampled_from([0, 1, 7])),
        max_length=max_length,
        seed=draw(st.integers(0, 99)),
    )


def random_batch(count: int, *, seed: int = 0, max_length: int = 12, **fields: Any) -> Batch:
    """``count`` sequences of mixed lengths and depths."""
    generator = torch.Generator().manual_seed(seed)
    max_depth = fields.get("max_depth", Batch.max_depth)
    lengths = torch.randint(1, max_length + 1, (count,), generator=generator).tolist()
    depths = torch.randint(0, max_depth + 1, (count,), generator=generator).tolist()
    return Batch(tuple(lengths), tuple(depths), max_length=max_length, seed=seed, **fields)


@dataclass(frozen=True)
class OpCase:
    """One call of a public op, with what may be read and what must be written.

    Attributes:
        function: the op, taking ``arguments``, ``options`` and ``backend`` by name.
        arguments: its tensors, floats in float32.
        differentiable: the arguments that receive a gradient.
        options: everything else.
        readable: by argument, bool over its leading axes: the part that the op may read, and that
            has a gradient. The rest is filled with NaN.
        written: by output, bool over its leading axes, or None where all of it is.
        axes: by argument, the axis ("token" or "sequence", dimension) along which sequences lie.
        output_axes: the same by output; None for what belongs to no sequence.
        fixed: float arguments that keep their dtype.
        scale: the order of magnitude of the terms that make up a gradient. Where they cancel, as
            in the gradient of a weight that has none, their roundings remain.
    """

    function: Callable[..., Any]
    arguments: dict[str, Tensor | None]
    differentiable: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    readable: dict[str, Tensor] = field(default_factory=dict)
    written: tuple[Tensor | None, ...] = (None,)
    axes: dict[str, tuple[str, int]] = field(default_factory=dict)
    output_axes: tuple[tuple[str, int] | None, ...] = (None,)
    fixed: tuple[str, ...] = ()
    scale: float = 1.0

    def tensors(self, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor | None]:
        """The arguments in ``dtype``, NaN where they may not be read, as fresh leaves."""
        made: dict[str, Tensor | None] = {}
        for name, value in self.arguments.items():
            if value is None:
                made[name] = None
                continue
            if value.is_floating_point() and name not in self.fixed:
                value = value.to(dtype)
            if name in self.readable:
                value = masked(value, self.readable[name], float("nan"))
            made[name] = value.detach().clone().to(device)
            made[name].requires_grad_(name in self.differentiable)
        return made

    def call(self, tensors: dict[str, Tensor | None], backend: str) -> tuple[Tensor, ...]:
        """Run the op; always a tuple."""
        result = self.function(**tensors, **self.options, backend=backend)
        return tuple(result) if isinstance(result, tuple) else (result,)

    def select(self, batch: Batch, order: Sequence[int]) -> OpCase:
        """The case of some of the sequences, in another order, without capacity."""
        index = {"token": token_index(batch, order), "sequence": torch.tensor(order).long()}
        chosen = replace(
            batch,
            lengths=tuple(batch.lengths[i] for i in order),
            depths=tuple(batch.depths[i] for i in order),
            capacity=0,
        )

        def pick(values: dict[str, Any]) -> dict[str, Any]:
            return {
                name: value.index_select(self.axes[name][1], index[self.axes[name][0]])
                if name in self.axes and value is not None
                else value
                for name, value in values.items()
            }

        arguments = pick(self.arguments)
        arguments |= {n: chosen.offsets() for n in arguments if n.endswith("offsets")}
        written = tuple(
            mask if mask is None or axis is None else mask.index_select(axis[1], index[axis[0]])
            for mask, axis in zip(self.written, self.output_axes, strict=True)
        )
        return replace(
            self, arguments=arguments, readable=pick(self.readable), written=written
        )


class Result(NamedTuple):
    """Outputs and gradients by name, zero where they are not defined."""

    outputs: tuple[Tensor, ...]
    gradients: dict[str, Tensor]

    def named(self) -> dict[str, Tensor]:
        """Both, as messages call them."""
        outputs = {f"output {number}": value for number, value in enumerate(self.outputs)}
        return outputs | {f"d {name}": value for name, value in self.gradients.items()}


def token_index(batch: Batch, order: Sequence[int]) -> Tensor:
    """int64: the tokens of the sequences ``order``, one sequence after the other."""
    starts = batch.offsets().tolist()
    tokens = [torch.arange(starts[i], starts[i + 1]) for i in order]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *tokens])


def masked(values: Tensor, mask: Tensor, fill: float) -> Tensor:
    """``fill`` where the mask, over the leading axes, is False."""
    mask = mask.reshape(*mask.shape, *[1] * (values.dim() - mask.dim())).to(values.device)
    return torch.where(mask, values, torch.full_like(values, fill))


def cotangents(case: OpCase, outputs: tuple[Tensor, ...], fill: float) -> list[Tensor | None]:
    """The same random gradient of an output for every backend; ``fill`` where it is not read."""
    made: list[Tensor | None] = []
    for number, (output, mask) in enumerate(zip(outputs, case.written, strict=True)):
        generator = torch.Generator().manual_seed(1000 + number)
        value = torch.randn(output.shape, generator=generator).to(output.dtype).to(output.device)
        made.append(value if mask is None else masked(value, mask, fill))
    return made


def evaluate(
    case: OpCase, backend: str, dtype: torch.dtype, device: str = "cpu", autocast: bool = False
) -> Result:
    """Outputs of an op and the gradients of its differentiable arguments.

    What nobody may read is NaN on the way in and, save for the reference, which autograd
    differentiates as it stands, on the way back.
    """
    tensors = case.tensors(dtype, device)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
        outputs = case.call(tensors, backend)
    fill = 0.0 if backend == "reference" else float("nan")
    gradients: dict[str, Tensor] = {}
    if case.differentiable:
        carrying = [
            (output, gradient)
            for output, gradient in zip(outputs, cotangents(case, outputs, fill), strict=True)
            if output.requires_grad
        ]
        found = torch.autograd.grad(
            [output for output, _ in carrying],
            [tensors[name] for name in case.differentiable],
            [gradient for _, gradient in carrying],
        )
        gradients = dict(zip(case.differentiable, found, strict=True))
    return Result(
        tuple(
            output.detach() if mask is None else masked(output.detach(), mask, 0.0)
            for output, mask in zip(outputs, case.written, strict=True)
        ),
        {
            name: masked(value, case.readable[name], 0.0) if name in case.readable else value
            for name, value in gradients.items()
        },
    )
