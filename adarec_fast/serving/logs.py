"""What the server writes to its log."""

from __future__ import annotations

import copy
import logging
import time
from typing import Any

from uvicorn.config import LOGGING_CONFIG

_INTERVAL = 60.0  # seconds


class Sparing(logging.Filter):
    """A warning that comes again is written once a minute, with how often it came meanwhile.

    uvicorn warns of every malformed request and of every connection beyond the limit, so that a
    client could fill a disk.
    """

    def __init__(self) -> None:
        super().__init__()
        self._written: dict[str, float] = {}
        self._held_back: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write ``record``; errors and mere information always are."""
        if record.levelno != logging.WARNING:
            return True
        now = time.monotonic()
        if now - self._written.get(record.msg, -_INTERVAL) < _INTERVAL:
            self._held_back[record.msg] = self._held_back.get(record.msg, 0) + 1
            return False
        self._written[record.msg] = now
        times = self._held_back.pop(record.msg, 0)
        if times:
            text = record.getMessage()
            record.msg, record.args = f"{text} ({times} more since this was last written)", None
        return True


def log_config() -> dict[str, Any]:
    """uvicorn's own logging, sparing of warnings."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["filters"] = {"sparing": {"()": Sparing}}
    config["handlers"]["default"]["filters"] = ["sparing"]
    return config
