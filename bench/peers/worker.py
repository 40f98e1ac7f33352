"""One system in a process of its own: trains, and prints what it took as one line of JSON.

    python -m bench.peers.worker NAME --data FILE (--steps N [--skip N] | --epochs N)
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections.abc import Callable
from typing import Any

import torch

import adarec_fast
from adarec_fast.data import Split, load

from .settings import Clock, Peer, Settings, ndcg_and_hit_rate, peak_memory


def _version(distribution: str) -> str:
    # A checkout on the path has no metadata.
    own = distribution == "adarec_fast"
    return adarec_fast.__version__ if own else importlib.metadata.version(distribution)


def _plain(split: Split, settings: Settings, compiled: bool) -> Peer:
    from .ours import PlainSASRec

    return PlainSASRec(split, settings, compiled)


def _ours(split: Split, settings: Settings, name: str) -> Peer:
    from .ours import Ours

    return Ours(name, split, settings)


def _replay(split: Split, settings: Settings) -> Peer:
    from .replay_sasrec import RePlaySASRec

    return RePlaySASRec(split, settings)


def _rectools(split: Split, settings: Settings) -> Peer:
    from .rectools_sasrec import RecToolsSASRec

    return RecToolsSASRec(split, settings)


# Name, the distribution whose version counts, and how it is made; the last two are ours.
SYSTEMS: dict[str, tuple[str, Callable[[Split, Settings], Peer]]] = {
    "RecTools' SASRec": ("RecTools", _rectools),
    "RePlay's SASRec": ("replay-rec", _replay),
    "packed SASRec": ("torch", lambda split, settings: _plain(split, settings, False)),
    "compiled packed SASRec": ("torch", lambda split, settings: _plain(split, settings, True)),
    "sasrec": ("adarec_fast", lambda split, settings: _ours(split, settings, "sasrec")),
    "adarec": ("adarec_fast", lambda split, settings: _ours(split, settings, "adarec")),
}


def run(name: str, data: str, steps: int | None, skip: int, epochs: int, threads: int) -> Any:
    """What a system took.

    Args:
        name: of :data:`SYSTEMS`.
        data: a file that :func:`adarec_fast.data.load` reads.
        steps: counted steps in the middle of the first epoch, after ``skip`` others; None for whole
            epochs, after which quality is measured.
        epochs: how many, where ``steps`` is None.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    split = Split(load(data))
    base = peak_memory()
    distribution, make = SYSTEMS[name]
    peer = make(split, Settings())
    clock = Clock(skip if steps is not None else 0)
    peer.train(clock, None if steps is None else skip + steps, epochs)
    found: dict[str, Any] = {
        "system": name,
        "version": _version(distribution),
        "note": peer.note,
        "parameters": peer.parameters,
        "steps_per_epoch": peer.steps_per_epoch,
        "wall_seconds": clock.wall,
        "cpu_seconds": clock.cpu,
        "peak_bytes": peak_memory(),
        "base_bytes": base,
    }
    if steps is None:
        found["epochs"] = epochs
        found["valid"] = ndcg_and_hit_rate(peer, split)
    return found


def main() -> int:
    """Run, and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.worker", description=__doc__)
    parser.add_argument("name", choices=list(SYSTEMS))
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--skip", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    found = run(given.name, given.data, given.steps, given.skip, given.epochs, given.threads)
    print("\n" + json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
