"""How fast a run goes, and how its means do, between two readings of the device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple


class Stretch(NamedTuple):
    """What happened between two readings.

    Attributes:
        seconds: of the wall's clock, above 0.
        examples: trained on.
        means: over these examples.
    """

    seconds: float
    examples: int
    means: dict[str, float]


class Clock:
    """Time and means between two readings of an epoch's running means, within one call.

    Args:
        means: of the epoch so far, by name.
        examples: how many they are over.
    """

    def __init__(self, means: Mapping[str, float], examples: int) -> None:
        self._time = time.perf_counter()
        self._examples = examples
        self._sums = _sums(means, examples)

    def read(self, means: Mapping[str, float], examples: int) -> Stretch:
        """The stretch since the last reading, whose end these means and examples are."""
        now, sums = time.perf_counter(), _sums(means, examples)
        fresh = examples - self._examples
        stretch = Stretch(
            max(now - self._time, 1e-9),
            fresh,
            {name: (value - self._sums[name]) / max(fresh, 1) for name, value in sums.items()},
        )
        self._time, self._examples, self._sums = now, examples, sums
        return stretch


def _sums(means: Mapping[str, float], examples: int) -> dict[str, float]:
    return {name: value * examples for name, value in means.items()}
