"""Lines on standard error of what goes on before the first step of training."""

from __future__ import annotations

import sys
import time

_EVERY = 5.0  # seconds between two lines


class Told:
    """A line at once, and then one whenever one is :attr:`due`.

    Args:
        text: of the first line.
    """

    def __init__(self, text: str) -> None:
        self.begun = time.monotonic()
        self.tell(text)

    def tell(self, text: str) -> None:
        """Write a line."""
        self._last = time.monotonic()
        sys.stderr.write(f"pdrec: {text}\n")
        sys.stderr.flush()

    @property
    def due(self) -> bool:
        """Whether the last line was some seconds ago."""
        return time.monotonic() - self._last >= _EVERY

    @property
    def seconds(self) -> str:
        """Since the first line."""
        return f"{time.monotonic() - self.begun:.0f} s"
