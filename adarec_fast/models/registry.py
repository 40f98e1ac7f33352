"""Models by name: where the class of each is, loaded when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

_MODELS = {"adarec": "adarec.model:ADARec"}


def model_type(name: str) -> Any:
    """The class of a model."""
    module, _, attribute = _MODELS[name].partition(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), attribute)
