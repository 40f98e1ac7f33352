"""uvicorn around the application: its socket, its settings, its signals."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from ..config import ConfigError
from .app import create_app
from .logs import log_config
from .service import Service

_KEEP_ALIVE = 30  # seconds


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, before anything is loaded; nobody can connect before it listens.

    Raises:
        ConfigError: there is no such address, or the port is taken.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        # With the protocol said, asyncio turns Nagle's algorithm off; else answers take 40 ms.
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"host={host!r}, port={port}: cannot listen there: {error.strerror or error}; choose "
            "another host or port (port 0 takes a free one)"
        ) from None
    return bound


def address(bound: socket.socket) -> str:
    """``http://host:port``."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_settings(service: Service, access_log: bool = False) -> uvicorn.Config:
    """uvicorn's settings for a service's application."""
    return uvicorn.Config(
        create_app(service),
        log_config=log_config(),
        log_level="info" if access_log else "warning",
        access_log=access_log,
        lifespan="on",
        ws="none",
        server_header=False,
        limit_concurrency=service.config.max_connections,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=service.config.shutdown_timeout,
        backlog=2048,
    )


class Server(uvicorn.Server):
    """uvicorn with our signals: it would end a graceful shutdown by killing itself."""

    def __init__(
        self, config: uvicorn.Config, service: Service, started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._service, self._announce = service, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._service.reloader.request)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        """The second signal does not wait."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._service.ending = True
