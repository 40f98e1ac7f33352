"""The interactions that a configuration describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import ConfigError, DataConfig
from .dataset import InteractionData
from .readers import load
from .synthetic import synthetic


def load_data(values: Mapping[str, Any]) -> InteractionData:
    """The interactions that the values of the section ``data`` describe.

    Raises:
        ConfigError: a value is out of range.
        DataError: the file cannot be read; the message names file and line.
    """
    config = DataConfig.create(**values)
    if config.data in ("synthetic", ["synthetic"]):
        # A stored section names every field; only one with another value than its default matters.
        unchanged = DataConfig.create().to_dict()
        changed = [name for name, value in config.to_dict().items() if value != unchanged[name]]
        changed = [name for name in changed if name != "data"]
        if changed:
            raise ConfigError(f"{', '.join(changed)}: these are for files, not for data=synthetic")
        return synthetic()
    return load(
        config.data,
        format=config.format,
        user=config.user_column,
        item=config.item_column,
        time=config.time_column,
        time_format=config.time_format,
        ids=config.ids,
        event=config.event_column,
        keep=config.keep,
        separator=config.separator,
        columns=config.columns,
        k_core=config.k_core,
        deduplicate=None if config.deduplicate == "off" else config.deduplicate,
        min_length=config.min_length,
        truncate=config.truncate,
    )
