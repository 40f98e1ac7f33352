"""What every side trains, and what a side has to offer."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from adarec_fast.data import InteractionData, Split


@dataclass(frozen=True)
class Settings:
    """Of all systems alike, as far as they have the option.

    Attributes:
        hidden_size: D.
        layers, heads: of the encoder.
        feed_forward: hidden size of its feed-forward half, as a multiple of D.
        max_length: items of a history that are read; others pad to it.
        dropout: of states and of attention.
        batch_size: histories a step.
        learning_rate, clip: of Adam; the norm to which gradients are cut.
        seed: of weights, order and dropout, each by its own generator.
    """

    hidden_size: int = 64
    layers: int = 2
    heads: int = 2
    feed_forward: int = 4
    max_length: int = 50
    dropout: float = 0.5
    batch_size: int = 256
    learning_rate: float = 1e-3
    clip: float = 5.0
    seed: int = 0


@dataclass
class Clock:
    """Seconds of each step, on the wall and of all the process' threads.

    Args:
        skip: steps that come first and are not counted: buffers and caches are still cold.
    """

    skip: int
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    _started: tuple[float, float] | None = None
    _steps: int = 0

    def tick(self) -> None:
        """A step has ended, or the first is about to begin."""
        now = (time.perf_counter(), time.process_time())
        if self._started is not None and self._steps >= self.skip:
            self.wall.append(now[0] - self._started[0])
            self.cpu.append(now[1] - self._started[1])
        if self._started is not None:
            self._steps += 1
        self._started = (time.perf_counter(), time.process_time())


class Peer(Protocol):
    """A system, made from the training part of a data set.

    Attributes:
        note: how it differs from :class:`Settings`, for the table; "" if in nothing.
        parameters: how many it has.
        steps_per_epoch: batches of an epoch.
    """

    note: str
    parameters: int
    steps_per_epoch: int

    def train(self, clock: Clock, steps: int | None, epochs: int) -> None:
        """So many steps, or whole epochs where ``steps`` is None; ticks before and after each."""

    def vectors(self, histories: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Of users ``[B, D]`` and of items 1 ... V ``[V, D]``, whose products rank."""


def training_part(split: Split) -> list[list[int]]:
    """Items 1 ... V of each user that may be learned from, oldest first."""
    values, offsets = split.inputs("train")
    return [part.tolist() for part in values.tensor_split(offsets[1:-1])]


def ndcg_and_hit_rate(peer: Peer, split: Split, k: int = 20) -> dict[str, float]:
    """On validation, all items ranked but those seen; ties count against the target."""
    values, offsets = split.inputs("valid")
    histories = [part.tolist() for part in values.tensor_split(offsets[1:-1])]
    targets, found = split.targets("valid"), []
    for start in range(0, len(histories), 512):
        part = histories[start : start + 512]
        users, items = peer.vectors(part)
        scores = users.float() @ items.float().T
        for row, history in enumerate(part):
            scores[row, torch.tensor(history) - 1] = float("-inf")
        own = scores.gather(1, targets[start : start + 512, None] - 1)
        found.append((scores >= own).sum(1) - 1)
    ranks = torch.cat(found)
    gain = torch.where(ranks < k, 1 / torch.log2(ranks + 2.0), 0.0)
    return {f"NDCG@{k}": float(gain.mean()), f"HR@{k}": float((ranks < k).double().mean())}


def peak_memory() -> int:
    """The greatest resident set so far, in bytes.

    Not ``ru_maxrss``, which begins with that of the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None, "this system does not tell a process its peak"
    return int(found.group(1)) * 1024


def about(data: InteractionData) -> dict[str, Any]:
    """A data set, as a record has it."""
    return {"users": data.num_users, "items": data.num_items, "interactions": data.num_interactions}
