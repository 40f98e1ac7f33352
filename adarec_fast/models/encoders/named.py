"""An encoder of another package, by its name in a configuration: ``package.module:Class``.

A name in a configuration is code that will be imported, and configurations come with models that
others made. So a name is followed only where somebody said that it may be: the program or the
command that names it itself, or the environment variable ``ADAREC_FAST_BACKBONES``.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from ...config import ConfigError

ENVIRONMENT = "ADAREC_FAST_BACKBONES"
_trusted: set[str] = set()


def trust(name: str) -> None:
    """Let this process import the encoder of this name, such as ``"package.module:Class"``."""
    _trusted.add(name)


def build_named(name: str, values: Mapping[str, Any]) -> nn.Module:
    """A fresh encoder. Its class gets those of ``values`` that its parameters are named after.

    Args:
        name: ``package.module:Class``, a subclass of ``nn.Module``.
        values: the configuration's fields, ``hidden_size`` and ``max_length`` among them.

    Raises:
        ConfigError: nobody vouches for the name, nothing of that name can be imported, it is no
            module of torch's, or it asks for what the configuration does not have.
    """
    if name not in _trusted and name not in os.environ.get(ENVIRONMENT, "").split(","):
        raise ConfigError(
            f"backbone={name!r} is code of another package, which is imported only where it is "
            f"asked for: set {ENVIRONMENT}={name}, or call "
            "adarec_fast.models.encoders.named.trust with that name, if you know it"
        )
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"backbone={name!r}: there is no module {error.name!r} to import; install its package, "
            "or name its folder in PYTHONPATH"
        ) from error
    except AttributeError:
        raise ConfigError(f"backbone={name!r}: {module} has nothing named {attribute}") from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(f"backbone={name!r} must be a class derived from torch.nn.Module")
    given = {}
    for parameter in inspect.signature(found).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in values:
            given[parameter.name] = values[parameter.name]
        elif parameter.default is parameter.empty:
            raise ConfigError(
                f"backbone={name!r} asks for {parameter.name}, which is no field of the "
                f"configuration; it may ask for {', '.join(values)}"
            )
    return found(**given)
