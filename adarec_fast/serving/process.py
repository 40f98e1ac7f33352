"""The process that serves, alone or with workers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ..config import ConfigError
from .config import ServeConfig
from .served import ServedModel, Source
from .server import Server, address, listen, server_settings
from .service import Service
from .supervisor import Supervisor
from .tokens import Tokens


class Serving(Protocol):
    """What has begun to serve."""

    config: ServeConfig

    @property
    def model(self) -> ServedModel: ...


def serve(
    source: Source,
    config: ServeConfig,
    *,
    access_log: bool = False,
    announce: Callable[[Serving, str], None] = lambda serving, address: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is under way; SIGHUP loads the run again.

    Args:
        source: where the model comes from.
        config: the bounds.
        access_log: a line for each request on stderr.
        announce: called once requests are accepted, by all workers where there are several.

    Raises:
        ConfigError: the address cannot be listened on; there is no token in the file of tokens;
            several workers are to share a GPU; or this is not the main thread, or an event loop
            runs in it, as in a notebook.
        WorkersError: workers die again and again.
        RunFolderError, CheckpointError: there is no model to serve.
    """
    _check_place()
    if config.workers > 1 and source.device.type != "cpu":
        raise ConfigError(
            f"workers={config.workers}: the device is {source.device}, which outlives no fork; "
            "serve with workers=1 there, or with device cpu"
        )
    if config.token_file is not None:
        warning = Tokens(Path(config.token_file)).too_open()
        if warning is not None:
            warnings.warn(warning, stacklevel=2)
    with listen(config.host, config.port) as bound:
        if config.workers > 1:
            Supervisor(
                source, config, bound, access_log,
                lambda serving: announce(serving, address(bound)),
            ).run()  # fmt: skip
            return
        service = Service(source, config)
        settings = server_settings(service, access_log)
        server = Server(settings, service, lambda: announce(service, address(bound)))
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
