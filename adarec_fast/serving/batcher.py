"""Requests that come together are computed together.

One thread owns the model. While it computes, requests queue; what is there when it is done is the
next batch. A request that finds the thread idle is computed at once, unless the last batch says
that others are about to come: clients that were answered together ask again together, so the
thread waits (``max_wait`` at most) until as many are there as were at the end of the last batch.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from .errors import RequestError
from .metrics import Metrics
from .served import ServedModel

_log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """The best items of one question: external ids, falling scores, and what the model tells."""

    items: list[int | str]
    scores: list[float]
    diagnostics: dict[str, float]


@dataclass(slots=True, eq=False)
class Job:
    """A checked request; item indices are the model's.

    Attributes:
        model: its indices are meaningless to any other.
        history: of length 1 or more, oldest first; the item that others are to be similar to.
        allow: the items that may come, or None for all.
        similar: whether similar items are asked for.
        future: of the event loop that made it; gets an :class:`Answer`.
        queued: ``time.perf_counter`` of its submission.
    """

    model: ServedModel
    history: list[int]
    k: int
    exclude: list[int]
    exclude_seen: bool
    future: asyncio.Future[Answer]
    allow: list[int] | None = None
    similar: bool = False
    queued: float = field(default=0.0)


class Batcher:
    """The queue and its thread.

    Args:
        max_batch: most jobs in a batch.
        max_wait: seconds, see above; 0 never waits.
        max_queue: most jobs waiting.
        metrics: told of batches and of jobs dropped.
    """

    def __init__(
        self, *, max_batch: int, max_wait: float, max_queue: int, metrics: Metrics
    ) -> None:
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._metrics = metrics
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._expected = 1  # jobs that make a batch worth beginning
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="adarec-batcher", daemon=True)
        metrics.watch_queue(self._queue.__len__)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def close(self, timeout: float) -> bool:
        """Compute what is queued and end; whether that was done within ``timeout`` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether somebody computes."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Queue a job. To be called in the loop of the job's future.

        Raises:
            RequestError: 503, the queue is full or the service ends.
        """
        with self._changed:
            waiting = len(self._queue)
            if waiting >= self._max_queue or self._closing:
                self._metrics.dropped.labels("queue_full").inc()
                raise RequestError(
                    503,
                    "overloaded",
                    f"{waiting} requests are waiting, of at most {self._max_queue}; try later",
                    headers={"Retry-After": "1"},
                )
            job.queued = time.perf_counter()
            self._queue.append(job)
            # Waking the thread for each job of a batch costs more than the batch.
            if waiting == 0 or waiting + 1 >= self._expected:
                self._changed.notify()

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while (jobs := self._next()) is not None:
            if jobs:
                self._compute(jobs)

    def _next(self) -> list[Job] | None:
        """Wait for jobs and take a batch of them; None when all is done."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            if not self._queue:
                return None
            until = self._queue[0].queued + self._max_wait
            while len(self._queue) < self._expected and not self._closing:
                left = until - time.perf_counter()
                if left <= 0:
                    break
                self._changed.wait(left)
            return self._take()

    def _take(self) -> list[Job]:
        """Jobs of one model from the front of the queue, without those that nobody waits for."""
        jobs: list[Job] = []
        while self._queue and len(jobs) < self._max_batch:
            if self._queue[0].future.done():
                self._queue.popleft()
            elif jobs and self._queue[0].model is not jobs[0].model:
                break
            else:
                jobs.append(self._queue.popleft())
        return jobs

    def _compute(self, jobs: list[Job]) -> None:
        begun = time.perf_counter()
        answers = _answers(jobs)
        ended = time.perf_counter()
        # Before the answers are out: their clients' next requests are not more company.
        with self._changed:
            self._expected = min(len(jobs) + len(self._queue), self._max_batch)
        loop = jobs[0].future.get_loop()
        try:
            loop.call_soon_threadsafe(_deliver, jobs, answers)
        except RuntimeError:  # the loop was closed: a shutdown that ran out of time
            _log.warning("%d answers came after the end", len(jobs))
        self._metrics.batch_size.observe(len(jobs))
        self._metrics.batch_seconds.observe(ended - begun)
        for job in jobs:
            self._metrics.queue_seconds.observe(begun - job.queued)


def rank(jobs: list[Job]) -> list[Answer]:
    """Answers of jobs of one model."""
    alike: dict[tuple[bool, bool], list[int]] = {}
    for place, job in enumerate(jobs):
        alike.setdefault((job.similar, job.allow is None), []).append(place)
    # What is asked for beside a job is not to change how its answer is computed.
    found: dict[int, Answer] = {}
    for places in alike.values():
        found.update(zip(places, _rank([jobs[place] for place in places]), strict=True))
    return [found[place] for place in range(len(jobs))]


def _rank(jobs: list[Job]) -> list[Answer]:
    """Answers of jobs that ask for the same in the same way."""
    model = jobs[0].model
    catalogue = len(model.items)
    # A power of two, since every k has graphs of its own on CUDA.
    k = min(1 << (max(job.k for job in jobs) - 1).bit_length(), catalogue)
    histories = [job.history for job in jobs]
    exclude_seen = all(job.exclude_seen for job in jobs)
    exclude = [
        job.exclude if exclude_seen or not job.exclude_seen else job.history + job.exclude
        for job in jobs
    ]
    allow = None if jobs[0].allow is None else [job.allow for job in jobs]
    left_out = exclude if any(exclude) else None
    if jobs[0].similar:
        items = [item for (item,) in histories]
        ranking = model.recommender.similar_items(items, k, exclude=left_out, allow=allow)
    else:
        ranking = model.recommender.recommend(
            histories, k, exclude_seen=exclude_seen, exclude=left_out, allow=allow
        )
    scores = ranking.scores.cpu()
    told = {name: tensor.tolist() for name, tensor in ranking.diagnostics.items()}
    left = torch.isfinite(scores).sum(1).tolist()
    counts = [min(job.k, n) for job, n in zip(jobs, left, strict=True)]
    chosen = ranking.items.cpu().numpy()
    # One look-up for the whole batch.
    flat = np.concatenate([row[:n] for row, n in zip(chosen, counts, strict=True)])
    names, values, start = model.items.decode(flat), scores.tolist(), 0
    answers = []
    for row, n in enumerate(counts):
        own = {name: column[row] for name, column in told.items()}
        answers.append(Answer(names[start : start + n], values[row][:n], own))
        start += n
    return answers


def _answers(jobs: list[Job]) -> list[Answer | RequestError]:
    """What :func:`rank` says; a job that makes it fail has the others of its batch unharmed."""
    try:
        return list(rank(jobs))
    except Exception:
        _log.exception("a batch of %d requests failed", len(jobs))
    if len(jobs) == 1:
        return [RequestError(500, "internal", "the service failed; its log says why")]
    return [answer for job in jobs for answer in _answers([job])]


def _deliver(jobs: list[Job], answers: list[Answer | RequestError]) -> None:
    for job, answer in zip(jobs, answers, strict=True):
        if job.future.done():  # its client left, or its deadline passed meanwhile
            continue
        if isinstance(answer, RequestError):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)
