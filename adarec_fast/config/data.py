"""Where interactions come from and how they are split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .base import BaseConfig, ConfigError


class DataConfig(BaseConfig):
    """Which interactions a run learns from, and what is done to them first."""

    data: str | list[str] = Field(
        "synthetic",
        description="file of interactions, 'several*.csv' as one, or synthetic; may be repeated",
    )
    format: Literal[
        "auto", "sequences", "pairs", "inter", "csv", "tsv", "json", "jsonl", "parquet"
    ] = Field("auto", description="format of the file; auto tells it by the content")
    user_column: str | None = Field(None, description="column of the user ids")
    item_column: str | None = Field(None, description="column of the item ids")
    time_column: str | None = Field(
        None,
        description="column to sort each history by, or several as in date,time; file-order sorts "
        "by none",
    )
    time_format: str | None = Field(
        None, description="how times are written, as for strptime, where it is not told by itself"
    )
    ids: Literal["auto", "text"] = Field(
        "auto", description="auto: integers where all ids are; text: as they are written"
    )
    event_column: str | None = Field(
        None, description="column that says what happened, in a log of several kinds of events"
    )
    keep: str | None = Field(None, description="the events that count, such as view,purchase")
    separator: str | None = Field(
        None, description="what stands between fields, such as ';' or tab; found out if not given"
    )
    columns: str | None = Field(
        None, description="names of the columns of a file without a header: user,item,_,time"
    )
    k_core: int = Field(0, ge=0, description="keep users and items with so many interactions")
    deduplicate: Literal["off", "consecutive", "all"] = Field(
        "off", description="drop repeats of an item in a history: adjacent ones, or all"
    )
    min_length: int = Field(
        3, ge=1, description="drop users with fewer interactions; 1 by default with --split time"
    )
    truncate: int | None = Field(
        None, ge=1, description="cut histories to their last so many training items"
    )
    split: Literal["leave-one-out", "time", "none"] = Field(
        "leave-one-out",
        description="what is held out: the last items of each history, what comes at a time or "
        "later, or nothing",
    )
    at: str | None = Field(
        None,
        description="with --split time, where test begins: a date such as 2026-01-01, or the share "
        "of the interactions before it, such as 0.8",
    )
    valid_at: str | None = Field(
        None,
        description="where validation begins, likewise; by default so that as many interactions "
        "validate as test",
    )
    items: str | None = Field(
        None,
        description="file of what is known of items: categories, numbers, vectors; its items join "
        "the catalogue",
    )
    items_id_column: str | None = Field(None, description="its column of the item ids")
    features: str | None = Field(
        None, description="its columns to use, as in brand,price:number; all of use by default"
    )

    @field_validator("at", "valid_at", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """YAML makes numbers of shares."""
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        return str(value) if plain else value

    @model_validator(mode="before")
    @classmethod
    def _shortest(cls, values: Any) -> Any:
        """One item is a history where none of it has to be held out."""
        if isinstance(values, dict) and values.get("split", "leave-one-out") != "leave-one-out":
            return {"min_length": 1, **values}
        return values

    def checked(self) -> DataConfig:
        """The same, if its fields go together; a sweep's swept ones alone need not.

        Raises:
            ConfigError: they do not.
        """
        if self.split == "leave-one-out" and self.min_length < 3:
            raise ConfigError(
                f"min_length={self.min_length}: leave-one-out holds out two items of each history "
                "and needs at least 3"
            )
        if self.split == "time" and self.at is None:
            raise ConfigError("split=time needs at, such as --at 2026-01-01 or --at 0.8")
        for name in ("at", "valid_at"):
            if self.split != "time" and getattr(self, name) is not None:
                raise ConfigError(
                    f"{name}={getattr(self, name)}: cuts at a time; say split=time (--split time)"
                )
        for name in ("items_id_column", "features"):
            if self.items is None and getattr(self, name) is not None:
                raise ConfigError(
                    f"{name}={getattr(self, name)}: names columns of a file of items (--items FILE)"
                )
        return self


def absolute_paths(data: str | Sequence[str]) -> str | list[str]:
    """The value of ``data`` with absolute paths; ``synthetic`` is none."""
    if isinstance(data, str):
        return data if data == "synthetic" else str(Path(data).resolve())
    return [str(Path(path).resolve()) for path in data]


def absolute_source(section: Mapping[str, Any]) -> dict[str, Any]:
    """What a section ``data`` says, with absolute paths to its files."""
    found = dict(section)
    if "data" in found:
        found["data"] = absolute_paths(found["data"])
    if found.get("items") is not None:
        found["items"] = absolute_paths(found["items"])
    return found


def file_names(data: str | Sequence[str]) -> str:
    """The value of ``data`` as names of files, which mean the same on other machines."""
    return ",".join(Path(path).name for path in ([data] if isinstance(data, str) else data))
