"""``adarec-fast serve``: recommendations over HTTP (extra ``[serve]``).

:class:`ServeConfig` has the bounds; :func:`serve` runs the service; :func:`create_app` is the
ASGI application alone, for those who have a server of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..config import ConfigError
from .config import ServeConfig

if TYPE_CHECKING:
    from .app import create_app
    from .process import serve
    from .served import Source
    from .service import Service

__all__ = ["ServeConfig", "Service", "Source", "create_app", "serve"]

_HOMES = {"Service": "service", "Source": "served", "create_app": "app", "serve": "process"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    try:
        module = importlib.import_module(f".{_HOMES[name]}", __name__)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "adarec_fast":
            raise
        raise ConfigError(
            f"serving needs {error.name}: pip install adarec_fast[serve]"
        ) from error
    return getattr(module, name)
