"""Training by several processes that torchrun started; see the README's "Many devices"."""

from __future__ import annotations

from .errors import WorkersError
from .workers import Workers, join, speaks

__all__ = ["Workers", "WorkersError", "join", "speaks"]
