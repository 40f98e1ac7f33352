"""The interactions that a configuration describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..config import ConfigError, DataConfig
from .dataset import InteractionData
from .features import FeatureColumn, ItemTable
from .item_tables import read_items
from .readers import load, train_on_all
from .synthetic import synthetic


def load_more(values: Mapping[str, Any]) -> InteractionData:
    """Interactions that came after those of a run, of any number a user.

    Args:
        values: of the section ``data``; columns, ids and events are read as it says, filters and
            splits are for whole data sets and must be none.

    Raises:
        ConfigError: a value is out of range, or for whole data sets.
        DataError: the file cannot be read.
    """
    config = DataConfig.create(**values)
    plain = DataConfig.create()
    for name in ("k_core", "deduplicate", "truncate", "at", "valid_at"):
        if getattr(config, name) != getattr(plain, name):
            raise ConfigError(
                f"{name}={getattr(config, name)}: is for a whole data set, not for what came later"
            )
    return load(
        config.data, format=config.format, user=config.user_column, item=config.item_column,
        time=config.time_column, time_format=config.time_format, ids=config.ids,
        event=config.event_column, keep=config.keep, separator=config.separator,
        columns=config.columns, min_length=1,
    )  # fmt: skip


def load_items(
    values: Mapping[str, Any], like: Sequence[FeatureColumn] | None = None
) -> ItemTable | None:
    """The table of items that the values of the section ``data`` name, if any.

    Args:
        values: of the section.
        like: the columns of a run's features, which are taken where none are named.

    Raises:
        ConfigError: a value is out of range.
        DataError: the file cannot be read.
    """
    config = DataConfig.create(**values)
    if config.items is None:
        return None
    return read_items(
        config.items, id_column=config.items_id_column, features=config.features, like=like,
        item=config.item_column, text_ids=config.ids == "text",
    )  # fmt: skip


def columns_of(source: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a run's section ``data`` says of how files are read, without files and filters."""
    names = ("user_column", "item_column", "time_column", "time_format", "ids", "event_column",
             "keep", "separator", "columns", "items_id_column")  # fmt: skip
    return {name: value for name, value in (source or {}).items() if name in names}


def load_data(values: Mapping[str, Any]) -> InteractionData:
    """The interactions that the values of the section ``data`` describe.

    Raises:
        ConfigError: a value is out of range.
        DataError: the file cannot be read; the message names file and line.
    """
    config = DataConfig.create(**values).checked()
    if config.data in ("synthetic", ["synthetic"]):
        # A stored section names every field; only one with another value than its default matters.
        unchanged = DataConfig.create().to_dict()
        changed = [name for name, value in config.to_dict().items() if value != unchanged[name]]
        none = ("split", "min_length") if config.split == "none" else ()
        changed = [name for name in changed if name not in ("data", *none)]
        if changed:
            raise ConfigError(f"{', '.join(changed)}: these are for files, not for data=synthetic")
        return train_on_all(synthetic()) if none else synthetic()
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
        split=config.split,
        at=config.at,
        valid_at=config.valid_at,
        items=config.items,
        items_id=config.items_id_column,
        features=config.features,
    )
