"""One worker of several: it answers, and takes another model when the supervisor says so.

Messages are JSON, one a packet of a socket pair. The supervisor sends ``prepare`` (with a model in
shared memory), ``took`` (what came of it), ``drain`` and ``stop``; the worker ``up``, ``ready``,
``failed`` and ``reload``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .config import ServeConfig
from .handover import attach
from .metrics import Metrics
from .peers import Peers
from .reload import ReloadStatus, why
from .served import ServedModel, Source, warm
from .server import Server, server_settings
from .service import Service

LARGEST = 1 << 15  # bytes of a message


class Generation:
    """The number of the model that serves, in memory that all workers see.

    One aligned word is written at once: from then on no worker begins a request with the old model.
    """

    def __init__(self) -> None:
        self._word = memoryview(mmap.mmap(-1, 8)).cast("q")

    @property
    def value(self) -> int:
        return self._word[0]

    @value.setter
    def value(self, number: int) -> None:
        self._word[0] = number


def told(channel: socket.socket, what: str, *descriptors: int, **values: Any) -> bool:
    """Send a message; whether there was somebody to take it."""
    message = json.dumps({"what": what, **values}).encode()
    try:
        socket.send_fds(channel, [message], list(descriptors))
    except OSError:
        return False
    return True


def heard(channel: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The message that is there, and descriptors; None where the other side has ended."""
    try:
        message, descriptors, _, _ = socket.recv_fds(channel, LARGEST, 1)
    except ConnectionError:
        return None
    if not message:
        return None
    found: dict[str, Any] = json.loads(message)
    return found, descriptors


class Follower:
    """The model that all workers serve, as one of them has it.

    Of :class:`~adarec_fast.serving.reload.Models`; to be read in the event loop alone.

    Args:
        model: that serves at first.
        generation: of the model that is to serve now.
        channel: to the supervisor.
        source: how models are made warm.
        metrics: told of every change.
    """

    def __init__(
        self, model: ServedModel, generation: Generation, channel: socket.socket, source: Source,
        metrics: Metrics,
    ) -> None:
        self._model, self._generation, self._channel = model, generation, channel
        self._source, self._metrics = source, metrics
        self._next: tuple[int, ServedModel] | None = None
        self._thread: threading.Thread | None = None
        self.status = ReloadStatus()
        metrics.show(model)

    @property
    def model(self) -> ServedModel:
        """Of a request that comes now."""
        following = self._next
        if following is not None and following[0] == self._generation.value:
            self._next, self._model = None, following[1]
            self._metrics.show(self._model)
        return self._model

    def start(self) -> None:
        """Nothing: the supervisor begins."""

    def request(self) -> None:
        """Ask the supervisor for the run folder's model, on behalf of all workers."""
        told(self._channel, "reload")

    def close(self) -> None:
        """Nothing: the supervisor prepares no model any more."""

    def wait(self, timeout: float) -> bool:
        """Whether no model is being prepared after ``timeout`` seconds."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def prepare(self, descriptor: int, generation: int) -> None:
        """Make a model ready aside, in a thread, and say so."""
        self._thread = threading.Thread(
            target=self._prepare, args=(descriptor, generation, self._thread),
            name="adarec-follower", daemon=True,
        )  # fmt: skip
        self._thread.start()

    def _prepare(self, descriptor: int, generation: int, before: threading.Thread | None) -> None:
        if before is not None:  # of an attempt that was given up
            before.join()
        try:
            model = attach(descriptor)
            warm(model, self._source)
        except Exception as failure:
            told(self._channel, "failed", generation=generation, error=why(failure)[:1000])
        else:
            self._next = generation, model
            told(self._channel, "ready", generation=generation)
        finally:
            os.close(descriptor)

    def took(self, status: ReloadStatus) -> None:
        """What came of the attempt; a model that was prepared in vain is forgotten."""
        self.status = status
        self._metrics.reloaded(status.error)
        if status.error is not None:
            self._next = None
        _ = self.model  # the old one goes, whether or not somebody asks


@dataclass
class Worker:
    """What a worker is born with.

    Attributes:
        source: where models come from.
        config: the bounds.
        model: that serves at first; given away, since memory is free again once nobody has it.
        generation: shared by all.
        channel: to the supervisor.
        folder: of the sockets over which workers tell each other their metrics.
        number: from 0.
    """

    source: Source
    config: ServeConfig
    model: ServedModel | None
    generation: Generation
    channel: socket.socket
    folder: Path
    number: int

    def models(self, metrics: Metrics) -> Follower:
        """The model that all of them serve."""
        model, self.model = self.model, None
        assert model is not None
        return Follower(model, self.generation, self.channel, self.source, metrics)

    def peers(self, metrics: Metrics) -> Peers:
        """The other workers, for their metrics."""
        return Peers(self.folder, self.number, self.config.workers, metrics)

    def run(self, bound: socket.socket, access_log: bool) -> None:
        """Answer until told to end."""
        torch.set_num_threads(self.config.threads)
        service = Service(self.source, self.config, self)
        _Server(service, access_log, self.channel).run(sockets=[bound])


class _Server(Server):
    """A server that the supervisor ends.

    A terminal sends Ctrl-C to all processes of a group, and systemd may send SIGTERM to all of a
    unit: neither is to count twice here, and the supervisor passes both on.
    """

    def __init__(self, service: Service, access_log: bool, channel: socket.socket) -> None:
        super().__init__(
            server_settings(service, access_log), service, self._is_up
        )
        self._channel = channel

    def _is_up(self) -> None:
        told(self._channel, "up")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGHUP, self._service.reloader.request)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        loop.add_reader(self._channel, self._hear)
        try:
            yield
        finally:
            loop.remove_reader(self._channel)

    def _drain(self) -> None:
        if not self.should_exit:
            self._stop()

    def _hear(self) -> None:
        found = heard(self._channel)
        if found is None:  # no supervisor, no service
            asyncio.get_running_loop().remove_reader(self._channel)
            self._drain()
            return
        message, descriptors = found
        follower = self._service.reloader
        assert isinstance(follower, Follower)
        if message["what"] == "prepare":
            follower.prepare(descriptors[0], message["generation"])
        elif message["what"] == "took":
            follower.took(ReloadStatus(**message["status"]))
        elif message["what"] == "drain":
            self._drain()
        elif message["what"] == "stop":
            self._drain()
            self.force_exit = True
