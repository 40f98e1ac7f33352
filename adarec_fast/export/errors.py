"""What can go wrong with an export."""

from __future__ import annotations


class ExportError(RuntimeError):
    """A format that could not be made, or whose answers differ from the model's."""
