"""How a comparison is made: every variant checked first, then all timed in interleaved rounds.

A :class:`Subject` is what is measured (an op, the training step, a recommendation) at one workload,
size and direction; a variant is one way to compute it. pytest-benchmark times one callable after
the other, so that a machine that slows down for a minute would spoil a ratio. Here the rounds of a
comparison's variants follow each other in turn, and each variant's test afterwards hands its
rounds to pytest-benchmark through :func:`replay_clock`, a clock that advances by them.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .machine import peak_memory, synchronize

EAGER, COMPILED, PACKED = "eager padded", "compiled padded", "packed eager"
MEMORY_LIMIT = 12 * 2**30  # for a baseline on a CPU; more is not measured, or done in chunks
# Seconds; shorter calls are repeated inside a round. The first call of a round finds the caches as
# another variant left them, which costs it up to half a millisecond: a small part of so long a
# round, and the more alike for variants that take a tenth of each other's time.
_SHORTEST_ROUND = 5e-3
_MAX_ROUNDS = 300
_SLOW, _PATIENCE = 2.0, 12.0  # seconds: of longer calls as many rounds as fit, at least one


class Unavailable(Exception):
    """A variant that cannot be measured here; the message says why."""


@dataclass
class Prepared:
    """A checked variant.

    Attributes:
        run: one call, without synchronisation.
        before: called before each call, outside its time; None for nothing.
        info: what else its row says, e.g. ``chunks``.
        complaint: what its check found wrong. It is timed all the same: a time on a device that is
            there for minutes is worth having, and its test fails afterwards.
    """

    run: Callable[[], object]
    info: dict[str, Any] = field(default_factory=dict)
    complaint: str | None = None
    before: Callable[[], object] | None = None


class Subject:
    """Something to measure. Subclasses set the attributes and prepare variants.

    Attributes:
        name, form: what; ``form`` tells two uses of one op apart.
        workload, size, direction: where; D, and ``"forward"``, ``"forward+backward"`` or
            ``"step"``.
        device: ``"cpu"`` or ``"cuda"``.
        slow: left out unless ``--op`` or ``-m`` asks for it.
    """

    name: str
    form: str = ""
    slow: ClassVar[bool] = False
    workload: str
    size: int
    direction: str
    device: str

    def flops(self) -> int:
        """Floating-point operations in matrix products that the result needs, padding apart."""
        raise NotImplementedError

    def bytes(self) -> int:
        """Bytes that must move at least: each input read once, each output written once."""
        raise NotImplementedError

    def prepare(self, variant: str) -> Prepared:
        """Build a variant, compare it with the reference and warm it up.

        Raises:
            Unavailable: it cannot run here, or would not fit into memory.
        """
        raise NotImplementedError


@dataclass
class Outcome:
    """What became of a variant: rounds (seconds a call), or why there are none."""

    rounds: list[float] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    complaint: str | None = None
    unavailable: str | None = None
    error: Exception | None = None


def complaint(check: Callable[[], None]) -> str | None:
    """What a check finds wrong, or None."""
    try:
        check()
    except AssertionError as wrong:
        return str(wrong)
    return None


def compare(
    subject: Subject, variants: Sequence[str], *, seconds: float, least_rounds: int
) -> dict[str, Outcome]:
    """Check every variant, then time all that run; ``Outcome.complaint`` tells what is wrong.

    Args:
        subject: what is measured.
        variants: in the order of the table.
        seconds: time for the rounds of one variant, on average.
        least_rounds: at least so many of each; fewer, but one, of calls of several seconds.
    """
    outcomes = {variant: Outcome() for variant in variants}
    runs: dict[str, Prepared] = {}
    for variant, outcome in outcomes.items():
        if variant == COMPILED:
            # Shapes of other comparisons would count against this one's recompilations.
            torch.compiler.reset()
        try:
            prepared = subject.prepare(variant)
        except Unavailable as reason:
            outcome.unavailable = str(reason)
        except Exception as error:  # reported by the variant's own test
            outcome.error = error
        else:
            runs[variant], outcome.info = prepared, prepared.info
            outcome.complaint = prepared.complaint
    if runs:
        for variant, rounds in interleaved(runs, subject.device, seconds, least_rounds).items():
            outcomes[variant].rounds = rounds
    return outcomes


def interleaved(
    runs: dict[str, Prepared], device: str, seconds: float, least_rounds: int
) -> dict[str, list[float]]:
    """Seconds a call of every round of every variant, the variants taking turns.

    Args:
        runs: what to time, by name.
        device: synchronised around a round.
        seconds, least_rounds: as in :func:`compare`.
    """

    def timed(prepared: Prepared, count: int) -> float:
        run, before = prepared.run, prepared.before
        if before is not None:
            taken = 0.0
            for _ in range(count):
                before()
                synchronize(device)
                started = time.perf_counter()
                run()
                synchronize(device)
                taken += time.perf_counter() - started
            return taken / count
        synchronize(device)
        started = time.perf_counter()
        for _ in range(count):
            run()
        synchronize(device)
        return (time.perf_counter() - started) / count

    rounds: dict[str, list[float]] = {variant: [] for variant in runs}
    repeats, most = {}, {}
    gc.collect()
    gc.disable()
    try:
        for variant, prepared in runs.items():
            once = timed(prepared, 1)
            repeats[variant] = max(1, math.ceil(_SHORTEST_ROUND / max(once, 1e-9)))
            most[variant] = _MAX_ROUNDS
            if once > _SLOW:  # a call that long, checked and warm, is a round
                rounds[variant].append(once)
                most[variant] = min(least_rounds, max(1, int(_PATIENCE / once)))
        end = time.perf_counter() + seconds * len(runs)
        for number in range(_MAX_ROUNDS):
            if number >= least_rounds and time.perf_counter() >= end:
                break
            for variant, prepared in runs.items():
                if len(rounds[variant]) < most[variant]:
                    rounds[variant].append(timed(prepared, repeats[variant]))
    finally:
        gc.enable()
    return rounds


def warmed(run: Callable[[], object], device: str, *, first: bool) -> dict[str, Any]:
    """Peak memory of a call: of the first one, or, after a compilation, of the second."""
    if not first:
        run()
        synchronize(device)
    return {"peak_memory": peak_memory(run, device)}


_now = 0.0


def replay_clock() -> float:
    """The clock that pytest-benchmark reads; it stands still between replayed rounds."""
    return _now


def replay(rounds: list[float]) -> Callable[[], None]:
    """A callable that takes, by :func:`replay_clock`, as long as each round took in turn."""
    waiting = iter(rounds)

    def run() -> None:
        global _now
        _now += next(waiting)

    return run


OURS_TINY, BASELINE_TINY = 2.0**-21, 2.0**-16
_ROUNDING = 2.0**-24


def ours_tiny(device: str, terms: int) -> float:
    """``tiny`` of our results: eight roundings, and what a GPU's arithmetic adds.

    As in the tests' rule for CUDA (``tests/support/helpers_accuracy.py`` derives it): functions of
    two units in the last place, four roundings, of which eight follow one another at most; and sums
    of ``terms`` one after the other, which walk 3 sqrt(terms) roundings far.
    """
    if device != "cuda":
        return OURS_TINY
    return OURS_TINY + _ROUNDING * (4 * 8 + 3 * terms**0.5)


def assert_accurate(
    ours: Tensor, same: Tensor, gold: Tensor, name: str, tiny: float = OURS_TINY
) -> None:
    """|ours - gold| <= 2 |same - gold| + tiny |gold|, maxima over the tensor.

    ``gold`` is the reference in float64, ``same`` the reference in float32: we may err twice as
    much as plain PyTorch, and by ``ours_tiny`` where that errs by luck not at all. A baseline must
    compute the same thing, no more (``BASELINE_TINY``): what Inductor makes of it is not ours to
    hold to that.
    """
    ours, same, gold = (t.detach().double().cpu() for t in (ours, same, gold))
    assert ours.shape == gold.shape, f"{name}: {list(ours.shape)} is not {list(gold.shape)}"
    error, allowed = (ours - gold).abs().max(), (same - gold).abs().max()
    bound = 2 * allowed + tiny * gold.abs().max()
    assert error <= bound, f"{name}: off by {error:.2e}, allowed {bound:.2e}"


def assert_same(ours: Tensor, other: Tensor, name: str) -> None:
    """Two float32 results of a large case agree within 2^-13 of the greatest value."""
    assert ours.shape == other.shape, f"{name}: {list(ours.shape)} is not {list(other.shape)}"
    error, scale = (ours - other).abs().max(), other.abs().max()
    assert error <= 2.0**-13 * scale, f"{name}: off by {error:.2e} at a scale of {scale:.2e}"
