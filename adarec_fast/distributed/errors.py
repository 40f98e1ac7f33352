"""What can go wrong between the workers of a run."""

from __future__ import annotations


class WorkersError(RuntimeError):
    """Another worker ended, hangs, or could not do what all wait for."""
