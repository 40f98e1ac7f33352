"""Training by several processes that torchrun started; see docs/many-devices.md."""

from __future__ import annotations

from .errors import WorkersError
from .workers import Workers, join, speaks

__all__ = ["Workers", "WorkersError", "join", "speaks"]
