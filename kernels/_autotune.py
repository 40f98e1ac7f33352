"""Tile shapes measured on the machine at hand, instead of those that ``_heuristics`` fixes.

Opt-in: ``ADAREC_FAST_AUTOTUNE=1`` before the first op. The first call of an op then times other
tiles for each of its kernels whose (kernel, architecture, D, precision, rows rounded up to a power
of two) was not measured yet; that takes seconds to minutes a kernel, most of it compilation. The
best is kept in ``triton-tiles-<hash>.json`` in the extension's cache folder, one file for each
triton, GPU and version of the kernels, so that it is measured once on a machine. Nothing is
measured while a CUDA graph is captured: the tile is then the one in the file, or the fixed one.
Variants of a kernel (last positions only, without dropout) share its tile: the first one that runs
is measured.

Results do not depend on tiles but for rounding; without the switch they are the same on every
machine of an architecture.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from ..ops.extension import cache_dir, locked
from ._heuristics import Key, Tile, choosing

ENVIRONMENT = "ADAREC_FAST_AUTOTUNE"
FORMAT = 1
# A tile replaces another only if it is faster by more than measurements scatter.
MARGIN = 0.97
ROUNDS = 3
REPEATS = 7
# Clocks that the device waits, so that the host has launched an op before its first kernel runs.
HEAD_START = 2_000_000
LARGEST = Tile(rows=128, chunk=256, num_warps=16, num_stages=4, max_registers=255)
SMALLEST = Tile(rows=16, chunk=16, num_warps=1, num_stages=1)

# Milliseconds of a call of an op.
Timer = Callable[[Callable[[], object]], float]


def enabled() -> bool:
    """Whether the switch is on."""
    return os.environ.get(ENVIRONMENT) == "1"


def device_time(call: Callable[[], object]) -> float:
    """The median of some calls on the current stream, without the host's share."""
    call()  # compiles
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    found = []
    for _ in range(REPEATS):
        torch.cuda._sleep(HEAD_START)
        start.record()
        call()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end))
    return sorted(found)[REPEATS // 2]


def neighbours(tile: Tile) -> list[Tile]:
    """Tiles that differ in one thing: half or twice as much, one stage, or free registers."""
    found = [
        tile._replace(**{name: value})
        for name in ("rows", "chunk", "num_warps")
        for value in (getattr(tile, name) // 2, getattr(tile, name) * 2)
        if getattr(SMALLEST, name) <= value <= getattr(LARGEST, name)
    ]
    found += [
        tile._replace(num_stages=stages)
        for stages in (tile.num_stages - 1, tile.num_stages + 1)
        if SMALLEST.num_stages <= stages <= LARGEST.num_stages
    ]
    # More warps than eight cannot have that many registers each.
    if tile.max_registers is not None:
        found.append(tile._replace(max_registers=None))
    elif tile.num_warps <= 8:
        found.append(tile._replace(max_registers=LARGEST.max_registers))
    return [t for t in found if t.num_warps <= 8 or t.max_registers is None]


def search(fixed: Tile, milliseconds: Callable[[Tile], float]) -> tuple[Tile, dict[Tile, float]]:
    """Walk from the fixed tile to the best neighbour while that is faster; all that was timed."""
    timed = {fixed: milliseconds(fixed)}
    best = fixed
    for _ in range(ROUNDS):
        for tile in neighbours(best):
            if tile not in timed:
                timed[tile] = _if_it_fits(milliseconds, tile)
        leader = min(timed, key=lambda tile: timed[tile])
        if timed[leader] > MARGIN * timed[best]:
            break
        best = leader
    return best, timed


def _if_it_fits(milliseconds: Callable[[Tile], float], tile: Tile) -> float:
    try:
        return milliseconds(tile)
    except (OutOfResources, PTXASError, CompilationError):
        return math.inf


@functools.cache
def source_hash() -> str:
    """Of all kernels and their launchers: other code, other measurements."""
    state = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        state.update(path.name.encode() + b"\0" + path.read_bytes())
    return state.hexdigest()[:20]


class Tiles:
    """The file of measured tiles of one GPU.

    Args:
        gpu: its name.
    """

    def __init__(self, gpu: str) -> None:
        self.header = {
            "format": FORMAT, "triton": triton.__version__, "gpu": gpu, "sources": source_hash(),
        }
        digest = hashlib.sha256(json.dumps(self.header).encode()).hexdigest()[:20]
        self.path = cache_dir() / f"triton-tiles-{digest}.json"

    def read(self) -> dict[str, dict[str, Any]]:
        """Entries by key: a tile's fields, and what was measured. Warns of a file it ignores."""
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            header = {name: document[name] for name in self.header}
            if header != self.header:
                raise ValueError(f"it is of {header}, not {self.header}")
            entries: dict[str, dict[str, Any]] = document["tiles"]
            for entry in entries.values():
                tile_of(entry)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(
                f"adarec_fast: {self.path} is ignored and will be replaced: "
                f"{type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return {}
        return entries

    def write(self, entries: dict[str, dict[str, Any]]) -> None:
        """Replace the file; whoever calls holds its lock."""
        staged = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        document = {**self.header, "tiles": dict(sorted(entries.items()))}
        staged.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        os.replace(staged, self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time measures, the others wait and read."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_suffix(".lock")):
            yield


def tile_of(entry: dict[str, Any]) -> Tile:
    """The tile of an entry. Raises ValueError or TypeError where a field is none that we wrote."""
    tile = Tile(*(entry[name] for name in Tile._fields))
    for name, value in tile._asdict().items():
        most = getattr(LARGEST, name)
        if name == "max_registers" and value is None:
            continue
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name}={value!r} is not from 1 to {most}")
    return tile


class Tuner:
    """Runs ops of one GPU with measured tiles, and measures those it lacks.

    Args:
        gpu: the GPU's name.
        timer: how long a call takes.
    """

    def __init__(self, gpu: str, timer: Timer = device_time) -> None:
        self.tiles, self.timer = Tiles(gpu), timer
        self.known = {key: tile_of(entry) for key, entry in self.tiles.read().items()}
        self._turn = threading.RLock()

    def run(self, op: Callable[..., Any], *arguments: Any) -> Any:
        """``op(*arguments)``. The first call with a new key runs it more often, for its time."""
        asked: dict[Key, Tile] = {}

        def choose(key: Key, fixed: Tile) -> Tile:
            asked[key] = fixed
            return self.known.get(str(key), fixed)

        with choosing(choose):
            result = op(*arguments)
        if any(str(key) not in self.known for key in asked) and not _capturing():
            with self._turn:
                for key, fixed in asked.items():
                    if str(key) not in self.known:
                        self._measure(key, fixed, functools.partial(op, *arguments))
        return result

    def _measure(self, key: Key, fixed: Tile, call: Callable[[], object]) -> None:
        try:
            with self.tiles.locked():
                entries = self.tiles.read()
                if str(key) not in entries:
                    entries[str(key)] = self._entry(key, fixed, call)
                    self.tiles.write(entries)
                self.known[str(key)] = tile_of(entries[str(key)])
        except OSError as error:
            # Not known to the file, but to this process: it is not measured again.
            self.known.setdefault(str(key), fixed)
            warnings.warn(
                f"adarec_fast: measured tiles cannot be kept in {self.tiles.path} "
                f"({error.strerror}); the fixed ones are used",
                RuntimeWarning,
                stacklevel=2,
            )

    def _entry(self, key: Key, fixed: Tile, call: Callable[[], object]) -> dict[str, Any]:
        def milliseconds(tile: Tile) -> float:
            with choosing(lambda k, f: tile if k == key else self.known.get(str(k), f)):
                return self.timer(call)

        best, timed = search(fixed, milliseconds)
        sys.stderr.write(
            f"adarec_fast: {key}: {timed[fixed]:.4g} ms as fixed, {timed[best]:.4g} ms with "
            f"{best._asdict() if best != fixed else 'nothing better'} of {len(timed)} tiles\n"
        )
        return {
            **best._asdict(), "milliseconds": timed[best], "fixed_milliseconds": timed[fixed],
            "timed": len(timed),
        }


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


@functools.cache
def _tuner(gpu: str) -> Tuner:
    return Tuner(gpu)


def tuned(op: Callable[..., Any]) -> Callable[..., Any]:
    """An op's launcher, with measured tiles where it runs on a GPU."""

    @functools.wraps(op)
    def run(*arguments: Any) -> Any:
        device = next(a.device for a in arguments if isinstance(a, Tensor))
        if device.type != "cuda":
            return op(*arguments)
        with torch.cuda.device(device):
            return _tuner(torch.cuda.get_device_name(device)).run(op, *arguments)

    return run
