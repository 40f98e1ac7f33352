"""The metrics of all workers, whichever of them is asked.

Each worker tells its own over a socket of the file system; the one that answers puts them together,
with a label that names the worker, so that every series has one process behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import anyio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from .metrics import Metrics

_PATIENCE = 2.0  # seconds for another worker, which may be starting anew


class Peers:
    """Of one worker; an asynchronous context in which it tells the others.

    Args:
        folder: of the sockets, which nobody else may enter.
        number: this worker's, from 0.
        workers: how many there are.
        metrics: this worker's own.
    """

    def __init__(self, folder: Path, number: int, workers: int, metrics: Metrics) -> None:
        self._folder, self.number, self._workers = folder, number, workers
        self._metrics = metrics
        self._server: asyncio.AbstractServer | None = None

    async def __aenter__(self) -> Peers:
        self._server = await asyncio.start_unix_server(self._tell, self._place(self.number))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()

    async def text(self) -> bytes:
        """Prometheus' text of all workers that answer in time."""
        others = [number for number in range(self._workers) if number != self.number]
        told = await asyncio.gather(*map(self._ask, others))
        texts = {self.number: self._metrics.text(), **dict(zip(others, told, strict=True))}
        registry = CollectorRegistry()
        registry.register(_Together({n: text for n, text in sorted(texts.items()) if text}))
        return generate_latest(registry)

    def _place(self, number: int) -> Path:
        return self._folder / f"{number}.sock"

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):  # who asked has gone
            writer.write(self._metrics.text())
            await writer.drain()
        writer.close()

    async def _ask(self, number: int) -> bytes:
        try:
            with anyio.fail_after(_PATIENCE):
                reader, writer = await asyncio.open_unix_connection(self._place(number))
                try:
                    return await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError):  # it is starting anew, and has nothing to tell
            return b""


class _Together(Collector):
    """Samples of several workers in families, each with its worker's number."""

    def __init__(self, texts: dict[int, bytes]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        """The families of all."""
        families: dict[str, Metric] = {}
        for number, text in self._texts.items():
            for family in text_string_to_metric_families(text.decode()):
                whole = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                whole.samples += [
                    sample._replace(labels={**sample.labels, "worker": str(number)})
                    for sample in family.samples
                ]
        return families.values()
