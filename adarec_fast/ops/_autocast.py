"""Autocast in the backward pass: autograd does not restore it, recomputation needs it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor


class Autocast(NamedTuple):
    """The autocast state of a forward pass, to be entered again in its backward pass."""

    device: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def current(cls, like: Tensor) -> Autocast:
        """The state in force for ``like``'s device type."""
        kind = like.device.type
        if not torch.is_autocast_enabled(kind):
            return cls(kind, False, torch.float32)  # a dtype that nobody will read
        return cls(kind, True, torch.get_autocast_dtype(kind))

    def restored(self) -> AbstractContextManager[object]:
        """A context manager that puts the state in force."""
        if not self.enabled and not torch.is_autocast_enabled(self.device):
            return nullcontext()
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.enabled)
