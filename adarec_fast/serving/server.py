"""The process around the application: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn

from ..config import ConfigError
from .app import create_app
from .config import ServeConfig
from .logs import log_config
from .served import Source
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


def serve(
    source: Source,
    config: ServeConfig,
    *,
    access_log: bool = False,
    announce: Callable[[Service, str], None] = lambda service, address: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is under way; SIGHUP loads the run again.

    Args:
        source: where the model comes from.
        config: the bounds.
        access_log: a line for each request on stderr.
        announce: called once requests are accepted.

    Raises:
        ConfigError: the address cannot be listened on; or this is not the main thread, or an event
            loop runs in it, as in a notebook.
        RunFolderError, CheckpointError: there is no model to serve.
    """
    _check_place()
    with listen(config.host, config.port) as bound:
        service = Service(source, config)
        settings = server_settings(service, access_log)
        server = _Server(settings, service, lambda: announce(service, address(bound)))
        # What is loaded stays: collecting garbage need not look at it again and again.
        gc.collect()
        gc.freeze()
        try:
            server.run(sockets=[bound])
        finally:
            gc.unfreeze()


def _check_place() -> None:
    """Before the model is loaded."""
    place = ""
    if threading.current_thread() is not threading.main_thread():
        place = "in a thread"
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        place = "where an event loop runs already, as in a notebook"
    if place:
        raise ConfigError(
            f"serve() was called {place}, and needs the main thread for its signals and a loop of "
            "its own; run adarec-fast serve in a process of its own, or give "
            "create_app(Service(source, config)) to a server such as uvicorn.Server, which there "
            "can be awaited"
        )


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


class _Server(uvicorn.Server):
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
