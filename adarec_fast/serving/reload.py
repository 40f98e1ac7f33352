"""A new model takes over while the old one serves; a broken one does not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

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


class Reloader:
    """A thread that loads models aside, when asked (:meth:`request`) or when it sees a new one.

    Args:
        source: where models come from.
        watch: seconds between two looks at the run folder; 0 never looks.
        swap: called with a model that is loaded and warm, in this thread.
        metrics: told of every attempt.
    """

    def __init__(
        self,
        source: Source,
        watch: float,
        swap: Callable[[ServedModel], None],
        metrics: Metrics,
    ) -> None:
        self._source, self._watch, self._swap, self._metrics = source, watch, swap, metrics
        self._asked, self._closing = threading.Event(), False
        # Of the model that was tried last: what did not load is not tried again until it changes.
        self._tried = signature(source)
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
            try:
                found = signature(self._source)
            except OSError as error:
                _log.error("the run folder cannot be looked at: %s", error)
                continue
            if asked or (found is not None and found != self._tried):
                self._tried = found
                self._reload()

    def _reload(self) -> None:
        error = None
        begun = time.perf_counter()
        try:
            model = load(self._source)
        except Exception as failure:
            error = str(failure) or type(failure).__name__
            # The traceback of a broken folder says nothing; that of a bug does.
            unexpected = not isinstance(failure, _EXPECTED)
            _log.error("the old model serves on: %s", error, exc_info=unexpected)
        else:
            self._swap(model)
            _log.warning(
                "model %s serves now, loaded in %.2f s", model.id, time.perf_counter() - begun
            )
        self._metrics.reloads.labels("ok" if error is None else "failed").inc()
        self._metrics.reload_failing.set(error is not None)
        old = self.status
        self.status = ReloadStatus(
            old.attempts + 1, old.failed + (error is not None), error, time.time()
        )
