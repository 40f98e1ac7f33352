"""How float32 numbers are multiplied in a stretch of code, on the ground floor.

A choice holds for this thread and what it calls, as autocast does; the ops record both in their
forward pass and put them in force again in their backward pass, which autograd runs elsewhere.

* ``"ieee"``: float32 as it is, on a GPU without tensor cores.
* ``"tf32"``: on a GPU operands are rounded, to nearest, to TF32's 11 bits, and tensor cores
  multiply them; sums stay float32. On a CPU the same as ``"ieee"``.
* ``"bf16"``: autocast to bfloat16.

Where nothing is chosen, torch's own switches hold: autocast, and
``torch.backends.cuda.matmul.fp32_precision``. Products that are torch's own, as those of a few rows
are, always follow them. ``torch.compile`` and ``torch.export`` trace autocast but not the choice
between the other two: there, make it around the compiled function.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from typing import Literal

import torch

from .config import Precision

Float32 = Literal["ieee", "tf32"]

_chosen: ContextVar[Float32 | None] = ContextVar("float32_products", default=None)


def chosen() -> Float32 | None:
    """What is chosen for float32 here, or None. None while torch traces, too."""
    return None if torch.compiler.is_compiling() else _chosen.get()


def of_float32() -> Float32:
    """How kernels multiply float32 here: as chosen, or else by torch's switch."""
    found = chosen()
    if found is None:
        found = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    return found


class _Choosing(AbstractContextManager[None]):
    """A choice in force; an object is entered once at a time."""

    def __init__(self, precision: Float32) -> None:
        self._precision = precision
        self._token: Token[Float32 | None] | None = None

    def __enter__(self) -> None:
        self._token = _chosen.set(self._precision)

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        _chosen.reset(self._token)


def computing(precision: Precision | None, device: str) -> AbstractContextManager[object]:
    """Multiply float32 numbers as ``precision`` says; None leaves what is in force.

    ``device`` is the type of the device, for autocast.
    """
    if precision == "bf16":
        return torch.autocast(device, dtype=torch.bfloat16)
    if precision is None or torch.compiler.is_compiling():
        return nullcontext()
    return _Choosing(precision)


def ranking(precision: Precision, device: str) -> AbstractContextManager[object]:
    """As :func:`computing`, but for scores: bfloat16's 8 bits do not tell items apart."""
    return computing("ieee" if precision == "bf16" else precision, device)
