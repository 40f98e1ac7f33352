"""One op as a benchmark subject: its tensors, its variants, and how their results compare.

An :class:`OpCase` holds packed tensors and three ways to compute with them. ``padded`` gets them
padded to 50 tokens beforehand, so that the baseline does not pay for a conversion.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from adarec_fast import ops, ragged, rng
from adarec_fast.ops._library import OPS, unavailable

from .harness import (
    BASELINE_TINY,
    COMPILED,
    EAGER,
    MEMORY_LIMIT,
    PACKED,
    Prepared,
    Subject,
    Unavailable,
    assert_accurate,
    assert_same,
    complaint,
    ours_tiny,
    warmed,
)
from .workloads import MAX_DEPTH, MAX_LENGTH, WORKLOADS, Histories, histories

Tensors = dict[str, Tensor]
Axis = tuple[str, int]  # ("token" or "sequence", dimension)
_SEED = 7
_MOST_CHUNKS = 64
_CHECKED = 256  # sequences of a large batch that a baseline is checked on


class Part(NamedTuple):
    """Neighbouring sequences of a batch, and where they begin in it."""

    batch: Histories
    sequence: int
    token: int


class OpCase(Subject):
    """An op at one workload. A subclass is one op, or one use of it.

    Attributes:
        workloads: where it is measured by default.
        training_only, serving_only: it does not exist in the other kind of workload.
        chunkable: sequences do not depend on each other, so that a baseline that does not fit into
            memory may take them in chunks.
        stochastic: it draws noise or dropout in training.
        not_compiled: why the compiled baseline is not measured.
        differentiable: tensors that receive a gradient.
        axes: where a tensor's sequences lie; one that is not named is a weight.
        output_axes: the same for outputs; None for a number that belongs to the whole batch.
    """

    workloads: ClassVar[tuple[str, ...]] = ("train",)
    training_only: ClassVar[bool] = False
    serving_only: ClassVar[bool] = False
    chunkable: ClassVar[bool] = True
    stochastic: ClassVar[bool] = False
    not_compiled: ClassVar[str | None] = None
    differentiable: ClassVar[tuple[str, ...]] = ()
    axes: ClassVar[dict[str, Axis]] = {}
    output_axes: ClassVar[tuple[Axis | None, ...]] = (None,)
    max_length: ClassVar[int] = MAX_LENGTH
    levels: ClassVar[int] = MAX_DEPTH + 1

    def __init__(self, workload: str, size: int, direction: str, device: str) -> None:
        self.workload, self.size, self.direction, self.device = workload, size, direction, device
        self.training = WORKLOADS[workload].training
        self.backward = direction != "forward"
        self.batch = histories(workload)[0].to(device)
        self.seed = rng.as_seed(_SEED, device)
        self._gold: dict[bool, tuple[Tensors, Tensors]] = {}
        self._plain: dict[int, Tensors] = {}
        generator = torch.Generator().manual_seed(_SEED)
        self.tensors: Tensors = {
            name: value.to(device) for name, value in self.make(generator).items()
        }

    @classmethod
    def of_batch(cls, batch: Histories, size: int, direction: str) -> OpCase:
        """A case without tensors, for the ``flops`` and ``bytes`` of any histories."""
        made = cls.__new__(cls)
        made.batch, made.size, made.direction = batch, size, direction
        made.backward, made.device = direction != "forward", batch.offsets.device.type
        return made

    # -------------------------------------------------------------- what a subclass says

    def make(self, generator: torch.Generator) -> Tensors:
        """Float32 tensors, packed, on the CPU."""
        raise NotImplementedError

    def public(self, t: Tensors, batch: Histories, backend: str, seed: Tensor | None) -> Any:
        """The op of :mod:`adarec_fast.ops`; with a seed it draws noise and dropout."""
        raise NotImplementedError

    def packed(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        """Plain PyTorch on packed tokens; ``drawn``: noise and dropout from torch."""
        raise NotImplementedError

    def padded(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        """The reference on padded tensors; ``batch`` has padded ``item_ids``."""
        raise NotImplementedError

    def padded_floats(self) -> int:
        """Floats that the padded baseline holds at once, about."""
        raise NotImplementedError

    def defined(self, name: str, batch: Histories) -> Tensor | None:
        """Bool over the leading axes of a tensor or of output ``"0"``, ``"1"``, ...: where it is
        read or written; None: everywhere."""
        return None

    def finish(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What of the outputs is compared."""
        return outputs

    # -------------------------------------------------------------- helpers for subclasses

    def computed(self, batch: Histories) -> Tensor:
        """Bool ``[T+1, N]``: levels within the depth of a token's sequence."""
        return ragged.row_of_tokens(self.reached(batch), batch.offsets, batch.tokens, dim=1)

    def reached(self, batch: Histories) -> Tensor:
        """Bool ``[T+1, B]``."""
        return ragged.reached_levels(batch.depth, self.levels)

    def valid(self, batch: Histories) -> Tensor:
        """Bool ``[B, L]``."""
        return ragged.padding_mask(batch.offsets, self.max_length)

    @property
    def passes(self) -> int:
        """Matrix products of a direction, in units of the forward pass's."""
        return 3 if self.backward else 1

    # -------------------------------------------------------------- variants

    @classmethod
    def option_name(cls) -> str:
        """What ``--op`` calls it."""
        return cls.name

    @classmethod
    def directions(cls, workload: str) -> tuple[str, ...]:
        """What is timed at a workload."""
        return WORKLOADS[workload].directions

    @classmethod
    def variants(cls, device: str) -> list[str]:
        """Baselines and every backend written for the device, the reference (a baseline) aside."""
        backends = OPS[cls.name].backends(device)
        return [EAGER, COMPILED, PACKED, *(b for b in backends if b != "reference")]

    def prepare(self, variant: str) -> Prepared:
        if variant == EAGER:
            return self._padded(compiled=False)
        if variant == COMPILED:
            if self.not_compiled:
                raise Unavailable(self.not_compiled)
            return self._padded(compiled=True)
        if variant == PACKED:
            return self._prepared(self.packed, {}, padded=False)
        return self._backend(variant)

    def _backend(self, backend: str) -> Prepared:
        why = unavailable(self.name, backend, self.device)
        if why is not None:
            raise Unavailable(why)
        choice = ops.explain(self.name, "auto", self.device).backend
        if backend == "packed" and choice != "packed":
            raise Unavailable(f"the fallback; {choice} runs here")

        def call(t: Tensors, batch: Histories, drawn: bool) -> Any:
            return self.public(t, batch, backend, self.seed if drawn else None)

        info = {"ours": backend == choice}
        return self._prepared(call, info, padded=False, check_drawn=self.checked_drawn)

    @property
    def checked_drawn(self) -> bool:
        """Backends draw the reference's own noise, so they are checked as they are timed.

        A large case is checked without: what it is compared with draws its noise in chunks.
        """
        return self.stochastic and self.training and self.workload != "large"

    def _padded(self, *, compiled: bool) -> Prepared:
        chunks = self._chunks()
        call: Callable[..., Any] = self.padded
        if compiled:
            mode = "reduce-overhead" if self.device == "cuda" else None
            call = torch.compile(call, fullgraph=True, dynamic=False, mode=mode)
        info = {"chunks": chunks} if chunks > 1 else {}
        return self._prepared(call, info, padded=True, chunks=chunks, first=not compiled)

    def _chunks(self) -> int:
        limit = MEMORY_LIMIT
        if self.device == "cuda":
            limit = int(0.6 * torch.cuda.get_device_properties(0).total_memory)
        needed = 4 * self.padded_floats()
        chunks = 1
        while needed > limit * chunks:
            chunks *= 2
        if chunks > 1 and (not self.chunkable or chunks > min(_MOST_CHUNKS, self.batch.batch)):
            raise Unavailable(
                f"padded it needs about {needed / 2**30:.0f} GiB, more than {limit / 2**30:.0f}"
            )
        return chunks

    def _prepared(
        self,
        call: Callable[..., Any],
        info: dict[str, Any],
        *,
        padded: bool,
        chunks: int = 1,
        check_drawn: bool = False,
        first: bool = True,
    ) -> Prepared:
        parts = self._parts(chunks)
        inputs = [self._inputs(part, padded) for part in parts]
        drawn = self.stochastic and self.training

        def run(drawn: bool = drawn) -> list[Any]:
            return [self._once(call, *given, drawn) for given in inputs]

        made: list[list[Any]] = []

        def kept() -> None:
            made.clear()
            made.append(run())

        memory = warmed(kept, self.device, first=first)
        result = made.pop()
        if check_drawn != drawn:
            if self.workload == "large":  # another call of the whole takes many seconds
                parts = [Part(self.batch.part(0, _CHECKED), 0, 0)]
            result = [self._once(call, *self._inputs(p, padded), check_drawn) for p in parts]
        wrong = complaint(
            lambda: self._check(parts, result, padded, check_drawn, "ours" in info)
        )
        return Prepared(run, {**info, **memory}, wrong)

    def _parts(self, chunks: int) -> list[Part]:
        count = self.batch.batch // chunks
        starts = range(0, self.batch.batch, count)
        return [
            Part(self.batch.part(low, low + count), low, int(self.batch.offsets[low]))
            for low in starts
        ]

    def _inputs(self, part: Part, padded: bool) -> tuple[Tensors, Histories, list[Tensor]]:
        """Tensors, batch and cotangents of a part of the batch."""
        batch = part.batch

        def of_part(value: Tensor, axis: Axis | None) -> Tensor:
            if axis is None:
                return value
            kind, dim = axis
            if kind == "sequence":
                return value.narrow(dim, part.sequence, batch.batch)
            value = value.narrow(dim, part.token, batch.tokens)
            if padded:
                return ragged.to_padded(value, batch.offsets, self.max_length, dim=dim)
            return value

        tensors: Tensors = {}
        for name, value in self.tensors.items():
            own = of_part(value, self.axes.get(name)).detach().clone()
            tensors[name] = own.requires_grad_(self.backward and name in self.differentiable)
        cotangents = []
        if self.backward:
            pairs = zip(self._cotangents, self.output_axes, strict=True)
            cotangents = [of_part(gradient, axis) for gradient, axis in pairs]
        if padded:
            batch = replace(batch, item_ids=batch.padded_ids())
        return tensors, batch, cotangents

    @functools.cached_property
    def _cotangents(self) -> list[Tensor]:
        """A fixed random gradient for every output, zero where the output is not defined."""
        with torch.no_grad():
            outputs = _tuple(self.packed(self.tensors, self.batch, False))
        made = []
        for number, output in enumerate(outputs):
            generator = torch.Generator().manual_seed(number)
            value = torch.randn(output.shape, generator=generator).to(output)
            made.append(_masked(value, self.defined(str(number), self.batch)))
        return made

    def _once(
        self,
        call: Callable[..., Any],
        t: Tensors,
        batch: Histories,
        cotangents: list[Tensor],
        drawn: bool,
    ) -> Any:
        if not self.backward:
            with torch.no_grad():
                return _tuple(call(t, batch, drawn)), ()
        outputs = _tuple(call(t, batch, drawn))
        pairs = [
            (o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad
        ]
        gradients = torch.autograd.grad(
            [o for o, _ in pairs], [t[name] for name in self.differentiable],
            [c.to(o.dtype) for o, c in pairs],
        )
        return outputs, gradients

    # -------------------------------------------------------------- correctness

    def _results(
        self, results: list[Any], whole: Histories, parts: list[Part], padded: bool
    ) -> Tensors:
        """Outputs and gradients by name in the packed layout, 0 where they are not defined."""

        def joined(pieces: list[Tensor], axis: Axis | None, name: str) -> Tensor:
            pieces = [piece.detach() for piece in pieces]
            if axis is None:
                return sum(pieces[1:], pieces[0])
            if padded and axis[0] == "token":
                pieces = [
                    ragged.from_padded(
                        piece, part.batch.offsets, part.batch.tokens, dim=axis[1]
                    )
                    for piece, part in zip(pieces, parts, strict=True)
                ]
            return _masked(torch.cat(pieces, axis[1]), self.defined(name, whole))

        outputs = tuple(
            joined([made[number] for made, _ in results], axis, str(number))
            for number, axis in enumerate(self.output_axes)
        )
        found = {f"output {number}": value for number, value in enumerate(self.finish(outputs))}
        if self.backward:
            for number, name in enumerate(self.differentiable):
                pieces = [gradients[number] for _, gradients in results]
                found[f"d {name}"] = joined(pieces, self.axes.get(name), name)
        return found

    def evaluate(
        self, backend: str, dtype: torch.dtype, drawn: bool, device: str | None = None
    ) -> Tensors:
        """Outputs and gradients of a backend, with the noise of the contract if ``drawn``.

        Args:
            backend: of the op.
            dtype: of the floating tensors.
            drawn: whether noise and dropout are.
            device: the case's own by default.
        """
        batch = self.batch.to(device or self.device)
        result = self.run(backend, dtype, drawn, device)
        return self._results([result], batch, [Part(batch, 0, 0)], False)

    def run(
        self, backend: str, dtype: torch.dtype, drawn: bool, device: str | None = None
    ) -> Any:
        """As :meth:`evaluate`: outputs and gradients as they come."""
        device = device or self.device
        batch, seed = self.batch.to(device), self.seed.to(device) if drawn else None
        tensors = {}
        for name, value in self.tensors.items():
            own = value.detach().to(device)
            own = own.to(dtype) if own.is_floating_point() else own
            wanted = self.backward and name in self.differentiable
            tensors[name] = own.clone().requires_grad_(wanted)
        return self._once(
            lambda t, b, _: self.public(t, b, backend, seed),
            tensors, batch, [c.to(device) for c in self._cotangents] if self.backward else [],
            drawn,
        )

    def _packed_float32(self, batch: Histories) -> Tensors:
        """Of the first sequences of the batch, or of all."""
        if batch.batch not in self._plain:
            part = Part(batch, 0, 0)
            result = self._once(self.packed, *self._inputs(part, False), False)
            self._plain[batch.batch] = self._results([result], batch, [part], False)
        return self._plain[batch.batch]

    def _check(
        self, parts: list[Part], result: list[Any], padded: bool, drawn: bool, ours: bool
    ) -> None:
        """Compare with the float64 reference; at ``large``, with packed float32 results."""
        last = parts[-1]
        whole = self.batch.part(0, last.sequence + last.batch.batch)
        found = self._results(result, whole, parts, padded)
        if self.workload == "large":
            for name, value in self._packed_float32(whole).items():
                assert_same(found[name], value, f"{self.name}: {name}")
            return
        if drawn not in self._gold:
            self._gold[drawn] = (
                self.evaluate("reference", torch.float32, drawn, "cpu"),
                self.evaluate("reference", torch.float64, drawn, "cpu"),
            )
        same, gold = self._gold[drawn]
        terms = max(self.batch.level_tokens, 4 * self.size)
        tiny = ours_tiny(self.device, terms) if ours else BASELINE_TINY
        for name, value in gold.items():
            assert_accurate(found[name], same[name], value, f"{self.name}: {name}", tiny)


def _tuple(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, tuple) else (result,)


def _masked(value: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return value
    mask = mask.reshape(*mask.shape, *[1] * (value.dim() - mask.dim())).to(value.device)
    return torch.where(mask, value, torch.zeros_like(value))


def normal(generator: torch.Generator, *shape: int, fan_in: int = 1) -> Tensor:
    """Normal(0, 1 / fan_in)."""
    return torch.randn(shape, generator=generator) / fan_in**0.5
