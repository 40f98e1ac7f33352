"""What Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from .served import ServedModel

_SECONDS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
)  # fmt: skip
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """A service's own registry, so that several services live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "adarec_requests", "Answered requests.", ["endpoint", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "adarec_request_seconds",
            "From the first byte of a request's body to the last of its answer.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queue_seconds = Histogram(
            "adarec_queue_seconds",
            "Waiting before a batch begins.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "adarec_batch_seconds",
            "Computing a batch.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "adarec_batch_size",
            "Requests computed together.",
            buckets=_BATCH,
            registry=self.registry,
        )
        self.dropped = Counter(
            "adarec_dropped",
            "Requests given up before they were computed.",
            ["reason"],
            registry=self.registry,
        )
        for reason in ("queue_full", "deadline", "disconnected"):
            self.dropped.labels(reason)
        self.queue_length = Gauge(
            "adarec_queue_length", "Requests waiting for a batch.", registry=self.registry
        )
        self.reloads = Counter(
            "adarec_reloads", "Attempts to load a new model.", ["result"], registry=self.registry
        )
        for result in ("ok", "failed"):
            self.reloads.labels(result)
        self.reload_failing = Gauge(
            "adarec_reload_failing",
            "1 while the newest run folder could not be loaded and the old model serves on.",
            registry=self.registry,
        )
        self.model_info = Gauge(
            "adarec_model_info", "The model that serves.", ["model", "epoch"],
            registry=self.registry,
        )  # fmt: skip
        self.model_loaded = Gauge(
            "adarec_model_loaded_timestamp_seconds",
            "When the model that serves was loaded.",
            registry=self.registry,
        )

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Read the queue's length whenever somebody asks."""
        self.queue_length.set_function(length)

    def show(self, model: ServedModel) -> None:
        """Name the model that serves."""
        self.model_info.clear()
        self.model_info.labels(model.id, "" if model.epoch is None else str(model.epoch)).set(1)
        self.model_loaded.set(model.loaded_at)

    def reloaded(self, error: str | None) -> None:
        """Count an attempt to load another model; ``error``: why it failed, None if it did not."""
        self.reloads.labels("ok" if error is None else "failed").inc()
        self.reload_failing.set(error is not None)

    def text(self) -> bytes:
        """Prometheus' text format, version 0.0.4."""
        return generate_latest(self.registry)
