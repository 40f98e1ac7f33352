"""Autocast and the choice of products in the backward pass: autograd restores neither."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ..precision import Float32, chosen, computing


class Autocast(NamedTuple):
    """The state of a forward pass, to be entered again in its backward pass.

    ``products`` is what :mod:`adarec_fast.precision` had chosen for float32.
    """

    device: str
    enabled: bool
    dtype: torch.dtype
    products: Float32 | None

    @classmethod
    def current(cls, like: Tensor) -> Autocast:
        """The state in force for ``like``'s device type."""
        kind = like.device.type
        if not torch.is_autocast_enabled(kind):
            # A dtype that nobody will read.
            return cls(kind, False, torch.float32, chosen())
        return cls(kind, True, torch.get_autocast_dtype(kind), chosen())

    def restored(self) -> AbstractContextManager[object]:
        """A context manager that puts the state in force."""
        if not self.enabled and not torch.is_autocast_enabled(self.device):
            return computing(self.products, self.device)
        autocast = torch.autocast(self.device, dtype=self.dtype, enabled=self.enabled)
        if self.products is None:
            return autocast
        return _both(computing(self.products, self.device), autocast)


@contextmanager
def _both(
    one: AbstractContextManager[object], other: AbstractContextManager[object]
) -> Iterator[None]:
    with one, other:
        yield
