"""A phase in its own process: ``python -m bench.gpu.phase NAME RESULT SECONDS SETTINGS``."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from .record import write_json
from .run import Settings


class Results:
    """What a phase has found so far, on disk after every change: it may be killed at any time.

    Args:
        path: where.
        seconds: until it is killed.
        settings: what the run was told.
    """

    def __init__(self, path: Path, seconds: float, settings: Settings) -> None:
        self.path, self.settings = path, settings
        self.end = time.monotonic() + seconds
        self.found: dict[str, Any] = {}

    @property
    def left(self) -> float:
        """Seconds until the phase is killed."""
        return self.end - time.monotonic()

    def put(self, **values: Any) -> None:
        """Set values."""
        self.found.update(values)
        write_json(self.path, self.found)

    def add(self, name: str, row: Any) -> None:
        """Append to a list."""
        self.found.setdefault(name, []).append(row)
        write_json(self.path, self.found)

    def say(self, text: str) -> None:
        """A line for the phase's log."""
        print(text, flush=True)

    def earlier(self, phase: str) -> dict[str, Any]:
        """What an earlier phase found; empty if there is no record of it."""
        if not self.settings.record:
            return {}
        record = json.loads(Path(self.settings.record).read_text(encoding="utf-8"))
        found: dict[str, Any] = record["phases"].get(phase, {})
        return found

    def peaks(self) -> dict[str, float]:
        """The peaks that ``environment`` measured; NaN where it did not."""
        if not self.settings.record:
            return {"gflops": float("nan"), "gbps": float("nan")}
        record = json.loads(Path(self.settings.record).read_text(encoding="utf-8"))
        return {name: float("nan") if v is None else v for name, v in record["peaks"].items()}


def main(arguments: list[str]) -> int:
    """Run one phase."""
    name, path, seconds, settings = arguments
    results = Results(Path(path), float(seconds), Settings(**json.loads(settings)))
    compiled = _count_compilations()
    try:
        importlib.import_module(f"bench.gpu.phases.{name}").run(results)
    finally:
        # A prepared run compiles nothing.
        results.put(compiled=compiled)
    return 0


def _count_compilations() -> list[str]:
    """Names of the kernels that triton compiles in this process, from now on."""
    names: list[str] = []
    try:
        from triton import knobs
    except ImportError:
        return names

    def listen(*, src: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            names.append(src.name)

    knobs.compilation.listener = listen
    return names


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
