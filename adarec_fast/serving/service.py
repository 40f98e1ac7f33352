"""The service without HTTP: the model that serves, the queue before it, and its successor."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Protocol

from .batcher import Answer, Batcher, Job
from .config import ServeConfig
from .errors import RequestError
from .metrics import Metrics
from .peers import Peers
from .reload import Models, Reloader
from .requests import (
    DEFAULT_K,
    LimitFields,
    RequestFields,
    SimilarFields,
    request_type,
    similar_type,
)
from .served import ServedModel, Source
from .tokens import Tokens


class Among(Protocol):
    """What a worker has of the service that it is one part of."""

    def models(self, metrics: Metrics) -> Models:
        """The model that all of them serve."""

    def peers(self, metrics: Metrics) -> Peers:
        """The other workers, for their metrics."""


class Service:
    """A warm model behind a queue.

    Args:
        source: where the model comes from; it is loaded here.
        config: the bounds.
        among: what this worker shares with others; by default it serves alone.

    Raises:
        ConfigError: there is no token in ``config.token_file``.
        RunFolderError, CheckpointError: as :func:`adarec_fast.serving.served.load`.
    """

    def __init__(self, source: Source, config: ServeConfig, among: Among | None = None) -> None:
        self.source, self.config = source, config
        self.tokens = None if config.token_file is None else Tokens(Path(config.token_file))
        self.metrics = Metrics()
        self.request_type, self.similar_type = request_type(config), similar_type(config)
        self.batcher = Batcher(
            max_batch=config.max_batch,
            max_wait=config.max_wait_ms / 1000 if config.max_batch > 1 else 0.0,
            max_queue=config.max_queue,
            metrics=self.metrics,
        )
        self.reloader: Models = (
            Reloader(source, config.watch, self.metrics) if among is None
            else among.models(self.metrics)
        )
        self.peers = None if among is None else among.peers(self.metrics)
        self.ending = False
        self._started = time.time()

    @property
    def model(self) -> ServedModel:
        """The model of a request that comes now."""
        return self.reloader.model

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
        """:class:`~adarec_fast.serving.requests.Recommendations` as a dict, or, for a list of
        users, :class:`~adarec_fast.serving.requests.ManyRecommendations`.

        Args:
            request: of ``request_type``.
            left: done when the client is gone; the request is dropped then.

        Raises:
            RequestError: an unknown user or item, k beyond the catalogue (4xx); a full queue
                (503); a deadline that passed (504).
            asyncio.CancelledError: the client is gone.
        """
        model, k = self.model, self._k(request.k, len(self.model.items))
        ignored = self._ignored(request)
        users: list[int | str | None] = [None]
        notes: list[str | None] = [None]
        if request.history is not None:
            histories = [model.indices("history", request.history, ignored)]
            if not histories[0]:
                raise RequestError(
                    422,
                    "no_history",
                    "history holds no item of the catalogue, so there is nothing to go by",
                    "history",
                    request.history,
                )
        else:
            asked = (
                [("user", request.user)] if request.users is None
                else [(f"users[{place}]", user) for place, user in enumerate(request.users)]
            )
            known = [model.history_of(user, argument) for argument, user in asked]
            users = [user for user, _, _ in known]
            histories = [history for _, history, _ in known]
            notes = [note for _, _, note in known]
        exclude, allow = self._limits(model, request, ignored)
        loop = asyncio.get_running_loop()
        jobs = [
            Job(model, history, k, exclude, request.exclude_seen, loop.create_future(), allow)
            for history in histories
        ]
        answers = [
            {
                "user": user,
                "model": model.id,
                **answer.diagnostics,
                "history_length": len(history),
                "ignored": ignored or [],
                "note": note,
                "items": _listed(answer),
            }
            for user, history, note, answer in zip(
                users, histories, notes, await self._computed(jobs, request, left), strict=True
            )
        ]
        return answers[0] if request.users is None else {"model": model.id, "answers": answers}

    async def similar(
        self, request: SimilarFields, left: asyncio.Future[Any] | None = None
    ) -> dict[str, Any]:
        """:class:`~adarec_fast.serving.requests.SimilarItems` as a dict; arguments and errors are
        those of :meth:`recommend`, and 501 where the model has no vectors."""
        model, k = self.model, self._k(request.k, len(self.model.items))
        why = model.recommender.why_not_similar()
        if why is not None:
            raise RequestError(501, "no_vectors", why)
        item = model.index_of(request.item)
        ignored = self._ignored(request)
        exclude, allow = self._limits(model, request, ignored)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        job = Job(model, [item], k, exclude, True, future, allow, similar=True)
        (answer,) = await self._computed([job], request, left)
        return {
            "item": model.items.decode([item])[0],
            "model": model.id,
            "ignored": ignored or [],
            "items": _listed(answer),
        }

    def _ignored(self, request: LimitFields) -> list[int | str] | None:
        """Where unknown items are noted; None where they are refused."""
        return [] if (request.unknown_items or self.config.unknown_items) == "ignore" else None

    @staticmethod
    def _limits(
        model: ServedModel, request: LimitFields, ignored: list[int | str] | None
    ) -> tuple[list[int], list[int] | None]:
        """Indices of what to leave out, and of what may come."""
        exclude = model.indices("exclude", request.exclude, ignored)
        if request.allow is None:
            return exclude, None
        allow = model.indices("allow", request.allow, ignored)
        if request.allow and not allow:
            raise RequestError(
                422, "nothing_allowed",
                "allow holds no item of the catalogue, so there is nothing to choose from", "allow",
                request.allow,
            )  # fmt: skip
        return exclude, allow

    async def _computed(
        self, jobs: list[Job], request: LimitFields, left: asyncio.Future[Any] | None
    ) -> list[Answer]:
        """The answers of jobs, all of them or an error."""
        futures = [job.future for job in jobs]
        try:
            for job in jobs:
                self.batcher.submit(job)
        except RequestError:
            for future in futures:
                future.cancel()
            raise
        timeout = self.config.timeout_ms if request.timeout_ms is None else request.timeout_ms
        loop = asyncio.get_running_loop()
        timer = loop.call_later(timeout / 1000, self._expire, futures, timeout)
        if left is not None:
            left.add_done_callback(lambda _: self._abandon(futures))
        try:
            return await asyncio.gather(*futures)
        finally:
            timer.cancel()

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
            "worker": 0 if self.peers is None else self.peers.number,
            "workers": self.config.workers,
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

    def _expire(self, futures: list[asyncio.Future[Answer]], timeout: float) -> None:
        waiting = [future for future in futures if not future.done()]
        if waiting:
            self.metrics.dropped.labels("deadline").inc()
            waiting[0].set_exception(
                RequestError(
                    504,
                    "deadline",
                    f"not answered within {timeout:g} ms; try again later, or allow more",
                    "timeout_ms",
                    timeout,
                    {"Retry-After": "1"},
                )
            )
            for future in waiting[1:]:  # nobody computes what is late
                future.cancel()

    def _abandon(self, futures: list[asyncio.Future[Answer]]) -> None:
        waiting = [future for future in futures if not future.done()]
        if waiting:
            self.metrics.dropped.labels("disconnected").inc()
            for future in waiting:
                future.cancel()


def _listed(answer: Answer) -> list[dict[str, Any]]:
    return [
        {"item": item, "score": score}
        for item, score in zip(answer.items, answer.scores, strict=True)
    ]
