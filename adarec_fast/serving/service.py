"""The service without HTTP: the model that serves, the queue before it, and its successor."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from .batcher import Answer, Batcher, Job
from .config import ServeConfig
from .errors import RequestError
from .metrics import Metrics
from .reload import Reloader
from .requests import DEFAULT_K, RequestFields, request_type
from .served import ServedModel, Source, load


class Service:
    """A warm model behind a queue.

    Args:
        source: where the model comes from; it is loaded here.
        config: the bounds.

    Raises:
        RunFolderError, CheckpointError: as :func:`adarec_fast.serving.served.load`.
    """

    def __init__(self, source: Source, config: ServeConfig) -> None:
        self.source, self.config = source, config
        self.metrics = Metrics()
        self.request_type = request_type(config)
        self.batcher = Batcher(
            max_batch=config.max_batch,
            max_wait=config.max_wait_ms / 1000 if config.max_batch > 1 else 0.0,
            max_queue=config.max_queue,
            metrics=self.metrics,
        )
        self.reloader = Reloader(source, config.watch, self._swap, self.metrics)
        self.ending = False
        self._started = time.time()
        self._swap(load(source))

    def _swap(self, model: ServedModel) -> None:
        # Requests in the queue keep the model that they were checked against.
        self.model = model
        self.metrics.show(model)

    def start(self) -> None:
        """Begin to compute and to reload."""
        self.batcher.start()
        self.reloader.start()

    def close(self) -> bool:
        """Compute what is queued and end; whether that was done within ``shutdown_timeout``.

        A model that is being loaded is waited for as long, though nobody will get it.
        """
        self.ending = True
        until = time.monotonic() + self.config.shutdown_timeout
        self.reloader.close()
        done = self.batcher.close(self.config.shutdown_timeout)
        return self.reloader.wait(max(0.0, until - time.monotonic())) and done

    @property
    def ready(self) -> bool:
        """Whether requests will be answered."""
        return self.batcher.alive and not self.ending

    async def recommend(
        self, request: RequestFields, left: asyncio.Future[Any] | None = None
    ) -> dict[str, Any]:
        """:class:`~adarec_fast.serving.requests.Recommendations` as a dict.

        Args:
            request: of ``request_type``.
            left: done when the client is gone; the request is dropped then.

        Raises:
            RequestError: an unknown user or item, k beyond the catalogue (4xx); a full queue
                (503); a deadline that passed (504).
            asyncio.CancelledError: the client is gone.
        """
        model = self.model
        k = self._k(request.k, len(model.items))
        unknown = request.unknown_items or self.config.unknown_items
        ignored: list[int | str] | None = [] if unknown == "ignore" else None
        user: int | str | None = None
        note: str | None = None
        if request.user is not None:
            user, history, note = model.history_of(request.user)
        else:
            history = model.indices("history", request.history, ignored)
            if not history:
                raise RequestError(
                    422,
                    "no_history",
                    "history holds no item of the catalogue, so there is nothing to go by",
                    "history",
                    request.history,
                )
        exclude = model.indices("exclude", request.exclude, ignored)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self.batcher.submit(
            Job(model, history, k, exclude, request.exclude_seen, future)
        )
        timeout = self.config.timeout_ms if request.timeout_ms is None else request.timeout_ms
        timer = loop.call_later(timeout / 1000, self._expire, future, timeout)
        if left is not None:
            left.add_done_callback(lambda _: self._abandon(future))
        try:
            answer = await future
        finally:
            timer.cancel()
        return {
            "user": user,
            "model": model.id,
            **answer.diagnostics,
            "history_length": len(history),
            "ignored": ignored or [],
            "note": note,
            "items": [
                {"item": item, "score": score}
                for item, score in zip(answer.items, answer.scores, strict=True)
            ],
        }

    def health(self) -> dict[str, Any]:
        """What serves, since when, and what came of the last reload."""
        model, reload = self.model, self.reloader.status
        return {
            "status": ("degraded" if reload.error else "ok") if self.batcher.alive else "broken",
            "ready": self.ready,
            "model": {
                "id": model.id,
                "epoch": model.epoch,
                "path": str(model.path),
                "loaded_at": model.loaded_at,
                "users": model.data.num_users,
                "items": len(model.items),
                "max_length": model.recommender.model.config.max_length,
            },
            "reload": {
                "attempts": reload.attempts,
                "failed": reload.failed,
                "error": reload.error,
                "at": reload.at,
            },
            "uptime_seconds": time.time() - self._started,
        }

    @staticmethod
    def _k(k: int | None, catalogue: int) -> int:
        if k is None:
            return min(DEFAULT_K, catalogue)
        if k > catalogue:
            raise RequestError(
                422,
                "out_of_range",
                f"k={k} is more than the catalogue holds; 1..{catalogue}",
                "k",
                k,
            )
        return k

    def _expire(self, future: asyncio.Future[Answer], timeout: float) -> None:
        if not future.done():
            self.metrics.dropped.labels("deadline").inc()
            future.set_exception(
                RequestError(
                    504,
                    "deadline",
                    f"not answered within {timeout:g} ms; try again later, or allow more",
                    "timeout_ms",
                    timeout,
                    {"Retry-After": "1"},
                )
            )

    def _abandon(self, future: asyncio.Future[Answer]) -> None:
        if not future.done():
            self.metrics.dropped.labels("disconnected").inc()
            future.cancel()
