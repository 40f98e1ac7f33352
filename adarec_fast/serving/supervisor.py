"""The process over several workers: it loads models, begins workers, replaces and ends them.

It has no threads, and computes on one: what it forks off inherits no lock that somebody holds.
"""

from __future__ import annotations

import gc
import logging
import os
import selectors
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from ..distributed import WorkersError
from .config import ServeConfig
from .handover import attach, publish
from .reload import Folder, ReloadStatus, why
from .served import ServedModel, Source, load, warm
from .worker import Generation, Worker, heard, told

_log = logging.getLogger(__name__)

# So many workers may die within a minute before it is the service that is broken.
_MOST_DEATHS, _MINUTE = 5, 60.0
# Seconds for a worker to map a model and to warm it; for its end beyond ``shutdown_timeout``.
_PREPARING, _GRACE = 300.0, 5.0
_SHOWN = 4000  # of an error


@dataclass
class _Child:
    pid: int
    channel: socket.socket
    number: int
    up: bool = False


class Supervisor:
    """Workers over one model.

    Args:
        source: where models come from; its device is a CPU.
        config: the bounds, ``workers`` at least 2.
        bound: where to listen; all workers accept from it.
        access_log: a line for each request on stderr.
        announce: called with this once all workers accept requests.

    Attributes:
        config: the bounds.
        model: that serves.

    Raises:
        RunFolderError, CheckpointError: as :func:`adarec_fast.serving.served.load`.
    """

    def __init__(
        self, source: Source, config: ServeConfig, bound: socket.socket, access_log: bool,
        announce: Callable[[Supervisor], None],
    ) -> None:
        self._source, self.config, self._bound = source, config, bound
        self._access_log, self._announce = access_log, announce
        self._folder, self._generation = Folder(source), Generation()
        self._children: dict[int, _Child] = {}  # by number
        self._deaths: deque[float] = deque(maxlen=_MOST_DEATHS)
        self._announced, self._asked, self._stops = False, False, 0
        self._bad_end = False
        self._attempt, self._status = 0, ReloadStatus()
        torch.set_num_threads(1)
        self.model, descriptor = self._shared()
        os.close(descriptor)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            WorkersError: workers die again and again, or did not end in time.
        """
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        before = {
            number: signal.signal(number, self._signalled)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        try:
            with tempfile.TemporaryDirectory(prefix="adarec-") as folder:
                self._sockets = Path(folder)
                try:
                    self._serve()
                finally:
                    self._end()
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._woken.close()
            self._wake.close()
        if self._bad_end:
            raise WorkersError("a worker did not end as it should; the log says why")

    # ------------------------------------------------------------------ while it serves

    def _serve(self) -> None:
        _settle()
        for number in range(self.config.workers):
            self._fork(number)
        watch = self.config.watch
        look = time.monotonic() + watch
        while not self._stops:
            self._hear(max(0.0, look - time.monotonic()) if watch else None)
            asked, due = self._asked, watch > 0 and time.monotonic() >= look
            if due:
                look = time.monotonic() + watch
            if (asked or due) and not self._stops:
                self._asked = False
                if self._folder.another(asked):
                    self._reload()
            for number in range(self.config.workers):
                if number not in self._children and not self._stops:
                    self._fork(number)

    def _hear(self, timeout: float | None) -> list[tuple[_Child, dict[str, Any]]]:
        """Wait for messages, the ends of workers, or signals; messages of a reload are given."""
        found = []
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for child in self._children.values():
                selector.register(child.channel, selectors.EVENT_READ, child)
            for key, _ in selector.select(timeout):
                child = key.data
                if child is None:
                    self._woken.recv(4096)
                    continue
                message = heard(child.channel)
                if message is None:
                    self._buried(child)
                elif message[0]["what"] == "up":
                    self._is_up(child)
                elif message[0]["what"] == "reload":
                    self._asked = True
                else:
                    found.append((child, message[0]))
        return found

    def _is_up(self, child: _Child) -> None:
        child.up = True
        everybody = len(self._children) == self.config.workers
        if not self._announced and everybody and all(c.up for c in self._children.values()):
            self._announced = True
            self._announce(self)

    def _buried(self, child: _Child) -> None:
        """A worker has ended; another takes its place, unless that leads nowhere."""
        child.channel.close()
        del self._children[child.number]
        _, status = os.waitpid(child.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if self._stops:
            self._bad_end |= code != 0
            return
        if not self._announced:
            raise WorkersError(
                f"worker {child.number} ended by {how} before it answered; its log says why"
            )
        _log.error("worker %d (%d) ended by %s; another begins", child.number, child.pid, how)
        now = time.monotonic()
        if len(self._deaths) == _MOST_DEATHS and now - self._deaths[0] < _MINUTE:
            raise WorkersError(
                f"{_MOST_DEATHS + 1} workers ended within {_MINUTE:g} s, the last by {how}"
            )
        self._deaths.append(now)

    def _fork(self, number: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # Python 3.12 counts NumPy's idle threads, which know of forks.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            ours.close()
            self._work(number, theirs)
        theirs.close()
        self._children[number] = _Child(pid, ours, number)
        if self._status.attempts:
            told(ours, "took", status=asdict(self._status))

    def _work(self, number: int, channel: socket.socket) -> NoReturn:
        """The worker's life, which must end here and not in the code of its parent."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for there in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(there, signal.SIG_IGN)  # until its own are set
            for other in (*(child.channel for child in self._children.values()), self._woken,
                          self._wake):  # fmt: skip
                other.close()
            worker = Worker(
                self._source, self.config, self.model, self._generation, channel, self._sockets,
                number,
            )  # fmt: skip
            del self.model  # it goes with its successor's coming
            worker.run(self._bound, self._access_log)
            code = 0
        except SystemExit as end:  # uvicorn's, whose reason is in the log
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)

    # ------------------------------------------------------------------ another model

    def _shared(self) -> tuple[ServedModel, int]:
        """The run folder's model in shared memory, and its descriptor."""
        alone = self._source._replace(threads=1)
        descriptor = publish(load(alone))
        try:
            model = attach(descriptor)
            warm(model, alone)
        except BaseException:
            os.close(descriptor)
            raise
        return model, descriptor

    def _reload(self) -> None:
        """All workers make it ready aside; then one word makes it serve in all of them."""
        begun, error = time.perf_counter(), None
        try:
            model, descriptor = self._shared()
        except Exception as failure:
            error = why(failure)
        else:
            self._attempt += 1
            number = self._attempt
            try:
                error = self._prepared(descriptor, number)
            finally:
                os.close(descriptor)
            if error is None:
                self.model, self._generation.value = model, number
        self._status = self._status.after(None if error is None else error[:_SHOWN])
        for child in self._children.values():
            told(child.channel, "took", status=asdict(self._status))
        if error is None:
            _log.warning(
                "model %s serves now in %d workers, after %.2f s", self.model.id,
                len(self._children), time.perf_counter() - begun,
            )  # fmt: skip
            _settle()

    def _prepared(self, descriptor: int, number: int) -> str | None:
        """Wait until all workers have the model ready; why not, if one has not."""
        waiting = {
            child.pid for child in self._children.values()
            if told(child.channel, "prepare", descriptor, generation=number)
        }
        until = time.monotonic() + _PREPARING
        while waiting and not self._stops:
            for child, message in self._hear(max(0.0, until - time.monotonic())):
                if message.get("generation") != number:
                    continue
                if message["what"] == "failed":
                    return f"worker {child.number}: {message['error']}"
                waiting.discard(child.pid)
            waiting &= {child.pid for child in self._children.values()}
            if time.monotonic() > until:
                _log.error("the old model serves on: %d workers are not ready", len(waiting))
                return f"{len(waiting)} workers did not make it ready within {_PREPARING:g} s"
        return "the service ends" if self._stops else None

    # ------------------------------------------------------------------ the end

    def _signalled(self, number: int, frame: object) -> None:
        """Whatever is under way, as a model that is being loaded, workers are told at once."""
        if number == signal.SIGHUP:
            self._asked = True
            return
        self._stops += 1
        self._tell_end()

    def _tell_end(self) -> None:
        # The second signal does not wait.
        for child in list(self._children.values()):
            told(child.channel, "drain" if self._stops < 2 else "stop")

    def _end(self) -> None:
        """Wait for all workers, as long as they may take and a little longer."""
        self._bound.close()  # connections that none of them has accepted
        self._stops = max(self._stops, 1)
        self._tell_end()
        until = time.monotonic() + self.config.shutdown_timeout + _GRACE
        while self._children and time.monotonic() < until:
            self._hear(max(0.0, until - time.monotonic()))
        for child in list(self._children.values()):
            _log.error("worker %d (%d) does not end and is killed", child.number, child.pid)
            os.kill(child.pid, signal.SIGKILL)
            self._buried(child)


def _settle() -> None:
    """What is loaded stays: the search for garbage leaves it alone, and so its pages shared."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
