"""A new model takes over while the old one serves; a broken one does not."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from ..config import ConfigError
from ..data import DataError
from ..models.pretrained import CheckpointError
from ..ops import BackendError
from ..training import RunFolderError
from .metrics import Metrics
from .served import ServedModel, Source, load, signature

_log = logging.getLogger(__name__)
_EXPECTED = (ConfigError, DataError, BackendError, CheckpointError, RunFolderError, OSError)


@dataclass(frozen=True)
class ReloadStatus:
    """What came of the attempts so far.

    Attributes:
        attempts: since the start.
        failed: of these.
        error: why the last one failed, None if it did not.
        at: when it ended, seconds since 1970; None before the first.
    """

    attempts: int = 0
    failed: int = 0
    error: str | None = None
    at: float | None = None


    def after(self, error: str | None) -> ReloadStatus:
        """The status once another attempt has ended."""
        failed = self.failed + (error is not None)
        return ReloadStatus(self.attempts + 1, failed, error, time.time())


class Models(Protocol):
    """Which model serves, and what came of the last attempt to load another.

    Attributes:
        model: of the request that comes now; one that waits keeps what it was checked against.
        status: of the attempts so far.
    """

    @property
    def model(self) -> ServedModel: ...
    @property
    def status(self) -> ReloadStatus: ...
    def start(self) -> None:
        """Begin to look for others."""

    def request(self) -> None:
        """Load the run folder again, soon."""

    def close(self) -> None:
        """Take no other; :meth:`wait` for one that is being made ready."""

    def wait(self, timeout: float) -> bool:
        """Whether what was closed has ended within ``timeout`` seconds."""


class Folder:
    """A run folder that is looked at again and again for a model to load.

    Args:
        source: where models come from.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        # Of the model that was tried last: what did not load is not tried again until it changes.
        self._tried = signature(source)

    def another(self, asked: bool) -> bool:
        """Whether to try to load: somebody asked for it, or there is something new."""
        try:
            found = signature(self._source)
        except OSError as error:
            _log.error("the run folder cannot be looked at: %s", error)
            return False
        if asked or (found is not None and found != self._tried):
            self._tried = found
            return True
        return False


def why(failure: Exception) -> str:
    """What to say of a model that did not load, and a line of the log."""
    error = str(failure) or type(failure).__name__
    # The traceback of a broken folder says nothing; that of a bug does.
    unexpected = not isinstance(failure, _EXPECTED)
    _log.error("the old model serves on: %s", error, exc_info=failure if unexpected else None)
    return error


class Reloader:
    """A thread that loads models aside, when asked (:meth:`request`) or when it sees a new one.

    Args:
        source: where models come from; the first is loaded here.
        watch: seconds between two looks at the run folder; 0 never looks.
        metrics: told of every attempt.

    Raises:
        RunFolderError, CheckpointError: as :func:`adarec_fast.serving.served.load`.
    """

    def __init__(self, source: Source, watch: float, metrics: Metrics) -> None:
        self._source, self._watch, self._metrics = source, watch, metrics
        self._asked, self._closing = threading.Event(), False
        self._folder = Folder(source)
        self.model = load(source)
        metrics.show(self.model)
        self._thread = threading.Thread(target=self._run, name="adarec-reloader", daemon=True)
        self.status = ReloadStatus()

    def start(self) -> None:
        """Begin to listen and to watch."""
        self._thread.start()

    def request(self) -> None:
        """Load the run folder again, soon; one that is being loaded is loaded once more."""
        self._asked.set()

    def close(self) -> None:
        """Load nothing more; :meth:`wait` for what is being loaded."""
        self._closing = True
        self._asked.set()

    def wait(self, timeout: float) -> bool:
        """Whether a closed reloader has ended within ``timeout`` seconds.

        A process that ends while a thread is inside torch is aborted by the C++ runtime.
        """
        if self._thread.ident is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            asked = self._asked.wait(self._watch or None)
            if self._closing:
                return
            self._asked.clear()
            if self._folder.another(asked):
                self._reload()

    def _reload(self) -> None:
        error = None
        begun = time.perf_counter()
        try:
            model = load(self._source)
        except Exception as failure:
            error = why(failure)
        else:
            self.model = model
            self._metrics.show(model)
            _log.warning(
                "model %s serves now, loaded in %.2f s", model.id, time.perf_counter() - begun
            )
        self._metrics.reloaded(error)
        self.status = self.status.after(error)
